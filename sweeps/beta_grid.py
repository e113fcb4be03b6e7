"""The paper's grid: objectives x betas x sizes, every one with its checkpoints.

    python sweeps/beta_grid.py

63 cells on the embedded default. Stopped at any moment and started again, it goes on where it was; started a second
time beside itself, on this machine or another that reaches the same --storage, it shares the work.
"""

import argparse
from itertools import product

from overopt.embedded.cells import Cell
from overopt.embedded.recipe import Recipe
from overopt.sweep.options import add_options, add_recipe_options, options_of, recipe_of
from overopt.sweep.run import run_sweep
from overopt.user_errors import one_line_errors


def main() -> None:
    """Search space and budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    space = parser.add_argument_group("search space")
    space.add_argument("--objectives", nargs="+", default=["dpo", "ipo", "slic"])
    space.add_argument("--betas", nargs="+", type=float, default=list(Recipe().betas))
    space.add_argument("--sizes", nargs="+", default=["0.4M", "0.7M", "1.6M"])
    space.add_argument("--seeds", nargs="+", type=int, default=[0])
    add_recipe_options(parser)
    add_options(parser, "beta_grid")
    arguments = parser.parse_args()
    grid = product(arguments.sizes, arguments.seeds, arguments.objectives, arguments.betas)
    cells = [Cell(objective, beta, size, seed) for size, seed, objective, beta in grid]
    run_sweep(cells, recipe_of(arguments), options_of(arguments))


if __name__ == "__main__":
    with one_line_errors():
        main()
