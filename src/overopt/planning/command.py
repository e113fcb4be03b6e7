"""Stage ``plan``."""

import json
from collections.abc import Sequence
from pathlib import Path

from overopt.checkpoints.whole_file import whole_file
from overopt.planning.grid import Grid, JudgePrices
from overopt.planning.hardware import Hardware
from overopt.planning.plan import make_plan
from overopt.planning.report import plan_text


def print_plan(
    fit_options: Sequence[str],
    hardware: Hardware,
    grid: Grid,
    prices: JudgePrices,
    architecture: str | None,
    sft_examples: int | None,
    out: Path | None,
) -> None:
    """See :func:`overopt.stages.plan`."""
    plan = make_plan(
        fit_options,
        hardware=hardware,
        grid=grid,
        prices=prices,
        architecture=architecture,
        sft_examples=sft_examples,
    )
    print(plan_text(plan))
    if out is not None:
        with whole_file(out) as file:
            file.write(json.dumps(plan.numbers(), indent=2).encode() + b"\n")
        print(f"numbers in {out}")
