"""The page's tables of methods: each by itself, and against its baseline."""

from typing import Any

import pandas as pd

from overopt.analysis.findings.methods import TARGETS, Methods
from overopt.analysis.laws.curves import objective_title
from overopt.analysis.laws.intervals import Estimate
from overopt.analysis.page.number_text import MISSING, distance_text, fixed, interval_text, number_text
from overopt.analysis.page.page_content import Column, PageTable, TableCell, interval_cell, number_cell
from overopt.analysis.page.tables import Row, fitted, table_rows

_UNITS = {"win_rate": "win rate", "gold_reward": "logits"}
_TITLES = {"win_rate": "by win rate", "gold_reward": "by gold reward, as the gain over the reference"}
_DIGITS = {"win_rate": 3, "gold_reward": 2}
_METHOD = (Column("Method", filterable=True, prose=True), Column("Model", filterable=True))
# Of the KLs at which methods are compared; all are in method_effects.csv.
_SHOWN_BUDGETS = 3
_HOW_TO_READ = (
    "A peak is read off each seed's smooth curve where the other seeds' mean curve is highest. It is no maximum of "
    "measured checkpoints: that would be partly luck, and more so for a method with more of them. The fall goes to the "
    "KL beside it, the furthest that every seed went; further runs could fall further. A peak at an end of what was "
    "measured is a bound; “undecided” says that the interval of the fall holds 0, or that there is none. Intervals are "
    "Student's over seeds and need three; all seeds answer the same prompts. Costs are those of the checkpoint that is "
    "best in the mean, with all that it took beyond the reference: samples and their labels, reward models with their "
    "backbones, earlier rounds. Best-of-n draws its n samples anew for every answer, which is not in it; the seconds "
    "of RLHF hold the scoring of its samples, by the reference too. The proxy of RLHF and best-of-n is what they "
    "optimise; direct alignment optimises none, and a reward model of all its pairs is measured beside it."
)
_HOW_TO_COMPARE = (
    "Paired by seed, less the plain method that is varied: for an ensemble of proxies the single proxy, and where "
    "nothing is varied plain DPO. Falls are compared as far as both went. “p corrected” counts how many methods were "
    "compared (Holm); the intervals don't. All differences: method_effects.csv."
)


def method_tables(methods: Methods) -> list[PageTable]:
    """By each measure of quality that was taken: the methods, and what differs from their baselines."""
    measures = [measure for measure in TARGETS if (methods.table["measure"] == measure).any()]
    tables = [
        _table(
            methods.table[methods.table["measure"] == measure],
            measure,
            with_proxy=measure == measures[-1],
            note=_HOW_TO_READ * (measure == measures[0]),
        )
        for measure in measures
    ]
    for measure in measures:
        effects = methods.effects[methods.effects["measure"] == measure]
        if len(effects):
            tables.append(_effect_table(effects, measure))
    return tables


def _table(rows: pd.DataFrame, measure: str, *, with_proxy: bool, note: str) -> PageTable:
    shown, nats = fixed(_DIGITS[measure]), fixed(1)
    with_proxy = with_proxy and bool(rows["proxy_at_peak"].notna().any())
    with_costs = bool(rows[["cost_tokens", "cost_seconds"]].notna().any(axis=None))
    columns = [
        *_METHOD,
        Column("Peak", f"{_UNITS[measure]} [95%]", numeric=True),
        Column("KL there", "nats [95%]", numeric=True),
        Column("Fall after it", f"{_UNITS[measure]} [95%]", numeric=True),
        Column("to KL", "nats", numeric=True),
        Column("Peak lies"),
    ]
    if with_proxy:
        columns += [
            Column("Proxy there", "logits, gain [95%]", numeric=True),
            Column("then rises by", "logits [95%]", numeric=True),
            Column("Goodhart", "proxy up, gold down"),
        ]
    columns += [Column("Best beta", "reward / nat", numeric=True), Column("at", "examples, n", numeric=True)]
    if with_costs:
        columns += [
            Column("Tokens", "millions, to there [95%]", numeric=True),
            Column("Seconds", "to there [95%]", numeric=True),
        ]
    columns += [
        Column("Seeds", numeric=True),
        Column("Betas", numeric=True),
        Column("Checkpoints", numeric=True),
    ]
    cells = []
    for row in table_rows(rows):
        line = [
            *_named(row["method"], row["model"]),
            interval_cell(fitted(row, "peak"), shown, lines=2),
            interval_cell(fitted(row, "kl_at_peak_nats"), nats, lines=2),
            interval_cell(fitted(row, "fall"), shown, lines=2),
            number_cell(row["furthest_kl_nats"], "{:.1f}"),
            TableCell(str(row["peak_is"])),
        ]
        if with_proxy:
            line += [
                interval_cell(fitted(row, "proxy_at_peak"), fixed(2), lines=2),
                interval_cell(fitted(row, "proxy_rise"), fixed(2), lines=2),
                TableCell(str(row["goodhart"]) or MISSING),
            ]
        line += [number_cell(row["best_beta"], "{:g}"), number_cell(row["best_step"], "{:,.0f}")]
        if with_costs:
            line += [
                interval_cell(fitted(row, "cost_tokens"), lambda tokens: number_text(tokens / 1e6), lines=2),
                interval_cell(fitted(row, "cost_seconds"), lambda seconds: number_text(seconds, "{:,.0f}"), lines=2),
            ]
        line += [number_cell(row[name], "{:g}") for name in ("num_seeds", "num_betas", "num_checkpoints")]
        cells.append(line)
    anchor = f"methods-{measure.replace('_', '-')}"
    return PageTable(anchor, f"Methods {_TITLES[measure]}", columns, cells, note=note)


def _effect_table(effects: pd.DataFrame, measure: str) -> PageTable:
    shown = fixed(_DIGITS[measure])
    columns = (
        *_METHOD,
        Column("Against", filterable=True, prose=True),
        Column("Peak", f"{_UNITS[measure]} [95%]", numeric=True),
        Column("p corrected", numeric=True),
        Column("d = √KL there", "√nats [95%]", numeric=True),
        Column("Fall", f"{_UNITS[measure]} [95%]", numeric=True),
        Column("p corrected", numeric=True),
        Column("to KL", "nats", numeric=True),
        Column(f"{_UNITS[measure].capitalize()} at equal KL", "[95%]"),
        Column("Seeds", numeric=True),
    )
    cells = []
    for (model, method), group in effects.groupby(["model", "method"], sort=False):
        rows = table_rows(group)
        by_quantity = {row["quantity"]: row for row in rows}
        fall = by_quantity.get("fall", {})
        cells.append(
            [
                *_named(method, model),
                _named(rows[0]["baseline"], model)[0],
                interval_cell(_difference(by_quantity["peak"]), _signed(shown), lines=2),
                number_cell(by_quantity["peak"]["p_holm"], "{:.2g}"),
                interval_cell(_difference(by_quantity["d_at_peak"]), _signed(distance_text), lines=2),
                interval_cell(_difference(fall), _signed(shown), lines=2),
                number_cell(fall.get("p_holm"), "{:.2g}"),
                number_cell(fall.get("kl_nats"), "{:.1f}"),
                TableCell(_at_equal_kl([row for row in rows if row["quantity"] == "at_kl"], _signed(shown))),
                number_cell(rows[0]["num_seeds"], "{:g}"),
            ]
        )
    anchor = f"method-effects-{measure.replace('_', '-')}"
    return PageTable(anchor, f"Differences {_TITLES[measure]}", columns, cells, note=_HOW_TO_COMPARE)


def _named(method: Any, model: Any) -> tuple[TableCell, TableCell]:
    return TableCell(objective_title(str(method))), TableCell(str(model))


def _at_equal_kl(rows: list[dict[str, Any]], shown: Any) -> str:
    """A line a KL: the middle one and those at the ends."""
    places = sorted({round(place * (len(rows) - 1) / (_SHOWN_BUDGETS - 1)) for place in range(_SHOWN_BUDGETS)})
    chosen = [rows[place] for place in places] if rows else []
    return "\n".join(f"{row['kl_nats']:g} nats: {interval_text(_difference(row), shown)}" for row in chosen) or MISSING


def _difference(row: Row) -> Estimate:
    return Estimate(*(float(row.get(name, float("nan"))) for name in ("difference", "low", "high")))


def _signed(shown: Any) -> Any:
    """With a sign before what is above zero, since these are differences."""

    def text(value: float) -> str:
        plain = str(shown(value))
        return f"+{plain}" if value > 0 else plain

    return text
