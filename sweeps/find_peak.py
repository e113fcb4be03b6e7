"""The beta of highest win rate under a KL budget, in a few runs instead of a grid.

    python sweeps/find_peak.py

Three betas to start with, then one after another where a Gaussian process over log beta expects most. Checkpoints are
evaluated as they are saved: a run that is past its peak, or beyond the budget, ends there. Stopped and started again,
it goes on where it was, as sweeps/beta_grid.py does.
"""

import argparse
from dataclasses import replace

from overopt.analysis.advice.peak_rule import PeakRule
from overopt.embedded.cells import Cell
from overopt.embedded.recipe import Recipe
from overopt.sweep.beta_search import BetaSearch
from overopt.sweep.options import add_options, add_recipe_options, options_of, recipe_of
from overopt.sweep.run import run_sweep
from overopt.user_errors import one_line_errors


def main() -> None:
    """Search space and budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    space = parser.add_argument_group("search space and budget")
    space.add_argument("--lowest", type=float, default=min(Recipe().betas), help="beta")
    space.add_argument("--highest", type=float, default=max(Recipe().betas), help="beta")
    space.add_argument("--runs", type=int, default=7, help="at most")
    space.add_argument("--kl-budget", type=float, default=10.0, help="nats; only checkpoints within it count")
    space.add_argument(
        "--standard-errors", type=float, default=2.0, help="a run ends when so far below its best checkpoint"
    )
    space.add_argument("--objective", default="dpo")
    space.add_argument("--size", default="0.7M")
    space.add_argument("--seed", type=int, default=0)
    add_recipe_options(parser)
    add_options(parser, "find_peak")
    arguments = parser.parse_args()
    peak = PeakRule(arguments.kl_budget, arguments.standard_errors)
    cell = Cell(arguments.objective, size=arguments.size, seed=arguments.seed)
    search = BetaSearch(cell, arguments.lowest, arguments.highest, arguments.runs, arguments.seed)
    run_sweep(search.first_cells(), replace(recipe_of(arguments), peak=peak), options_of(arguments), search)


if __name__ == "__main__":
    with one_line_errors():
        main()
