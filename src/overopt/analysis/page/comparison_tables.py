"""The page's tables of what was worked out: advice, claims, falls, laws, coefficients."""

import math
from collections.abc import Sequence

import pandas as pd

from overopt.analysis.advice.advice_text import AdviceSection
from overopt.analysis.findings.claim import Claim
from overopt.analysis.laws.curves import OBJECTIVE_NAMES
from overopt.analysis.laws.intervals import Estimate
from overopt.analysis.laws.laws import COMPARED, saturating
from overopt.analysis.page.number_text import fixed, number_text
from overopt.analysis.page.page_content import Column, PageTable, TableCell, interval_cell, number_cell
from overopt.analysis.page.tables import CURVE_COLUMNS, curve_cells, table_rows

_TITLES = {name: f"({law.letter}) {law.title}" for name, law in COMPARED.items()} | {saturating.name: saturating.title}


def advice_table(advice: AdviceSection) -> PageTable:
    """What to ship and to try, a curve a row."""
    columns = [Column(name) for name in advice.header]
    return PageTable("advice-table", "By objective and model", columns, [[*map(TableCell, row)] for row in advice.rows])


def claim_table(claims: Sequence[Claim]) -> PageTable:
    """Each claim with its estimate and verdict."""
    columns = (
        Column("Claim", prose=True),
        Column("Where", prose=True),
        Column("Verdict", filterable=True),
        Column("Estimate", "[95%]", numeric=True),
        Column("Of what, and on what basis", prose=True),
        Column("Rule", prose=True),
    )
    rows = [
        (
            TableCell(claim.text),
            TableCell(claim.source),
            TableCell(claim.verdict),
            interval_cell(claim.estimate, number_text, lines=2),
            TableCell(f"{claim.measure}\n{claim.basis}"),
            TableCell(claim.rule),
        )
        for claim in claims
    ]
    return PageTable("claims-table", "Claims on this grid", columns, rows)


def fall_table(falls: pd.DataFrame) -> PageTable:
    """Tests of the fall."""
    columns = (
        *CURVE_COLUMNS,
        Column("Against", filterable=True),
        Column("Fall", "win rate [95%]", numeric=True),
        Column("p", numeric=True),
        Column("p corrected", numeric=True),
        Column("Best near d", "√nats", numeric=True),
        Column("Furthest d", "√nats", numeric=True),
        Column("Points", numeric=True),
        Column("Dips left out", numeric=True),
    )
    rows = [
        (
            *curve_cells(fall["objective"], fall["model"]),
            TableCell({"kl": "KL", "forward_kl": "forward KL"}[fall["axis"]]),
            interval_cell(Estimate(fall["drop"], fall["drop_low"], fall["drop_high"]), fixed(3)),
            number_cell(fall["p_value"], "{:.2g}"),
            number_cell(fall["p_holm"], "{:.2g}"),
            number_cell(fall["best_d"], "{:.2f}"),
            number_cell(fall["furthest_d"], "{:.2f}"),
            number_cell(fall["num_points"], "{:g}"),
            number_cell(fall["num_transients"], "{:g}"),
        )
        for fall in table_rows(falls)
    ]
    return PageTable("falls-table", "Tests of the fall", columns, rows)


def law_table(laws: pd.DataFrame) -> PageTable:
    """Errors and choices of the laws."""
    columns = (
        *CURVE_COLUMNS,
        Column("Law", filterable=True),
        Column("Error", "RMSE, win rate", numeric=True),
        Column("AICc", "above the least", numeric=True),
        Column("BIC", "above the least", numeric=True),
        Column("Best in", "share of resamples", numeric=True),
        Column("Chosen if true", "share", numeric=True),
        Column("Chosen here"),
    )
    least = laws.groupby(["objective", "model"])[["aicc", "bic"]].transform("min")
    laws = laws.assign(aicc=laws["aicc"] - least["aicc"], bic=laws["bic"] - least["bic"])
    rows = [
        (
            *curve_cells(law["objective"], law["model"]),
            TableCell(_TITLES[law["law"]]),
            number_cell(law["rmse"], "{:.4f}"),
            number_cell(law["aicc"], "{:.1f}"),
            number_cell(law["bic"], "{:.1f}"),
            number_cell(law["best_share"], "{:.0%}"),
            number_cell(law["chosen_if_true"], "{:.0%}"),
            TableCell("chosen" if law["chosen"] else ""),
        )
        for law in table_rows(laws)
    ]
    return PageTable("laws-table", "Laws on all checkpoints", columns, rows)


def shared_table(shared: pd.DataFrame) -> PageTable:
    """Coefficients in common."""
    columns = (
        Column("Curves", filterable=True),
        Column("Law", filterable=True),
        Column("In common"),
        Column("Coefficients", numeric=True),
        Column("Error", "RMSE, win rate", numeric=True),
        Column("p", "of equal coefficients", numeric=True),
        Column("Preferred"),
    )
    rows = [
        (
            TableCell(str(row["scope"])),
            TableCell(_TITLES[row["law"]]),
            TableCell(str(row["shared"])),
            number_cell(row["num_coefficients"], "{:g}"),
            number_cell(row["rmse"], "{:.4f}"),
            number_cell(math.nan if row["shared"] == "none" else row["p_value"], "{:.2g}"),
            TableCell("preferred" if row["preferred"] else ""),
        )
        for row in table_rows(shared)
    ]
    return PageTable("shared-table", "Do curves share coefficients?", columns, rows, folded=True)


def trend_table(trends: pd.DataFrame) -> PageTable:
    """Coefficients over size."""
    columns = (
        Column("Objective", filterable=True),
        Column("Law", filterable=True),
        Column("Coefficient"),
        Column("Change", "for ten times the parameters [95%]", numeric=True),
        Column("Sizes", numeric=True),
    )
    rows = [
        (
            TableCell(OBJECTIVE_NAMES.get(row["objective"], row["objective"])),
            TableCell(_TITLES[row["law"]]),
            TableCell(str(row["coefficient"])),
            interval_cell(Estimate(row["slope"], row["low"], row["high"]), number_text),
            number_cell(row["num_models"], "{:g}"),
        )
        for row in table_rows(trends)
    ]
    return PageTable("trends-table", "How coefficients move with model size", columns, rows, folded=True)
