"""What a seven-beta quickstart costs besides training and evaluation: start-up, imports, data, reports.

    python benchmarks/sweep_economy.py

Runs ``python -m overopt quickstart`` from nothing, with clocks on its parts, and prints the whole over the sum of the
parts. A part counts from the moment its model starts to compute: set-up of trainers, data and stores is not in it.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from tables import machine, write_table

HERE = Path(__file__).parent
PARTS = ("training", "evaluation", "sampling and labelling pairs")
seconds: dict[str, float] = defaultdict(float)


def main() -> None:
    """Run and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("quickstart", nargs="*", help="options of the quickstart, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = psutil.Process().create_time()
        watch()
        from overopt.cli import main as overopt

        store = f"sqlite:///{folder}/mlflow.db"
        overopt(["quickstart", "--out", str(folder / "out"), "--tracking-uri", store, *arguments.quickstart])
        whole = time.time() - begin
    parts = sum(seconds.values())
    figures = {**{part: seconds[part] for part in PARTS}, "everything else": whole - parts, "whole": whole}
    rows = [
        {"part": part, "s": f"{value:.1f}", "of the whole": f"{value / whole:.1%}"} for part, value in figures.items()
    ]
    options = f" ({' '.join(arguments.quickstart)})" if arguments.quickstart else ""
    write_table(arguments.out / "sweep_economy.md", f"Quickstart, part by part{options}", rows, machine())
    strict = whole / (seconds["training"] + seconds["evaluation"])
    print(
        f"the whole is {whole / parts:.3f}x its parts, {strict:.3f}x training and evaluation alone "
        "(sampling and labelling of the pairs left out)"
    )


def watch() -> None:
    """Clocks on the parts."""
    from overopt import embedded, run_evaluations
    from overopt.modules.step import StepModule

    started = 0.0

    def on_train_start(_: StepModule) -> None:
        nonlocal started
        started = time.perf_counter()

    def on_train_end(_: StepModule) -> None:
        seconds["training"] += time.perf_counter() - started

    StepModule.on_train_start = before(StepModule.on_train_start, on_train_start)
    StepModule.on_train_end = before(StepModule.on_train_end, on_train_end)
    for module, name, part in (
        (run_evaluations, "evaluate_paths", "evaluation"),
        (embedded, "sample_pairs_to_file", "sampling and labelling pairs"),
        (embedded, "label_pairs_to_folder", "sampling and labelling pairs"),
    ):
        setattr(module, name, clocked(getattr(module, name), part))


def before(hook: Callable[..., Any], first: Callable[..., None]) -> Callable[..., Any]:
    """Call ``first``, then the hook."""

    def both(*arguments: Any) -> Any:
        first(*arguments)
        return hook(*arguments)

    return both


def clocked(work: Callable[..., Any], part: str) -> Callable[..., Any]:
    """Count a call's time to a part."""

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = work(*arguments, **options)
        seconds[part] += time.perf_counter() - start
        return result

    return timed


if __name__ == "__main__":
    main()
