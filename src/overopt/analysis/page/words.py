"""What the report's page says in sentences: the answer, its scope and how sure it is."""

import math
from collections.abc import Sequence

import pandas as pd

from overopt.analysis.findings.claim import Claim
from overopt.analysis.findings.methods import Methods
from overopt.analysis.findings.over_optimization import OverOptimization
from overopt.analysis.laws.curves import OBJECTIVE_NAMES, objective_title
from overopt.analysis.laws.intervals import CONFIDENCE, NORMAL_QUANTILE
from overopt.analysis.laws.laws import LAWS, saturating
from overopt.analysis.laws.model_comparison import Comparison
from overopt.analysis.page.tables import VERDICT_WORDS, RunPages

_LAW_WORDS = {law.name: f"{law.title} ({law.letter})" for law in LAWS.values()}
_LAW_WORDS[saturating.name] = "curve that never falls"


def scope(points: pd.DataFrame) -> str:
    """What was compared."""
    trained = points[points["examples_seen"] > 0]

    def listed(column: str) -> str:
        return ", ".join(f"{value:g}" for value in sorted(trained[column].dropna().unique()))

    objectives = sorted(points["objective"].astype(str).unique())
    parts = [
        f"{trained['run_id'].nunique()} runs, {len(trained)} evaluated checkpoints",
        f"objectives: {', '.join(OBJECTIVE_NAMES.get(name, name) for name in objectives)}",
        f"models: {', '.join(sorted(points['model'].astype(str).unique()))}",
        f"beta: {listed('beta')}",
    ]
    if seeds := listed("seed"):
        parts.append(f"seeds: {seeds}")
    return " · ".join(parts)


def headline(facts: list[OverOptimization]) -> str:
    """The answer over all curves."""
    verdicts = [fact.verdict for fact in facts]
    if len(facts) == 1:
        return {
            "over-optimized": "The curve over-optimizes: past its peak, moving further costs quality.",
            "undecided": "Over-optimization is not established: the fall after the peak is within the noise.",
            "not reached": "Over-optimization is not reached: quality is highest at the largest divergence.",
        }[verdicts[0]]
    falls = verdicts.count("over-optimized")
    rest = [
        f"{verdicts.count(verdict)} {text}"
        for verdict, text in (("undecided", "within the noise"), ("not reached", "highest at the largest divergence"))
        if verdict in verdicts
    ]
    found = f"{falls or 'None'} of {len(facts)} curves fall{'s' if falls == 1 else ''} after the peak"
    return found + (f"; {', '.join(rest)}" if rest else "") + "."


def answer(fact: OverOptimization) -> dict[str, str]:
    """One curve: its name, what happened along it, and the verdict."""
    curve, _, text = fact.statement.partition(": ")
    return {
        "curve": curve,
        "text": text[0].upper() + text[1:],
        "verdict": VERDICT_WORDS[fact.verdict],
        "verdict_class": fact.verdict.replace(" ", "-"),
    }


def certainty(
    points: pd.DataFrame, facts: list[OverOptimization], num_prompts: int | None, *, by_prompt: bool
) -> list[str]:
    """How far the answer can be trusted.

    Args:
        points: the table.
        facts: the curves.
        num_prompts: prompts behind each win rate, where that is known.
        by_prompt: the fits' intervals come from completions.
    """
    sentences = []
    errors = points["win_rate_se"].dropna() if "win_rate_se" in points else pd.Series(dtype=float)
    half = NORMAL_QUANTILE * float(errors.median()) if len(errors) else math.nan
    over = "" if num_prompts is None else f" over {num_prompts} prompts"
    if not math.isnan(half):
        sentences.append(
            f"A win rate{over} carries a 95% half-width of ± {100 * half:.1f} points (median over checkpoints): "
            f"two checkpoints that differ by less than about {100 * half * math.sqrt(2):.0f} points are not told "
            "apart."
        )
    elif num_prompts is not None:
        widest = NORMAL_QUANTILE * 0.5 / math.sqrt(num_prompts)
        sentences.append(
            f"A win rate{over} carries a 95% half-width of up to ± {100 * widest:.1f} points; the store has no "
            "standard errors, so no interval of a fall is given."
        )
    cells = max(fact.num_cells for fact in facts)
    sentences.append(
        f"The best checkpoint is the highest of up to {cells} measured on the same prompts, so its win rate, and "
        "the fall from it, are somewhat optimistic; fresh prompts would show a little less of both."
    )
    sentences.append(
        f"Intervals of fitted curves hold what {CONFIDENCE:.0%} of studies with other prompts and other training runs "
        "would find, by resampling: "
        + (
            "prompts are drawn for all checkpoints together, since all answer the same ones."
            if by_prompt
            else "without kept completions, the win rates are taken to err independently of each other."
        )
    )
    return sentences


def comparison(found: Comparison) -> list[str]:
    """Which law misses the points least, and how sure that is."""
    rows = found.pairs.to_dict("records")
    pooled = [row for row in rows if row["objective"] == "all"]
    where = "Over all curves together" if pooled else "On this curve"
    pairs = {(row["law"], row["other"]): row for row in pooled or rows}
    sentences = []
    for law, other, paper in (
        ("log_law", "quadratic_in_kl", " (the paper: about 0.5)"),
        ("log_law", "quadratic_in_d", " (the paper: about 1)"),
        ("log_law", "saturating", ""),
    ):
        if (pair := pairs.get((law, other))) is not None:
            sentences.append(
                f"{where}, the {_LAW_WORDS[law]} misses the points by {pair['rmse_ratio']:.2f} times as much as the "
                f"{_LAW_WORDS[other]}{paper}; it misses less in {pair['better_share']:.0%} of resamples."
            )
    return [
        *sentences,
        "All laws here have two coefficients, so that least error, AICc and BIC choose alike. “Best in” is the share "
        "of resamples (other prompts, other runs) in which a law misses least. “Chosen if true” is how often a study "
        "like this one would choose the law, were its fitted curve the truth: where it is low, the points can't tell "
        "the laws apart.",
    ]


def falls() -> list[str]:
    """How the tests are made."""
    return [
        "The mean win rate of the furthest checkpoints (two, a tenth or a fifth) against that of the best stretch of a "
        "fifth among the nearer ones. The p-value says how often a curve that never falls would show such a fall: it "
        "counts that stretches were picked, that checkpoints share prompts, and that runs differ by more than those; "
        "“corrected” counts the number of curves too (Holm). Dips that training recovers from are left out.",
    ]


def advice() -> list[str]:
    """How to read the advice."""
    return [
        "The checkpoint to ship is not simply the one that wins most, which is partly luck: of those that can't be "
        "told from it, prompt by prompt, it is the one nearest to the reference that gives up at most 0.01 win rate. "
        "“Expected” is what fresh prompts should give. A next beta is named where a further run may be worth it. For "
        "a KL budget, a target win rate, and reasons: overopt advise.",
    ]


def claims(found: Sequence[Claim]) -> str:
    """How many hold."""
    counts = [sum(claim.verdict == verdict for claim in found) for verdict in ("holds", "does not", "undecided")]
    return (
        f"On this grid {counts[0]} of the paper's claims hold, {counts[1]} do not, and {counts[2]} can't be decided. "
        "Each has a rule that does not look at the grid; the estimate's interval is held against it."
    )


def methods(found: Methods) -> list[str]:
    """What gold and proxy are, and what they did."""
    gold = found.table[found.table["proxy_at_peak"].notna()]
    # By the gold reward where there is one, else by the win rate.
    gold = gold[gold["measure"] == "gold_reward"] if (gold["measure"] == "gold_reward").any() else gold
    sentences = ["All of a method's betas and checkpoints lie on one curve against √KL, how far the policy went."]
    if len(gold):
        sentences.insert(
            0,
            "The gold reward, or the judge, stands for what people want, and no policy is trained on it. The proxy is "
            "a reward model of preferences that were labelled by it, as a policy of direct alignment is itself. "
            "Over-optimization is what the proxy cannot see: it still rises while quality falls.",
        )
        sentences.append(_goodhart(gold))
    return sentences


def _goodhart(rows: pd.DataFrame) -> str:
    """Where the proxy rises while quality falls; a sentence that names the methods."""
    told = {
        "yes": "The proxy still rises while quality falls, beyond what seeds differ by: ",
        "undecided": "Not to be told from chance, or with fewer than three seeds: ",
        "no": "Not so, since quality rises again or the proxy falls too: ",
        "not reached": "Quality is highest at the furthest measured: ",
    }
    models = rows["model"].nunique()
    parts = []
    for verdict, text in told.items():
        kept = rows[rows["goodhart"] == verdict]
        if len(kept):
            names = [
                objective_title(str(row["method"])) + f" ({row['model']})" * (models > 1)
                for row in kept.to_dict("records")
            ]
            parts.append(text + "; ".join(names) + ".")
    return " ".join(parts)


def shared() -> list[str]:
    """How sharing is tested."""
    return [
        "Several curves are fitted at once, with coefficients of their own or in common. p is that of equal "
        "coefficients, by resampled prompts (the same for all curves) and runs; “preferred” is the simplest sharing "
        "that is not rejected at 5%.",
    ]


def how_to_read_fits() -> list[str]:
    """The formulas and columns of the tables of fits."""
    formulas = "; ".join(f"({law.letter}) {law.formula}" for law in LAWS.values())
    return [
        f"Win rate = {formulas}, where d = √KL [√nats]; R0 is the reference's win rate; alpha and beta_fit are "
        "coefficients of a curve, not the beta of training. With R0 held, (b) and (d) are one curve. Brackets hold 95% "
        "intervals by other prompts and other runs; an upper end of ∞ says that the points do not rule out a curve "
        "that never falls. “Left out” is the error at each beta when it is predicted from the others. AICc compares "
        "laws on the same points: lower is better. Intervals by each source of error alone, and by the profile "
        "likelihood: intervals.csv. All numbers: fits.csv."
    ]


def how_to_open_runs(runs: RunPages) -> tuple[str, str] | None:
    """What the links to runs need: a sentence, and the command that it ends with; ``None`` without links."""
    if not runs.urls:
        return None
    if runs.command is None:
        return "The names of runs in the table of checkpoints open them on the tracking server.", ""
    return (
        "The names of runs in the table of checkpoints open them in MLflow's UI. Start it first, in the folder "
        "where this report was made:",
        runs.command,
    )
