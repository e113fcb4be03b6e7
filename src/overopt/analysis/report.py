"""Points in; points.csv, fits.csv, figures and one self-contained report.html out."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from overopt.analysis.curves import group_name, require_columns
from overopt.analysis.fit_tables import fit_points
from overopt.analysis.number_text import fixed, interval_text, number_text, squared
from overopt.analysis.over_optimization import over_optimization
from overopt.analysis.report_page import Drawing, inline_svg, report_page
from overopt.analysis.report_tables import RunPages, fitted, fitted_coefficients, table_rows
from overopt.analysis.response_samples import samples

# Enough to carry a float32 and to come out the same everywhere.
FLOAT_FORMAT = "%.10g"


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
    runs: RunPages | None = None,
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
        runs: what the runs are called and where they are shown; the page has no links without it.

    Raises:
        ValueError: columns are missing, or no trained checkpoint has both a KL and a win rate.
    """
    require_columns(points, ["run_id", "objective", "model", "beta", "seed", "examples_seen"])
    require_columns(points, ["kl_nats", "win_rate"])
    if completions is not None and completions.empty:
        completions = None
    fits = fit_points(points, completions)
    facts = over_optimization(points, fits.table)
    if not facts:
        raise ValueError(
            "no trained checkpoint has both a KL and a win rate, so there is no curve; "
            "evaluate checkpoints with a judge first" + "".join(f" ({note})" for note in notes[:1])
        )
    if num_prompts is None and completions is not None:
        num_prompts = int(completions["prompt_id"].nunique())

    figures, drawings = _write_figures(points, fits.table, out / "figures")
    points_csv = _replace(out / "points.csv", _csv(points))
    fits_csv = _replace(out / "fits.csv", _csv(fits.table))
    page = report_page(
        points=points,
        facts=facts,
        fits=fits,
        notes=[*notes, *fits.notes],
        provenance=provenance or {},
        drawings=drawings,
        samples=[] if completions is None else samples(points, facts, completions),
        num_prompts=num_prompts,
        by_prompt=completions is not None and {"win_probability", "policy_log_prob"} <= set(completions),
        runs=runs or RunPages(),
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
            ", ".join(f"{name} {number_text(estimate.value)}" for name, estimate in fitted_coefficients(fit).items()),
            number_text(fit["rmse"], "{:.4f}"),
            number_text(fit["rmse_leave_one_beta_out"], "{:.4f}"),
            interval_text(fitted(fit, "d_star"), squared),
            interval_text(fitted(fit, "peak"), fixed(3)),
        ]
        for fit in table_rows(fits[fits["axis"] == "kl"])
    ]
    if not rows:
        return "no curve could be fitted"
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)


def _replace(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
    return path


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, float_format=FLOAT_FORMAT, lineterminator="\n").encode()


def _write_figures(points: pd.DataFrame, fits: pd.DataFrame, folder: Path) -> tuple[list[Path], list[Drawing]]:
    # Here, since matplotlib takes longer to import than all else that reads a table.
    from overopt.analysis.figures.catalogue import FIGURES
    from overopt.analysis.figures.style import drawing, rendered

    paths, drawings = [], []
    for name, figure in FIGURES.items():
        with drawing():
            drawn = figure.draw(points, fits)
            svg, png = rendered(drawn, "svg"), rendered(drawn, "png")
        paths += [_replace(folder / f"{figure.stem}.svg", svg), _replace(folder / f"{figure.stem}.png", png)]
        drawings.append(Drawing(name, figure.title, figure.caption, inline_svg(svg.decode(), name, figure.title)))
    return paths, drawings
