"""The tables of the report's page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from overopt.analysis.findings.over_optimization import OverOptimization
from overopt.analysis.laws.curves import OBJECTIVE_NAMES, training_fractions
from overopt.analysis.laws.intervals import NORMAL_QUANTILE, Estimate
from overopt.analysis.laws.laws import LAWS
from overopt.analysis.page.number_text import MISSING, distance_text, fixed, interval_text, number_text, squared
from overopt.analysis.page.page_content import Column, PageTable, TableCell, interval_cell, number_cell, spread_cell

# A row of a table by column.
Row = Mapping[str, Any]

VERDICT_WORDS = {
    "over-optimized": "over-optimizes",
    "undecided": "undecided",
    "not reached": "not reached",
}
CURVE_COLUMNS = (Column("Objective", filterable=True), Column("Model", filterable=True))


@dataclass(frozen=True)
class RunPages:
    """What a tracking store calls its runs, and where it shows them.

    Attributes:
        names: by run id.
        urls: by run id.
        command: what to type before the urls answer; ``None`` where a server answers anyway.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    urls: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None

    def name(self, run_id: str) -> str:
        """The run's name, or the start of its id."""
        return self.names.get(run_id, run_id[:8])


def answer_table(facts: list[OverOptimization]) -> PageTable:
    """Where each curve peaks and how far it falls."""
    columns = (
        *CURVE_COLUMNS,
        Column("Reference", "win rate", numeric=True),
        Column("Best checkpoint", "win rate ± 95%", numeric=True),
        Column("beta", "there", numeric=True),
        Column("Training", "share, there", numeric=True),
        Column("KL", "nats, there", numeric=True),
        Column("Fall to the largest KL", "win rate [95%]", numeric=True),
        Column("Law (a) peaks at KL", "nats [95%]", numeric=True),
        Column("Verdict"),
    )
    rows = [
        (
            *curve_cells(fact.objective, fact.model),
            number_cell(fact.reference_win_rate, "{:.3f}"),
            spread_cell(fact.peak.win_rate, NORMAL_QUANTILE * fact.peak.win_rate_se, 3),
            number_cell(fact.peak.beta, "{:g}"),
            number_cell(fact.peak.training_fraction, "{:.0%}"),
            number_cell(fact.peak.kl_nats, "{:.2f}"),
            TableCell(MISSING) if fact.verdict == "not reached" else interval_cell(fact.drop, fixed(3)),
            interval_cell(fact.d_star, squared),
            TableCell(VERDICT_WORDS[fact.verdict]),
        )
        for fact in facts
    ]
    return PageTable("peaks", "The peaks in numbers", columns, rows)


def fit_tables(fits: pd.DataFrame) -> list[PageTable]:
    """The fitted laws, a table a divergence."""
    columns = (
        *CURVE_COLUMNS,
        Column("Points", filterable=True),
        Column("N", "points", numeric=True),
        Column("Law", filterable=True),
        Column("R0", "win rate", numeric=True),
        Column("Coefficients", "[95%]"),
        Column("Error", "RMSE", numeric=True),
        Column("Left out", "RMSE", numeric=True),
        Column("AICc", numeric=True),
        Column("Peak at d", "√nats [95%]", numeric=True),
        Column("Peak", "win rate [95%]", numeric=True),
    )
    titles = {
        "kl": "Against √KL(policy ‖ reference)",
        "forward_kl": "Against √KL(reference ‖ policy), the forward KL",
    }
    return [
        PageTable(f"fits-{axis}", title, columns, [_fit_row(fit) for fit in table_rows(rows)], folded=axis != "kl")
        for axis, title in titles.items()
        if len(rows := fits[fits["axis"] == axis])
    ]


def _fit_row(fit: Row) -> tuple[TableCell, ...]:
    law = LAWS[str(fit["law"])]
    coefficients = [f"{name} = {interval_text(value, number_text)}" for name, value in fitted_coefficients(fit).items()]
    return (
        *curve_cells(fit["objective"], fit["model"]),
        TableCell(str(fit["points"])),
        number_cell(fit["num_points"], "{:g}"),
        TableCell(f"({law.letter}) {law.title}"),
        number_cell(fit["r0"], "{:.3f}"),
        TableCell("\n".join(coefficients)),
        number_cell(fit["rmse"], "{:.4f}"),
        number_cell(fit["rmse_leave_one_beta_out"], "{:.4f}"),
        number_cell(fit["aicc"], "{:.1f}"),
        interval_cell(fitted(fit, "d_star"), distance_text, lines=2),
        interval_cell(fitted(fit, "peak"), fixed(3), lines=2),
    )


def checkpoint_table(points: pd.DataFrame, runs: RunPages) -> PageTable:
    """Every row of the points table, with the columns that a reader asks for."""
    columns = (
        Column("Run", code=True),
        *CURVE_COLUMNS,
        Column("beta", numeric=True, filterable=True),
        Column("Seed", numeric=True),
        Column("Examples", "seen", numeric=True),
        Column("Training", "share", numeric=True),
        Column("KL", "nats ± 95%", numeric=True),
        Column("Forward KL", "nats ± 95%", numeric=True),
        Column("Win rate", "± 95%", numeric=True),
        Column("Gold reward", numeric=True),
        Column("Loss", numeric=True),
        Column("Accuracy", "implicit reward", numeric=True),
        Column("Response", "tokens", numeric=True),
        Column("Unfinished", "share", numeric=True),
    )
    shares = training_fractions(points)
    rows = [
        (
            TableCell(runs.name(str(point["run_id"])), url=runs.urls.get(str(point["run_id"]), "")),
            *curve_cells(point["objective"], point["model"]),
            number_cell(point["beta"], "{:g}"),
            number_cell(point["seed"], "{:g}"),
            number_cell(point["examples_seen"], "{:,.0f}"),
            number_cell(share, "{:.0%}"),
            _measured(point, "kl_nats", "kl_se", 2),
            _measured(point, "forward_kl_nats", "forward_kl_se", 2),
            _measured(point, "win_rate", "win_rate_se", 3),
            number_cell(point.get("gold_reward"), "{:.3f}"),
            number_cell(point.get("loss"), "{:.3f}"),
            number_cell(point.get("implicit_reward_accuracy"), "{:.3f}"),
            number_cell(point.get("response_tokens"), "{:.1f}"),
            number_cell(point.get("unfinished_share"), "{:.3f}"),
        )
        for point, share in zip(table_rows(points), shares, strict=True)
    ]
    return PageTable(
        "points",
        f"{len(points)} rows, one a run and checkpoint",
        columns,
        rows,
        note="0 examples is the reference. Intervals are over prompts. All columns: points.csv.",
        folded=True,
    )


def provenance_table(provenance: Mapping[str, str]) -> PageTable:
    """Command, commit and versions."""
    rows = [(TableCell(name), TableCell(value)) for name, value in provenance.items()]
    return PageTable("versions", "", (Column("What"), Column("Value", code=True)), rows)


def dot_facts(points: pd.DataFrame, runs: RunPages) -> dict[str, dict[str, object]]:
    """What the page tells of a figure's dot.

    Returns:
        ``runs``: by run id the page to open and pairs of a label and a value; ``checkpoints``: by
        RUN_ID:EXAMPLES_SEEN more such pairs. Values are text.
    """
    by_run: dict[str, object] = {}
    by_checkpoint: dict[str, object] = {}
    for point, share in zip(table_rows(points), training_fractions(points), strict=True):
        run_id = str(point["run_id"])
        objective, model = (cell.text for cell in curve_cells(point["objective"], point["model"]))
        by_run[run_id] = {
            "url": runs.urls.get(run_id, ""),
            "facts": [
                ("Run", runs.name(run_id)),
                ("Objective", objective),
                ("Model", model),
                ("beta", number_text(point["beta"], "{:g}")),
                ("Seed", number_text(point["seed"], "{:g}")),
            ],
        }
        by_checkpoint[f"{run_id}:{int(point['examples_seen'])}"] = [
            ("Checkpoint", f"{point['examples_seen']:,} examples, {number_text(share, '{:.0%}')} of training"),
            ("Win rate ± 95%", _measured(point, "win_rate", "win_rate_se", 3).text),
            ("KL ± 95% [nats]", _measured(point, "kl_nats", "kl_se", 2).text),
        ]
    return {"runs": by_run, "checkpoints": by_checkpoint}


def table_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows, each by column."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def fitted(fit: Row, name: str) -> Estimate:
    """A number of a row of fits, with its interval."""
    return Estimate(*(float(fit[column]) for column in (name, f"{name}_low", f"{name}_high")))


def fitted_coefficients(fit: Row) -> dict[str, Estimate]:
    """The coefficients of a row's law by name."""
    return {name: fitted(fit, name) for name in LAWS[str(fit["law"])].coefficients}


def curve_cells(objective: Any, model: Any) -> tuple[TableCell, TableCell]:
    """Of :data:`CURVE_COLUMNS`."""
    return TableCell(OBJECTIVE_NAMES.get(str(objective), str(objective))), TableCell(str(model))


def _measured(point: Row, value: str, error: str, digits: int) -> TableCell:
    half = point.get(error)
    return spread_cell(point.get(value), None if half is None or pd.isna(half) else NORMAL_QUANTILE * half, digits)
