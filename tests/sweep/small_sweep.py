"""A sweep of real stages, small enough for a cell to take a second; also a script, for workers of their own.

python tests/sweep/small_sweep.py TEXTS --storage ... --tracking-uri ... --out ...
"""

import argparse
import sys
from itertools import product
from pathlib import Path

from overopt.embedded.cells import Cell
from overopt.embedded.recipe import Recipe
from overopt.sweep.options import SweepOptions, add_options, options_of
from overopt.sweep.run import run_sweep
from overopt.user_errors import one_line_errors


def small_recipe(texts: Path, align_steps: int = 10) -> Recipe:
    return Recipe(
        source="jsonl",
        path=str(texts),
        gold_fraction=0.3,
        gold_size="0.4M",
        vocab_size=300,
        batch_size=8,
        sft_steps=3,
        gold_steps=2,
        gold_pairs=12,
        pairs=40,
        align_batch_size=8,
        align_steps=align_steps,
        evaluation_prompts=4,
    )


def cells(objectives: list[str], betas: list[float]) -> list[Cell]:
    return [Cell(objective, beta, "0.4M") for objective, beta in product(objectives, betas)]


def options(folder: Path, **changes: object) -> SweepOptions:
    """Of a sweep in a folder, with everything it writes."""
    settings = {
        "name": "small",
        "out": folder / "out",
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "heartbeat": 1,
        "grace": 4,
    }
    return SweepOptions(**{**settings, **changes})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", type=Path)
    parser.add_argument("--objectives", nargs="+", default=["dpo"])
    parser.add_argument("--betas", nargs="+", type=float, default=[0.02, 0.1, 0.5])
    parser.add_argument("--steps", type=int, default=10)
    add_options(parser, "small")
    arguments = parser.parse_args()
    grid = cells(arguments.objectives, arguments.betas)
    run_sweep(grid, small_recipe(arguments.texts, arguments.steps), options_of(arguments))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    with one_line_errors():
        main()
