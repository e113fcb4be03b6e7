"""Points in; tables, figures and one self-contained report.html out."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from overopt.analysis.laws.curves import R0Setting, group_name
from overopt.analysis.page.number_text import fixed, interval_text, number_text, squared
from overopt.analysis.page.page import inline_svg, report_page
from overopt.analysis.page.page_content import Drawing
from overopt.analysis.page.response_samples import samples
from overopt.analysis.page.tables import RunPages, fitted, fitted_coefficients, table_rows
from overopt.analysis.study import StudyAnalysis, analyse

# Enough to carry a float32 and to come out the same everywhere.
FLOAT_FORMAT = "%.10g"


class ReportPaths(NamedTuple):
    """What :func:`write_report` wrote."""

    html: Path
    tables: dict[str, Path]
    figures: tuple[Path, ...]


def write_report(
    points: pd.DataFrame,
    out: Path,
    *,
    notes: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    completions: pd.DataFrame | None = None,
    best_of_n: pd.DataFrame | None = None,
    num_prompts: int | None = None,
    runs: RunPages | None = None,
    r0: R0Setting = "measured",
    errors_in_d: bool = False,
) -> ReportPaths:
    """Analyse, draw and write everything into a folder; the same points give the same files.

    Each file is written beside and then renamed, report.html last: a reader never meets half of one.

    Args:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        out: folder, made if missing; files of an earlier report in it are replaced.
        notes: what was left out before, in words.
        provenance: how it was made, such as command, commit and versions; shown as it is.
        completions: sampled responses, for intervals and to be shown side by side: run_id, examples_seen, prompt_id,
            prompt and response, and opponent, win_probability and log-probabilities where they exist.
        best_of_n: rows as :func:`overopt.tracking.best_of_n_points.read_best_of_n` gives them, to stand beside the
            methods; they enter no curve, law or advice.
        num_prompts: prompts behind each win rate; counted in ``completions`` by default, and otherwise not
            stated.
        runs: what the runs are called and where they are shown; the page has no links without it.
        r0: win rate at d = 0; see :func:`overopt.analysis.study.analyse`.
        errors_in_d: add fits by orthogonal distance regression to intervals.csv.

    Raises:
        ValueError: columns are missing, or no trained checkpoint has both a KL and a win rate.
    """
    if completions is not None and completions.empty:
        completions = None
    study = analyse(points, completions, best_of_n=best_of_n, r0=r0, errors_in_d=errors_in_d, notes=notes)
    if num_prompts is None and completions is not None:
        num_prompts = int(completions["prompt_id"].nunique())

    figures, drawings, left_out = _write_figures(study, out / "figures")
    tables = {name: _replace(out / f"{name}.csv", _csv(table)) for name, table in study.tables.items()}
    page = report_page(
        study=study,
        notes=[*notes, *study.fits.notes, *left_out],
        provenance=provenance or {},
        drawings=drawings,
        samples=[] if completions is None else samples(points, study.facts, completions),
        num_prompts=num_prompts,
        by_prompt=completions is not None and {"win_probability", "policy_log_prob"} <= set(completions),
        runs=runs or RunPages(),
    )
    return ReportPaths(_replace(out / "report.html", page.encode()), tables, tuple(figures))


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


def _write_figures(study: StudyAnalysis, folder: Path) -> tuple[list[Path], list[Drawing], list[str]]:
    """Files of the figures, their drawings for the page, and why others are left out."""
    # Here, since matplotlib takes longer to import than all else that reads a table.
    from overopt.analysis.figures.catalogue import FIGURES, FigureTables
    from overopt.analysis.figures.style import drawing, rendered

    tables = FigureTables(study.points, study.fits.table, study.method_points)
    paths, drawings, left_out = [], [], []
    for name, figure in FIGURES.items():
        files = {kind: folder / f"{figure.stem}.{kind}" for kind in ("svg", "png")}
        if missing := figure.missing(tables):
            left_out.append(f"{figure.title} ({name}) is left out: {missing}")
            for path in files.values():
                path.unlink(missing_ok=True)  # of an earlier report
            continue
        with drawing():
            drawn = figure.draw(tables)
            content = {kind: rendered(drawn, kind) for kind in files}
        paths += [_replace(path, content[kind]) for kind, path in files.items()]
        svg = inline_svg(content["svg"].decode(), name, figure.title)
        drawings.append(Drawing(name, figure.title, figure.caption, svg))
    return paths, drawings, left_out
