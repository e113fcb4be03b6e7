"""How far the learning rate alone drives a policy: learning rates x betas of one objective.

    python sweeps/learning_rate.py

RMSprop's steps hardly depend on the loss's scale, so that at small beta the learning rate decides how far a policy
goes. Stopped and started again, it goes on where it was, as sweeps/beta_grid.py does.
"""

import argparse
from itertools import product

from overopt.embedded.cells import Cell
from overopt.sweep.options import add_options, add_recipe_options, options_of, recipe_of
from overopt.sweep.run import run_sweep
from overopt.user_errors import one_line_errors


def main() -> None:
    """Search space and budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    space = parser.add_argument_group("search space")
    space.add_argument("--learning-rates", nargs="+", type=float, default=[1e-4, 2e-4, 4e-4, 8e-4])
    space.add_argument("--betas", nargs="+", type=float, default=[0.05, 0.3])
    space.add_argument("--objective", default="dpo")
    space.add_argument("--size", default="0.7M")
    space.add_argument("--seeds", nargs="+", type=int, default=[0])
    add_recipe_options(parser)
    add_options(parser, "learning_rate")
    arguments = parser.parse_args()
    cells = [
        Cell(arguments.objective, beta, arguments.size, seed, learning_rate=rate)
        for seed, beta, rate in product(arguments.seeds, arguments.betas, arguments.learning_rates)
    ]
    run_sweep(cells, recipe_of(arguments), options_of(arguments))


if __name__ == "__main__":
    with one_line_errors():
        main()
