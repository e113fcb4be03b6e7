"""Length-regularised DPO beside plain DPO, over beta: Fig. 3, left.

    python sweeps/length_regularisation.py

Stopped and started again, it goes on where it was, as sweeps/beta_grid.py does.
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
    space.add_argument("--length-penalties", nargs="+", type=float, default=[0.0, 0.02, 0.1], help="reward per token")
    space.add_argument("--objective", default="dpo")
    space.add_argument("--betas", nargs="+", type=float, default=list(Recipe().betas))
    space.add_argument("--sizes", nargs="+", default=["0.7M"])
    space.add_argument("--seeds", nargs="+", type=int, default=[0])
    add_recipe_options(parser)
    add_options(parser, "length_regularisation")
    arguments = parser.parse_args()
    grid = product(arguments.sizes, arguments.seeds, arguments.length_penalties, arguments.betas)
    cells = [Cell(arguments.objective, beta, size, seed, penalty) for size, seed, penalty, beta in grid]
    run_sweep(cells, recipe_of(arguments), options_of(arguments))


if __name__ == "__main__":
    with one_line_errors():
        main()
