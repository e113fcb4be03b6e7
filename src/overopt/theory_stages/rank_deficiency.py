"""Stage ``rank-deficiency``: the freedom that a preference set leaves, policies that use it, and what takes it away."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow import MlflowClient
from scipy.special import logsumexp

from overopt.analysis.figures.rank_deficiency import (
    draw_equal_losses,
    draw_preferences_needed,
    draw_regularised_optima,
    draw_rewards_of_equal_loss,
    draw_starts,
)
from overopt.analysis.figures.style import drawing, write_figures
from overopt.progress import progress_bar
from overopt.theory.chi_po import chi_po_margins, chi_po_policy_with_ood_mass
from overopt.theory.preference_draws import draw_table, preferences_needed
from overopt.theory.rank_deficiency import (
    chain_rule_log_probs,
    freedom,
    least_norm_policy,
    log_ratio_margins,
    null_space_basis,
    policy_loss,
    policy_with_ood_mass,
    rank,
)
from overopt.theory.regularised_optimum import (
    RegularisedLoss,
    descend_over_logits,
    regularised_optimum,
    smallest_curvature,
)
from overopt.theory.regularisers import REGULARISERS
from overopt.theory.response_set import ResponseSet, read_response_set, tree_response_set
from overopt.theory.rlhf_optimum import reward_loss, ridge_reward, rlhf_policy
from overopt.theory.tree_mdp import TreeMDP, tree_data
from overopt.tracking.runs import finishing, log_artifact, log_metrics, log_params, start_run
from overopt.tracking.store import open_store

START_MASSES = (0.001, 0.1, 0.5, 0.9, 0.999)
# Below it a probability loses digits, and a loss recomputed from probabilities is left out.
SMALLEST_PROBABILITY = 1e-300


@dataclass(frozen=True)
class Settings:
    """What is varied.

    Attributes:
        objectives: names of preference losses.
        betas: prices of divergence, > 0 [reward / nat].
        lambdas: weights of the regularisers, > 0.
        ood_masses: of the policies of equal loss, between 0 and 1.
        draws: orders of random preferences.
        descent_steps: of each descent over all logits.
        ridge: of the reward that RLHF fits, > 0.
        seed: of the first order, and of random starts.

    Raises:
        ValueError: there are none of something, or a value is out of range.
    """

    objectives: Sequence[str]
    betas: Sequence[float]
    lambdas: Sequence[float]
    ood_masses: Sequence[float]
    draws: int
    descent_steps: int
    ridge: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("objectives", "betas", "lambdas", "ood_masses"):
            if not getattr(self, name):
                raise ValueError(f"name at least one with --{name.replace('_', '-')}")
        if not all(0 < strength < math.inf for strength in self.lambdas):
            raise ValueError(
                f"need finite lambdas > 0, got {', '.join(map(str, self.lambdas))}; 0 is always beside them"
            )
        if not all(0 < mass < 1 for mass in self.ood_masses):
            raise ValueError(f"need OOD masses between 0 and 1, got {', '.join(map(str, self.ood_masses))}")
        if self.descent_steps < 1:
            raise ValueError(f"need at least one step, got --descent-steps {self.descent_steps}")
        if self.draws < 1:
            raise ValueError(f"need at least one order of random preferences, got --draws {self.draws}")
        if not 0 < self.ridge < math.inf:
            raise ValueError(f"need a finite ridge > 0, got {self.ridge}")
        for objective in self.objectives:
            for beta in self.betas:
                RegularisedLoss(objective, beta)


def run_rank_deficiency(
    responses: ResponseSet, settings: Settings, out: Path, tracking_uri: str | None, *, tree: TreeMDP | None = None
) -> dict[str, pd.DataFrame]:
    """Stage ``rank-deficiency``; see :func:`overopt.stages.rank_deficiency`.

    Args:
        responses: prompts, responses and preferences.
        settings: what is varied.
        out: folder for tables and figures.
        tracking_uri: of the store.
        tree: that the responses are trajectories of, so that losses can be recomputed token by token.

    Returns:
        The tables, by the names of their files.

    Raises:
        ValueError: the store can't be reached, before any work; or an optimum has not been found.
    """
    client = open_store(tracking_uri, create=True)
    run = start_run(client, "rank-deficiency", "study")
    with finishing(client, run):
        log_params(client, run, {name: str(value) for name, value in vars(settings).items()})
        needed_table, needed = draw_table(responses, draws=settings.draws, seed=settings.seed)
        tables = {
            "equal_loss": equal_losses(responses, settings, tree),
            "preferences_needed": needed_table,
            "regularised": regularised_optima(responses, settings),
            "starts": descents_from_different_starts(responses, settings),
            "rlhf": rewards_of_equal_loss(responses, settings),
        }
        metrics = key_numbers(responses, settings, tables, needed)
        for line in summary(responses, tables, needed, metrics):
            print(line)
        paths = list(_write(tables, out))
        _track(client, run, metrics, paths)
    print(f"\ntables and figures: {out}")
    return tables


def chosen_response_set(
    branching: int,
    depth: int,
    demonstrations: Sequence[str] | None,
    preferences: Sequence[str] | None,
    demonstration_mass: float,
    files: Sequence[Path] | None,
) -> tuple[ResponseSet, TreeMDP | None]:
    """The set that options name, and its tree where it has one.

    Raises:
        ValueError: options that exclude each other, data of another tree that are missing, or see
            :func:`read_response_set`, :class:`TreeMDP` and :func:`tree_data`.
    """
    if files:
        if TreeMDP(branching, depth) != TreeMDP() or demonstrations or preferences:
            raise ValueError("give --files or a tree (--branching, --depth, --demonstrations, --preferences), not both")
        return read_response_set(files), None
    tree = TreeMDP(branching, depth)
    data = tree_data(tree, demonstrations, preferences)
    return tree_response_set(data, demonstration_mass=demonstration_mass), tree


def equal_losses(responses: ResponseSet, settings: Settings, tree: TreeMDP | None) -> pd.DataFrame:
    """Policies of equal loss and different OOD mass, one a row, objective and beta.

    Columns: ``objective``, ``beta``; ``ood_mass``, as wanted, and ``ood_mass_recomputed``; the ``loss`` and its
    ``loss_difference`` from the policy that was moved; ``loss_recomputed`` from probabilities, on a tree by the chain
    rule over tokens (NaN where a probability is too small for that); and the probabilities of chosen, rejected and
    demonstrated responses, ``chosen_mass``, ``rejected_mass`` (never chosen) and ``demonstrated_mass`` (in no
    preference) [fraction, mean over prompts]; ``kl_nats``, to the reference. Empty where OOD mass can't move.
    """
    columns = [
        "objective", "beta", "ood_mass", "ood_mass_recomputed", "loss", "loss_difference", "loss_recomputed",
        "chosen_mass", "rejected_mass", "demonstrated_mass", "kl_nats",
    ]  # fmt: skip
    if not responses.unseen.any():
        return pd.DataFrame(columns=columns)
    rows = []
    for beta in settings.betas:
        origin = least_norm_policy(responses, beta=beta)
        for wanted in settings.ood_masses:
            policy = policy_with_ood_mass(responses, origin, wanted)
            probabilities = np.exp(policy)
            masses = _masses(responses, probabilities)
            margins = recomputed_margins(responses, probabilities, tree)
            for objective in settings.objectives:
                before, after = (
                    policy_loss(log_ratio_margins(responses, each), objective=objective, beta=beta)
                    for each in (origin, policy)
                )
                recomputed = policy_loss(margins, objective=objective, beta=beta)
                rows.append(
                    [objective, beta, wanted, masses["ood"], after, after - before, recomputed]
                    + [masses[kind] for kind in ("chosen", "rejected", "demonstrated")]
                    + [_kl(responses, policy)]
                )
    return pd.DataFrame(rows, columns=columns)


def chi_po_loss_difference(responses: ResponseSet, settings: Settings) -> float:
    """Largest difference in loss between policies of equal chi-PO margins and the given OOD masses; NaN without such.

    They start from the policy of least norm whose log-ratio margins are 1 nat.
    """
    sides = 2 * responses.prompt_of + responses.unseen
    if len(np.unique(sides)) < 2 * responses.num_prompts:
        return math.nan
    origin = least_norm_policy(responses, beta=1.0)
    margins = [
        chi_po_margins(responses, chi_po_policy_with_ood_mass(responses, origin, mass)) for mass in settings.ood_masses
    ]
    losses = [
        [policy_loss(each, objective=objective, beta=beta) for each in margins]
        for objective in settings.objectives
        for beta in settings.betas
    ]
    return float(np.ptp(losses, axis=1).max())


def recomputed_margins(responses: ResponseSet, probabilities: np.ndarray, tree: TreeMDP | None) -> np.ndarray:
    """Margins of a policy that is known by its probabilities [nats]; NaN where one of them is too small."""
    if (probabilities[responses.compared] < SMALLEST_PROBABILITY).any():
        return np.full(responses.num_preferences, np.nan)
    log_probs = [
        np.log(each) if tree is None else chain_rule_log_probs(tree, np.maximum(each, SMALLEST_PROBABILITY))
        for each in (probabilities, responses.reference)
    ]
    log_ratio = log_probs[0] - log_probs[1]
    return np.asarray(log_ratio[responses.chosen] - log_ratio[responses.rejected])


def regularised_optima(responses: ResponseSet, settings: Settings) -> pd.DataFrame:
    """The optimum of each loss with each regulariser, one a row.

    Columns: ``objective``, ``beta``, ``regulariser``, ``strength`` (0 for none); the ``loss``; ``attained``, see
    :class:`Optimum`; ``ood_low`` and ``ood_high``, the smallest and largest OOD mass of an optimum; ``kl_nats``;
    ``smallest_margin``; ``num_local``; ``smallest_curvature`` of the loss over all logits (NaN where
    no policy attains it).
    """
    cases = [
        RegularisedLoss(objective, beta, regulariser, strength)
        for objective in settings.objectives
        for beta in settings.betas
        for regulariser in REGULARISERS
        for strength in ([0.0] if regulariser == "none" else sorted(settings.lambdas))
    ]
    rows = []
    with progress_bar() as bar:
        for case in bar.track(cases, description="optima"):
            optimum = regularised_optimum(responses, case, seed=settings.seed)
            rows.append(
                {
                    "objective": case.objective,
                    "beta": case.beta,
                    "regulariser": case.regulariser,
                    "strength": case.strength,
                    "loss": optimum.loss,
                    "attained": optimum.attained,
                    "ood_low": optimum.ood_low,
                    "ood_high": optimum.ood_high,
                    "kl_nats": _kl(responses, optimum.log_policy),
                    "smallest_margin": optimum.margins.min(),
                    "num_local": optimum.num_local,
                    "smallest_curvature": smallest_curvature(responses, case, optimum.log_policy)
                    if optimum.attained
                    else math.nan,
                }
            )
    return pd.DataFrame(rows).assign(reference_ood_mass=responses.ood_mass(responses.log_reference))


def descents_from_different_starts(responses: ResponseSet, settings: Settings) -> pd.DataFrame:
    """Where descents over all logits end that start from the reference's margins and different OOD masses.

    One beta and one strength, the middle ones. Columns: ``objective``, ``beta``, ``regulariser``, ``strength``,
    ``start_ood_mass``, ``end_ood_mass``. Empty where OOD mass can't move.
    """
    columns = ["objective", "beta", "regulariser", "strength", "start_ood_mass", "end_ood_mass"]
    if not responses.unseen.any():
        return pd.DataFrame(columns=columns)
    beta, strength = (sorted(values)[len(values) // 2] for values in (settings.betas, settings.lambdas))
    starts = np.stack([policy_with_ood_mass(responses, responses.log_reference, mass) for mass in START_MASSES])
    cases = [
        RegularisedLoss(objective, beta, regulariser, strength * (regulariser != "none"))
        for objective in settings.objectives
        for regulariser in REGULARISERS
    ]
    rows = []
    with progress_bar() as bar:
        for case in bar.track(cases, description="descents"):
            ends = descend_over_logits(responses, case, starts, num_steps=settings.descent_steps)
            for start, end in zip(starts, ends, strict=True):
                masses = responses.ood_mass(start), responses.ood_mass(end)
                rows.append([case.objective, case.beta, case.regulariser, case.strength, *masses])
    return pd.DataFrame(rows, columns=columns)


def rewards_of_equal_loss(responses: ResponseSet, settings: Settings) -> pd.DataFrame:
    """Rewards of equal loss by Eq. 2, and the OOD mass of the one best policy for each by Eq. 3.

    The ridge reward, with a constant added for unseen responses. Columns: ``beta``; ``shift``, that constant [reward];
    ``reward_loss``; ``ood_mass``. Shifts reach so far that every beta's OOD mass comes to 0.999 at least; only 0 where
    there are no unseen responses.
    """
    fitted = ridge_reward(responses, ridge=settings.ridge)
    odds = {beta: _log_odds(responses, rlhf_policy(responses, fitted, beta=beta)) for beta in settings.betas}
    farthest = max(0.0, *(beta * (math.log(999) - own) for beta, own in odds.items()))
    shifts = np.union1d(np.linspace(-0.2, 1.05, 126) * farthest, [0.0])
    rows = []
    for beta in settings.betas:
        for shift in shifts:
            reward = fitted + shift * responses.unseen
            mass = responses.ood_mass(rlhf_policy(responses, reward, beta=beta))
            rows.append((beta, shift, reward_loss(responses, reward), mass))
    return pd.DataFrame(rows, columns=["beta", "shift", "reward_loss", "ood_mass"])


def _log_odds(responses: ResponseSet, log_policy: np.ndarray) -> float:
    """Of the unseen responses of all prompts together; infinite where there are none."""
    if responses.unseen.all() or not responses.unseen.any():
        return math.inf
    return float(logsumexp(log_policy[responses.unseen]) - logsumexp(log_policy[~responses.unseen]))


def key_numbers(
    responses: ResponseSet, settings: Settings, tables: dict[str, pd.DataFrame], needed: np.ndarray
) -> dict[str, int | float]:
    """What is logged as metrics."""
    equal = tables["equal_loss"]
    return {
        "rank": rank(responses),
        "null_space_dimension": null_space_basis(responses).shape[1],
        "freedom": freedom(responses),
        "reference_ood_mass": responses.ood_mass(responses.log_reference),
        "preferences_needed_at_least": preferences_needed(responses),
        "preferences_needed_at_random": float(np.median(needed)),
        "largest_loss_difference": _largest(equal["loss_difference"]),
        "largest_difference_recomputed": _largest(equal["loss_recomputed"] - equal["loss"]),
        "largest_chi_po_loss_difference": chi_po_loss_difference(responses, settings),
    }


def summary(
    responses: ResponseSet, tables: dict[str, pd.DataFrame], needed: np.ndarray, metrics: dict[str, int | float]
) -> Iterator[str]:
    """For people."""
    yield (
        f"{responses.num_responses} responses to {responses.num_prompts} prompt(s), {responses.num_preferences} "
        f"preference(s): rank {metrics['rank']:.0f}, null space {metrics['null_space_dimension']:.0f}, freedom "
        f"{metrics['freedom']:.0f} (a constant for each prompt is taken back by normalisation)"
    )
    yield (
        f"{int(responses.unseen.sum())} responses are in no data; the reference gives them "
        f"{metrics['reference_ood_mass']:.4f}"
    )
    equal = tables["equal_loss"]
    if equal.empty:
        yield "every response is in the data: there is no OOD mass to move"
    else:
        policies = len(equal[["beta", "ood_mass"]].drop_duplicates())
        yield (
            f"{policies} policies of OOD mass {equal['ood_mass_recomputed'].min():.3g} to "
            f"{equal['ood_mass_recomputed'].max():.3g}: largest difference in loss "
            f"{metrics['largest_loss_difference']:.1e}; recomputed from probabilities they differ by "
            f"{metrics['largest_difference_recomputed']:.1e}"
        )
    if math.isfinite(chi_po := metrics["largest_chi_po_loss_difference"]):
        yield f"the same with chi-PO's link in the margin: largest difference in loss {chi_po:.1e}"
    low, high = np.quantile(needed, (0.05, 0.95))
    yield (
        f"no freedom is left after {metrics['preferences_needed_at_least']:.0f} independent preferences; of random "
        f"ones it takes {metrics['preferences_needed_at_random']:.0f} (90% of {len(needed)} orders: {low:.0f} to "
        f"{high:.0f})"
    )
    yield from ("", "OOD mass at the optimum; * only approached, by no policy attained; one optimum, else LOW to HIGH")
    yield from _optima_lines(tables["regularised"])
    starts = tables["starts"]
    if len(starts):
        one = starts.iloc[-1]
        yield from (
            "",
            f"OOD mass that descents over all logits end at, beta {one['beta']:g}, lambda {one['strength']:g}",
        )
        ends = starts.pivot_table(
            index=["objective", "regulariser"], columns="start_ood_mass", values="end_ood_mass", sort=False
        )
        ends.columns.name = "from"
        yield from ends.rename(columns="{:.3g}".format).to_string(float_format="{:.4f}".format).splitlines()
    rlhf = tables["rlhf"]
    yield from (
        "",
        "RLHF on the same preferences (Eq. 2 with a ridge, then Eq. 3), reward of unseen responses moved by t",
    )
    for beta, same in rlhf.groupby("beta"):
        own = same[same["shift"] == 0].iloc[0]
        yield (
            f"beta {beta:g}: OOD mass {own['ood_mass']:.2g} at t = 0, {same['ood_mass'].min():.2g} to "
            f"{same['ood_mass'].max():.4g} for t from {same['shift'].min():.2f} to {same['shift'].max():.2f}; reward "
            f"losses differ by {same['reward_loss'].max() - same['reward_loss'].min():.0e}"
        )


def _optima_lines(optima: pd.DataFrame) -> list[str]:
    def cell(row: pd.Series) -> str:
        star = "" if row["attained"] else "*"
        if row["ood_high"] - row["ood_low"] > 1e-9:
            return f"{row['ood_low']:.3g} to {row['ood_high']:.3g}{star}"
        return f"{row['ood_low']:.4f}{star}"

    shown = optima.assign(cell=optima.apply(cell, axis=1))
    shown["lambda"] = shown["strength"]
    wide = shown.pivot_table(
        index=["objective", "beta", "regulariser"], columns="lambda", values="cell", aggfunc="first", sort=False
    ).fillna("")
    return list(wide.rename(columns="{:g}".format).to_string().splitlines())


FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {
    "equal_loss": ("equal_loss", draw_equal_losses),
    "preferences_needed": ("preferences_needed", draw_preferences_needed),
    "regularised": ("regularised", draw_regularised_optima),
    "starts": ("starts", draw_starts),
    "rlhf": ("rlhf", draw_rewards_of_equal_loss),
}


def _write(tables: dict[str, pd.DataFrame], out: Path) -> Iterator[Path]:
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        path = out / f"{name}.csv"
        table.to_csv(path, index=False)
        yield path
    with drawing():
        drawn = ((name, draw(tables[source])) for name, (source, draw) in FIGURES.items() if not tables[source].empty)
        yield from write_figures(out / "figures", drawn)


def _track(client: MlflowClient, run: str, metrics: dict[str, int | float], paths: Sequence[Path]) -> None:
    log_metrics(client, run, {name: float(value) for name, value in metrics.items() if math.isfinite(value)}, step=0)
    for path in paths:
        log_artifact(client, run, path, "figures" if path.parent.name == "figures" else "tables")


def _masses(responses: ResponseSet, probabilities: np.ndarray) -> dict[str, float]:
    chosen = np.zeros(responses.num_responses, dtype=bool)
    chosen[responses.chosen] = True
    kinds = {
        "chosen": chosen,
        "rejected": responses.compared & ~chosen,
        "demonstrated": responses.demonstrated & ~responses.compared,
        "ood": responses.unseen,
    }
    return {kind: float(probabilities[these].sum() / responses.num_prompts) for kind, these in kinds.items()}


def _kl(responses: ResponseSet, log_policy: np.ndarray) -> float:
    there = np.isfinite(log_policy)
    log_ratio = log_policy[there] - responses.log_reference[there]
    return float(np.exp(log_policy[there]) @ log_ratio / responses.num_prompts)


def _largest(values: pd.Series) -> float:
    return float(values.astype(float).abs().max())
