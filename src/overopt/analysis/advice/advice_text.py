"""Advice in words: for a terminal, for a page, as Markdown and as JSON."""

import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import pandas as pd

from overopt.analysis.advice.advising import Advice, Advices, EvaluatedCheckpoint, RunState, Wishes, advise
from overopt.analysis.advice.peak_rule import STANDARD_ERRORS
from overopt.analysis.laws.intervals import Estimate
from overopt.analysis.laws.model_comparison import CANDIDATES

WIDTH = 110
_HEADER = ["curve", "ship", "KL [nats]", "win rate expected", "peak at KL [nats]", "next beta"]
_STATES = {"past": "past its peak", "perhaps past": "perhaps past its peak", "not past": "not past its peak"}
Named = Callable[[str], str]
"""Id of a run -> what people call it."""


class Item(NamedTuple):
    """One thing to know or to do.

    Attributes:
        title: of a word or two.
        text: sentences.
    """

    title: str
    text: str


Places = Mapping[str, Sequence[Item]]
"""Name of a curve -> where what is to be shipped is."""


class AdviceSection(NamedTuple):
    """For a page.

    Attributes:
        header: of the table.
        rows: one a curve, as text.
        refused: why there is no advice on other curves, a sentence each.
    """

    header: list[str]
    rows: list[list[str]]
    refused: list[str]


def advice_section(
    points: pd.DataFrame,
    completions: pd.DataFrame | None = None,
    *,
    wishes: Wishes = Wishes(),
    started: Mapping[str, float] | None = None,
) -> AdviceSection:
    """Advice on all curves of a points table, for a report; refusals are part of it, not errors.

    Args:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        completions: as for :func:`overopt.analysis.laws.curves.curves_of`.
        wishes: of whoever ships.
        started: when each run was started, by id.
    """
    try:
        found = advise(points, completions, wishes=wishes, started=started)
    except ValueError as problem:
        return AdviceSection(_HEADER, [], [f"{problem}."])
    return AdviceSection(_HEADER, [_row(advice) for advice in found.given], [f"{text}." for text in found.refused])


def summary(advice: Advice) -> str:
    """What to ship and what to try, in two sentences."""
    if advice.ship is None:
        first = f"ship the reference: {_no_checkpoint(advice)}."
    else:
        first = (
            f"ship beta {advice.ship.beta:g} after {advice.ship.examples_seen:,} examples "
            f"({advice.ship.kl_nats.value:.1f} nats, expected to win {_rate(advice.expected)} on fresh prompts)."
        )
    following = advice.next_beta
    return f"{first} " + (
        f"Next, try beta {following.beta:g}." if following.beta is not None else f"{_sentence(following.reason)}"
    )


def items(advice: Advice, named: Named = str) -> list[Item]:
    """All that is to be said of a curve, in the order in which one acts on it."""
    found = []
    ship, best = advice.ship, advice.best
    if ship is None:
        found.append(Item("ship", f"the reference: {_no_checkpoint(advice)}."))
    else:
        found.append(
            Item(
                "ship",
                f"{_place(ship, named)}: KL {_kl(ship)}, win rate {_rate(ship.win_rate)} measured. On fresh prompts "
                f"expect {_rate(advice.expected)}.",
            )
        )
        assert best is not None
        found.append(Item("why", _why(advice, best, ship, named)))
        nearest = advice.alike[0]
        if advice.reaches_target is not True and nearest.kl_nats.value < ship.kl_nats.value:
            found.append(
                Item(
                    "nearer",
                    f"{_place(nearest, named)} stays at {_kl(nearest)} and wins {_rate(nearest.win_rate)}: not told "
                    "from the best either, but likely to be worse.",
                )
            )
    if advice.reaches_target is False:
        found.append(Item("target", _missed_target(advice)))
    found.append(Item("peak", _peak(advice)))
    found += [Item(title, _state(state, named)) for title, state in _told_of(advice)]
    following = advice.next_beta
    if following.beta is None:
        found.append(Item("next beta", _sentence(following.reason)))
    else:
        found.append(
            Item(
                "next beta",
                f"{following.beta:g}: {following.reason}. A run of the same length is to end at "
                f"{_nats(following.kl_nats)} (95%: betas from {following.low:.2g} to {following.high:.2g} may).",
            )
        )
    return [*found, *(Item("note", _sentence(remark)) for remark in advice.remarks)]


def _no_checkpoint(advice: Advice) -> str:
    reference = f"the reference's {_rate(advice.reference_win_rate)}"
    if advice.best is None:
        nearest = min((run.newest.kl_nats.value for run in advice.runs), default=math.nan)
        return (
            f"no checkpoint is within the budget of {advice.wishes.kl_budget:g} nats (runs end at {nearest:.1f} nats "
            "or more): save earlier checkpoints, or train with a larger beta"
        )
    where = "" if advice.wishes.kl_budget is None else f" within {advice.wishes.kl_budget:g} nats"
    return (
        f"no checkpoint{where} beats it beyond chance. The best of {advice.num_checkpoints} wins "
        f"{_rate(advice.best.win_rate)} against {reference}, a gain of {_gain(advice.gain)} before the luck of being "
        "the best is taken off"
    )


def _why(advice: Advice, best: EvaluatedCheckpoint, ship: EvaluatedCheckpoint, named: Named) -> str:
    if advice.reaches_target:
        return (
            f"of the {len(advice.alike)} checkpoints that win more than {advice.wishes.target:g} beyond chance, it is "
            "the nearest to the reference."
        )
    budget = advice.wishes.kl_budget
    within = "" if budget is None else f" within {budget:g} nats"
    others = len(advice.alike)
    farthest = advice.alike[-1].kl_nats.value
    if others == 1:
        text = f"it wins most{within}, and all others lose against it by more than chance."
    else:
        top = (
            "it wins most"
            if best == ship
            else f"{_place(best, named)} wins most, {_rate(best.win_rate)} at {_kl(best)}"
        )
        text = (
            f"{top}{within}. {others} of {advice.num_checkpoints} checkpoints, at {advice.alike[0].kl_nats.value:.1f} "
            f"to {farthest:.1f} nats, can't be told from the best ({STANDARD_ERRORS:g} standard errors, prompt by "
            f"prompt). Of those that give up at most {advice.wishes.tolerance:g} of win rate, by measurement and curve "
            "together, the one to ship stays nearest to the reference."
        )
    top_of_all = advice.best_of_all
    if budget is not None and top_of_all.kl_nats.value > budget:
        text += (
            f" Beyond the budget {_place(top_of_all, named)} wins {_rate(top_of_all.win_rate)} at {_kl(top_of_all)}."
        )
    return text


def _missed_target(advice: Advice) -> str:
    text = f"no checkpoint wins more than {advice.wishes.target:g} beyond chance"
    high = advice.peak.win_rate.high
    assert advice.wishes.target is not None
    if advice.peak.exists and high < advice.wishes.target:
        text += f", and the predicted peak is at most {high:.3f}: another beta will hardly reach it; better data may"
    return text + "."


def _peak(advice: Advice) -> str:
    peak = advice.peak
    law = CANDIDATES[peak.law]
    by = f"({law.title}, which misses the points least in {peak.support:.0%} of resamples)"
    largest = max(run.newest.kl_nats.value for run in advice.runs)
    if not peak.exists:
        if peak.kl_nats.value == 0:
            return f"the fitted curve only falls {by}: every step away from the reference costs quality."
        low = "" if peak.kl_nats.low == 0 else f", and not before {_nats(peak.kl_nats.low)}"
        return f"not reached within {_nats(largest)} {by}: the fitted curve still rises{low} (95% interval)."
    place = f"at {_nats(peak.kl_nats.value)}, {_interval_of(peak.kl_nats)}"
    height = f"win rate {_rate(peak.win_rate)}"
    return f"{place}; {height} {by}."


def _interval_of(kl: Estimate) -> str:
    if kl.low <= 0 and math.isinf(kl.high):
        return "but the points do not pin it down"
    if math.isinf(kl.high):
        return f"95% interval {_nats(kl.low)} or later, if at all"
    return f"95% interval {_kl_number(kl.low)} to {_nats(kl.high)}"


def _told_of(advice: Advice) -> list[tuple[str, RunState]]:
    """The runs that were started last, and the one that went furthest where that is another."""
    told = [("newest run", state) for state in advice.runs if state.started_last]
    return told + [("furthest run", state) for state in advice.runs if state.furthest and not state.started_last]


def _state(state: RunState, named: Named) -> str:
    text = f"{named(state.newest.run_id)} (beta {state.newest.beta:g}) is {_STATES[state.state]}"
    reasons = []
    if state.over_budget:
        reasons.append(f"its last checkpoint, at {_kl(state.newest)}, is beyond the budget")
    if state.best is not None and state.best.examples_seen != state.newest.examples_seen:
        lost = state.lost
        chance = "" if lost.low > 0 else ", which may be chance"
        reasons.append(f"since {state.best.examples_seen:,} examples it has lost {_rate(lost)}{chance}")
    elif state.best is not None and not state.over_budget:
        reasons.append("its last checkpoint is its best")
    if not state.over_budget:
        reasons.append(f"the curve's peak lies behind it in {state.beyond_peak:.0%} of resamples")
    return f"{text}: {'; '.join(reasons)}."


def _place(checkpoint: EvaluatedCheckpoint, named: Named) -> str:
    run = named(checkpoint.run_id)
    return f"{run}, beta {checkpoint.beta:g}, after {checkpoint.examples_seen:,} examples"


def _kl(checkpoint: EvaluatedCheckpoint) -> str:
    half = checkpoint.kl_nats.high - checkpoint.kl_nats.value
    error = f" ± {half:.1f}" if half >= 0.05 else ""
    return f"{_kl_number(checkpoint.kl_nats.value)}{error} nats"


def _kl_number(kl: float) -> str:
    return f"{kl:.1f}" if kl < 99.95 else f"{kl:.0f}"


def _nats(kl: float) -> str:
    return f"{_kl_number(kl)} nats"


def _rate(rate: Estimate) -> str:
    if not (math.isfinite(rate.low) and math.isfinite(rate.high)) or rate.low == rate.high:
        return f"{rate.value:.3f}"
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"


def _gain(gain: Estimate) -> str:
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if math.isfinite(gain.low) else f"{gain.value:+.3f}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def heading(advice: Advice) -> str:
    """A curve and what was measured of it."""
    prompts = "" if advice.num_prompts is None else f", {advice.num_prompts} prompts"
    wishes = [
        f"budget {advice.wishes.kl_budget:g} nats" if advice.wishes.kl_budget is not None else "",
        f"target {advice.wishes.target:g}" if advice.wishes.target is not None else "",
    ]
    asked = "".join(f", {wish}" for wish in wishes if wish)
    return (
        f"{advice.name}: {advice.num_runs} runs, {advice.num_checkpoints} checkpoints{prompts}; the reference wins "
        f"{_rate(advice.reference_win_rate)}{asked}"
    )


def as_text(found: Advices, named: Named = str, places: Places | None = None) -> str:
    """For a terminal.

    Args:
        found: the advice.
        named: what runs are called.
        places: where what is to be shipped is, by the curve's name.
    """
    blocks = []
    for advice in found.given:
        told = _with_places(items(advice, named), advice, places)
        blocks.append("\n".join([heading(advice), *(_line(item) for item in told)]))
    return "\n\n".join([_table(found), *blocks, *found.refused])


def _table(found: Advices) -> str:
    rows = [_HEADER, *(_row(advice) for advice in found.given)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _with_places(told: list[Item], advice: Advice, places: Places | None) -> list[Item]:
    return [told[0], *(places or {}).get(advice.name, ()), *told[1:]]


def _line(item: Item) -> str:
    indent = f"  {item.title:<13}"
    if item.title == "file":  # to be copied in one piece
        return indent + item.text
    return textwrap.fill(item.text, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))


def as_markdown(found: Advices, named: Named = str, places: Places | None = None) -> str:
    """The same as a file with headings."""
    lines = ["# Advice", ""]
    for advice in found.given:
        told = _with_places(items(advice, named), advice, places)
        lines += [f"## {heading(advice)}", "", *(f"- **{item.title}**: {item.text}" for item in told), ""]
    if rest := [*found.refused, *found.notes]:
        lines += ["## Left out", "", *(f"- {text}" for text in rest), ""]
    return "\n".join(lines)


def as_json(found: Advices, places: Places | None = None) -> str:
    """The same for programs: an open or missing end of an interval is null."""
    given = []
    for advice in found.given:
        fields = asdict(advice)
        fields["peak"].pop("places")
        fields["reference_win_rate"] = advice.reference_win_rate
        given.append({**_plain(fields), "summary": summary(advice), **dict((places or {}).get(advice.name, ()))})
    content = {"advice": given, "refused": list(found.refused), "notes": list(found.notes)}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {name: _plain(end) for name, end in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _row(advice: Advice) -> list[str]:
    ship, peak, following = advice.ship, advice.peak, advice.next_beta
    place = "not reached" if peak.kl_nats.value else "falls from the start"
    if peak.exists:
        low, high = (_kl_number(end) if math.isfinite(end) else "∞" for end in peak.kl_nats[1:])
        place = f"{_kl_number(peak.kl_nats.value)} [{low}, {high}]"
    shipped = ["the reference", "0", _rate(advice.reference_win_rate)]
    if ship is not None:
        shipped = [
            f"beta {ship.beta:g}, {ship.examples_seen:,} examples",
            _kl(ship).removesuffix(" nats"),
            _rate(advice.expected),
        ]
    return [advice.name, *shipped, place, "none" if following.beta is None else f"{following.beta:g}"]
