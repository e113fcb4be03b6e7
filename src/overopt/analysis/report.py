"""Points in; points.csv, fits.csv, figures and one self-contained report.html out."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from overopt.analysis.fitting import (
    CONFIDENCE,
    OBJECTIVE_NAMES,
    Estimate,
    Fits,
    fit_points,
    group_name,
    require_columns,
)
from overopt.analysis.laws import LAWS
from overopt.analysis.over_optimization import NORMAL_QUANTILE, OverOptimization, over_optimization

# A row of a table by column.
Row = Mapping[str, Any]
MISSING = "-"
# Enough to carry a float32 and to come out the same everywhere.
FLOAT_FORMAT = "%.10g"
SAMPLE_PROMPTS = 4

_VERDICTS = {
    "over-optimized": "over-optimizes",
    "undecided": "undecided",
    "not reached": "not reached",
}


class ReportPaths(NamedTuple):
    """What :func:`write_report` wrote."""

    html: Path
    points_csv: Path
    fits_csv: Path
    figures: tuple[Path, ...]


def write_report(
    points: pd.DataFrame,
    out: Path,
    *,
    notes: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    completions: pd.DataFrame | None = None,
    num_prompts: int | None = None,
) -> ReportPaths:
    """Fit, draw and write everything into a folder; the same points give the same files.

    Each file is written beside and then renamed, report.html last: a reader never meets half of one.

    Args:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        out: folder, made if missing; files of an earlier report in it are replaced.
        notes: what was left out before, in words.
        provenance: how it was made, such as command, commit and versions; shown as it is.
        completions: sampled responses, to be shown side by side: run_id, examples_seen, prompt_id, prompt
            and response, and opponent and win_probability where they exist.
        num_prompts: prompts behind each win rate; counted in ``completions`` by default, and otherwise not
            stated.

    Raises:
        ValueError: columns are missing, or no trained checkpoint has both a KL and a win rate.
    """
    require_columns(points, ["run_id", "objective", "model", "beta", "seed", "examples_seen"])
    require_columns(points, ["kl_nats", "win_rate"])
    facts = over_optimization(points)
    if not facts:
        raise ValueError(
            "no trained checkpoint has both a KL and a win rate, so there is no curve; "
            "evaluate checkpoints with a judge first" + "".join(f" ({note})" for note in notes[:1])
        )
    fits = fit_points(points)
    if num_prompts is None and completions is not None and len(completions):
        num_prompts = int(completions["prompt_id"].nunique())

    figures, drawings, left_out = _write_figures(points, fits.table, out / "figures")
    points_csv = _replace(out / "points.csv", _csv(points))
    fits_csv = _replace(out / "fits.csv", _csv(fits.table))
    page = _page(
        points=points,
        facts=facts,
        fits=fits,
        notes=[*notes, *fits.notes, *left_out],
        provenance=dict(provenance or {}),
        drawings=drawings,
        samples=[] if completions is None else _samples(points, facts, completions),
        num_prompts=num_prompts,
    )
    return ReportPaths(_replace(out / "report.html", page.encode()), points_csv, fits_csv, tuple(figures))


def format_fits(fits: pd.DataFrame) -> str:
    """The fits of the KL axis as plain text for a terminal, a law a line."""
    header = ["curve", "points", "law", "coefficients", "rmse", "left-out rmse", "peak at KL [nats]", "peak"]
    rows = [
        [
            group_name(str(fit["objective"]), str(fit["model"])),
            str(fit["points"]),
            str(fit["law"]),
            ", ".join(f"{name} {_number(estimate.value)}" for name, estimate in _coefficients(fit).items()),
            _number(fit["rmse"], "{:.4f}"),
            _number(fit["rmse_leave_one_beta_out"], "{:.4f}"),
            _interval(_estimate(fit, "d_star"), _squared),
            _interval(_estimate(fit, "peak"), _fixed(3)),
        ]
        for fit in _rows(fits[fits["axis"] == "kl"])
    ]
    if not rows:
        return "no curve could be fitted"
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)


# Files


def _replace(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
    return path


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, float_format=FLOAT_FORMAT, lineterminator="\n").encode()


@dataclass(frozen=True)
class _Drawing:
    name: str
    title: str
    caption: str
    svg: str


def _write_figures(
    points: pd.DataFrame, fits: pd.DataFrame, folder: Path
) -> tuple[list[Path], list[_Drawing], list[str]]:
    # Here, since matplotlib takes longer to import than all else that reads a table.
    from overopt.analysis.figures.catalogue import FIGURES
    from overopt.analysis.figures.style import drawing, rendered

    paths, drawings, left_out = [], [], []
    for name, figure in FIGURES.items():
        if missing := figure.missing(points):
            left_out.append(f"{name}, {figure.title}, is left out: {missing}")
            for suffix in ("svg", "png"):  # an earlier report's
                (folder / f"{figure.stem}.{suffix}").unlink(missing_ok=True)
            continue
        with drawing():
            drawn = figure.draw(points, fits)
            svg, png = rendered(drawn, "svg"), rendered(drawn, "png")
        paths += [_replace(folder / f"{figure.stem}.svg", svg), _replace(folder / f"{figure.stem}.png", png)]
        drawings.append(_Drawing(name, figure.title, figure.caption, inline_svg(svg.decode(), name, figure.title)))
    return paths, drawings, left_out


def inline_svg(svg: str, prefix: str, label: str) -> str:
    r"""An SVG file as an element of a page: no prolog, no metadata, identifiers of its own.

    >>> inline_svg('<?xml version="1.0"?>\n<svg width="9pt" height="9pt"><g id="a"/></svg>', "fig01", "A title")
    '<svg role="img" aria-label="A title"><g id="fig01-a"/></svg>'
    """
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A checkpoint may have several dots, and an id of a page only one place.
    svg = re.sub(r'\bid="checkpoint:([^"]+)"', r'data-checkpoint="\1"', svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    # The page decides how large it is; its shape is in the viewBox.
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


# The page


def _page(
    *,
    points: pd.DataFrame,
    facts: list[OverOptimization],
    fits: Fits,
    notes: list[str],
    provenance: dict[str, str],
    drawings: list[_Drawing],
    samples: list["_Samples"],
    num_prompts: int | None,
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        scope=_scope(points),
        headline=_headline(facts),
        answers=[_answer(fact) for fact in facts],
        certainty=_certainty(points, facts, num_prompts),
        drawings=[{**vars(drawing), "svg": Markup(drawing.svg)} for drawing in drawings],
        narrow=len(points["objective"].unique()) == 1,
        comparisons=_comparisons(fits.table),
        formulas=[f"({law.letter}) {law.formula}" for law in LAWS.values()],
        fit_tables=[
            {"title": title, "rows": [_fit_row(fit) for fit in _rows(rows)]}
            for axis, title in (
                ("kl", "Against √KL(policy ‖ reference)"),
                ("forward_kl", "Against √KL(reference ‖ policy), the forward KL"),
            )
            if len(rows := fits.table[fits.table["axis"] == axis])
        ],
        samples=samples,
        points=[_point_row(point) for point in _rows(points)],
        notes=notes,
        provenance=provenance,
    )


def _scope(points: pd.DataFrame) -> str:
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


def _headline(facts: list[OverOptimization]) -> str:
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


def _answer(fact: OverOptimization) -> dict[str, object]:
    curve, _, text = fact.statement.partition(": ")
    peak = fact.peak
    half = NORMAL_QUANTILE * peak.win_rate_se
    return {
        "curve": curve,
        "text": text[0].upper() + text[1:],
        "verdict": _VERDICTS[fact.verdict],
        "verdict_class": fact.verdict.replace(" ", "-"),
        "reference": _number(fact.reference_win_rate, "{:.3f}"),
        "best": _number(peak.win_rate, "{:.3f}") + ("" if math.isnan(half) else f" ± {half:.3f}"),
        "where": f"beta {peak.beta:g}, {peak.training_fraction:.0%} of training",
        "kl": f"{peak.kl_nats:.2f}",
        "drop": MISSING if fact.verdict == "not reached" else _interval(fact.drop, _fixed(3)),
        "law_peak": _interval(fact.d_star, _squared),
    }


def _certainty(points: pd.DataFrame, facts: list[OverOptimization], num_prompts: int | None) -> list[str]:
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
        f"Intervals of fitted curves are the classical {CONFIDENCE:.0%} ones, with checkpoints taken as "
        "independent and the reference's win rate as exact; checkpoints of one run are alike, so the intervals "
        "are narrower than they should be."
    )
    return sentences


def _comparisons(fits: pd.DataFrame) -> list[str]:
    sentences = []
    for (objective, model), rows in fits[(fits["axis"] == "kl") & (fits["points"] == "all")].groupby(
        ["objective", "model"], sort=True
    ):
        errors = {str(fit["law"]): 100 * float(fit["rmse"]) for fit in _rows(rows)}
        ratio = errors["log_law"] / errors["quadratic_in_kl"] if errors["quadratic_in_kl"] > 0 else math.nan
        listed = ", ".join(f"({LAWS[name].letter}) by {error:.1f}" for name, error in errors.items())
        sentences.append(
            f"{group_name(str(objective), str(model))}: the curves miss the points {listed} points of win rate "
            f"(root mean square). The error of (a) is {ratio:.2f} times that of (c); the paper has about 0.5."
        )
    return sentences


def _fit_row(fit: Row) -> dict[str, object]:
    law = LAWS[str(fit["law"])]
    return {
        "curve": group_name(str(fit["objective"]), str(fit["model"])),
        "points": f"{fit['points']} ({fit['num_points']})",
        "law": f"({law.letter}) {law.title}",
        "r0": _number(fit["r0"], "{:.3f}"),
        "coefficients": [f"{name} = {_interval(estimate, _number)}" for name, estimate in _coefficients(fit).items()],
        "rmse": _number(fit["rmse"], "{:.4f}"),
        "left_out": _number(fit["rmse_leave_one_beta_out"], "{:.4f}"),
        "aicc": _number(fit["aicc"], "{:.1f}"),
        "d_star": _interval(_estimate(fit, "d_star"), _fixed(2)).split(" ", 1),
        "peak": _interval(_estimate(fit, "peak"), _fixed(3)).split(" ", 1),
    }


def _point_row(point: Row) -> dict[str, str]:
    def measured(value: str, error: str | None, digits: int) -> str:
        text = _number(point.get(value), f"{{:.{digits}f}}")
        spread = _number(point.get(error), f"{{:.{digits}f}}") if error else MISSING
        return text if MISSING in (text, spread) else f"{text} ± {spread}"

    return {
        "run": str(point["run_id"])[:8],
        "curve": group_name(str(point["objective"]), str(point["model"])),
        "beta": _number(point["beta"]),
        "seed": MISSING if pd.isna(point["seed"]) else str(point["seed"]),
        "examples": f"{point['examples_seen']:,}",
        "kl": measured("kl_nats", "kl_se", 2),
        "forward_kl": measured("forward_kl_nats", "forward_kl_se", 2),
        "win_rate": measured("win_rate", "win_rate_se", 3),
        "gold_reward": measured("gold_reward", None, 3),
        "loss": measured("loss", None, 3),
        "accuracy": measured("implicit_reward_accuracy", None, 3),
        "tokens": measured("response_tokens", None, 1),
        "unfinished": measured("unfinished_share", None, 3),
    }


@dataclass(frozen=True)
class _Samples:
    """Responses of one curve to a few prompts.

    Attributes:
        curve: objective and model.
        checkpoints: headings, from the lowest KL over the best win rate to the highest KL.
        prompts: for each prompt its text, the opponent, and one response and win probability a checkpoint.
    """

    curve: str
    checkpoints: list[str]
    prompts: list[dict[str, object]]


def _samples(points: pd.DataFrame, facts: list[OverOptimization], completions: pd.DataFrame) -> list[_Samples]:
    """Responses at the lowest KL, the best win rate and the highest KL of each curve that has them."""
    require_columns(completions, ["run_id", "examples_seen", "prompt_id", "prompt", "response"])
    found = []
    for fact in facts:
        trained = _rows(
            points[
                (points["objective"] == fact.objective)
                & (points["model"] == fact.model)
                & (points["examples_seen"] > 0)
                & points[["kl_nats", "win_rate"]].notna().all(axis=1)
            ]
        )
        checkpoints = {
            "lowest KL": min(trained, key=lambda point: point["kl_nats"]),
            "best win rate": max(trained, key=lambda point: point["win_rate"]),
            "highest KL": max(trained, key=lambda point: point["kl_nats"]),
        }
        by_prompt = [_by_prompt(completions, point) for point in checkpoints.values()]
        shared = [prompt_id for prompt_id in by_prompt[0] if all(prompt_id in column for column in by_prompt)]
        if not shared:
            continue
        found.append(
            _Samples(
                curve=group_name(fact.objective, fact.model),
                checkpoints=[
                    f"{name}: {point['kl_nats']:.1f} nats, win rate {point['win_rate']:.2f} "
                    f"(beta {point['beta']:g}, {point['examples_seen']:,} examples)"
                    for name, point in checkpoints.items()
                ],
                prompts=[
                    {
                        "prompt": str(by_prompt[0][prompt_id]["prompt"]).strip(),
                        "opponent": str(by_prompt[0][prompt_id].get("opponent", "")).strip(),
                        "responses": [
                            {
                                "text": str(column[prompt_id]["response"]).strip(),
                                "win_probability": _number(column[prompt_id].get("win_probability"), "{:.2f}"),
                            }
                            for column in by_prompt
                        ],
                    }
                    for prompt_id in shared[:SAMPLE_PROMPTS]
                ],
            )
        )
    return found


def _by_prompt(completions: pd.DataFrame, point: Row) -> dict[str, dict[str, Any]]:
    mine = (completions["run_id"] == point["run_id"]) & (completions["examples_seen"] == point["examples_seen"])
    rows = _rows(completions[mine].drop_duplicates("prompt_id"))
    return {str(row["prompt_id"]): row for row in sorted(rows, key=lambda row: str(row["prompt_id"]))}


# Numbers in words


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _number(value: Any, template: str = "{:.3g}") -> str:
    if value is None or pd.isna(value):
        return MISSING
    number = float(value)
    return template.format(number) if math.isfinite(number) else "∞" if number > 0 else "-∞"


def _fixed(digits: int) -> Callable[[float], str]:
    return lambda value: _number(value, f"{{:.{digits}f}}")


def _squared(d: float) -> str:
    """A distance as the KL it stands for [nats]."""
    return _number(np.square(d), "{:.2f}" if d < 10 else "{:.4g}")


def _interval(estimate: Estimate, shown: Callable[[float], str]) -> str:
    value = shown(estimate.value)
    if math.isnan(estimate.low):
        return value
    return f"{value} [{shown(estimate.low)}, {shown(estimate.high)}]"


def _estimate(fit: Row, name: str) -> Estimate:
    return Estimate(*(float(fit[column]) for column in (name, f"{name}_low", f"{name}_high")))


def _coefficients(fit: Row) -> dict[str, Estimate]:
    return {name: _estimate(fit, name) for name in LAWS[str(fit["law"])].coefficients}
