"""All methods on the same axes: direct alignment, its mitigations, RLHF and best-of-n, over betas and seeds.

    python sweeps/methods.py

One reference a seed, the same prompts and the same gold judge for all. The report has a figure and a table that compare
them. Stopped and started again, it goes on where it was, as sweeps/beta_grid.py does.
"""

import argparse
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from overopt.embedded.cells import BestOfN, Cell, PolicyGradientCell, Proxies, Proxy, StudyCell
from overopt.sweep.options import add_options, add_recipe_options, options_of, recipe_of
from overopt.sweep.run import run_sweep
from overopt.user_errors import one_line_errors

#: By the names of conf/mitigation, where sources and conventions are; updates of a reference are as far apart here as a
#: short run allows, and two mitigations that hold policies near the reference have a weaker form.
ALIGNMENTS: dict[str, Mapping[str, Any]] = {
    "dpo": {},
    "ipo": {"objective": "ipo"},
    "slic": {"objective": "slic"},
    "length": {"length_penalty": 0.02},
    "rpo": {"nll_weight": 1.0},
    "rpo_weak": {"nll_weight": 0.1},
    "chi_po": {"link": "chi_squared"},
    "dpo_positive": {"positive_penalty": 50.0},
    "dpo_positive_weak": {"positive_penalty": 5.0},
    "tr_hard": {"reference_every": 64},
    "tr_soft": {"reference_every": 64, "reference_alpha": 0.6},
    "iterated": {"rounds": 2},
    "iterated_by_proxy": {"rounds": 2, "round_labels": "proxy"},
}
COMBINATIONS = {"mean": "mean", "worst": "worst", "uncertainty": "uncertainty_weighted"}
#: What optimises against a reward model, from the proxies and the beta; best-of-n has none.
OPTIMISERS: dict[str, Callable[[Proxies, float], StudyCell]] = {
    "rloo": lambda proxies, beta: PolicyGradientCell(proxies, "rloo", beta),
    "ppo": lambda proxies, beta: PolicyGradientCell(proxies, "ppo", beta),
    "best_of_n": lambda proxies, beta: BestOfN(proxies),
}


def main() -> None:
    """Search space and budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    space = parser.add_argument_group("search space")
    space.add_argument("--alignments", nargs="*", default=list(ALIGNMENTS), choices=ALIGNMENTS)
    space.add_argument("--betas", nargs="+", type=float, default=[0.02, 0.1, 0.3], help="of alignments")
    space.add_argument("--optimisers", nargs="*", default=["rloo", "best_of_n"], choices=OPTIMISERS)
    space.add_argument("--rl-betas", nargs="+", type=float, default=[0.003, 0.01, 0.03], help="of policy gradients")
    space.add_argument(
        "--proxy-pairs", nargs="+", type=int, help="a proxy learns from so many; by default 256, and all"
    )
    space.add_argument("--ensembles", nargs="*", default=list(COMBINATIONS), choices=COMBINATIONS)
    space.add_argument("--ensemble-pairs", type=int, help="that each member learns from; 256 by default")
    space.add_argument("--members", type=int, default=4, help="of an ensemble")
    space.add_argument("--size", default="0.4M", help="of policies and proxies")
    space.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add_recipe_options(parser)
    parser.set_defaults(preset=Path(__file__).parents[1] / "conf" / "sweep" / "methods.yaml")
    add_options(parser, "methods")
    arguments = parser.parse_args()
    if not arguments.alignments and not arguments.optimisers:
        raise ValueError("nothing to compare: name --alignments, or --optimisers")
    if arguments.ensembles and arguments.members < 2:
        raise ValueError(
            f"an ensemble has at least 2 members, got --members {arguments.members}; or give no --ensembles"
        )
    recipe = recipe_of(arguments)
    few = min(256, recipe.pairs)
    if arguments.proxy_pairs is None:
        arguments.proxy_pairs = sorted({few, recipe.pairs})
    if arguments.ensemble_pairs is None:
        arguments.ensemble_pairs = few
    run_sweep(cells_of(arguments), recipe, options_of(arguments))


def cells_of(arguments: argparse.Namespace) -> list[StudyCell]:
    """A seed after the other, so that a study that is stopped early has all methods of the first seeds."""
    size = arguments.size
    cells: dict[str, StudyCell] = {}
    for seed in arguments.seeds:
        of_seed: list[StudyCell] = [
            Cell(**{"beta": beta, "size": size, "seed": seed, **ALIGNMENTS[name]})
            for name, beta in product(arguments.alignments, arguments.betas)
        ]
        one = [Proxies((Proxy(size, pairs, seed),)) for pairs in arguments.proxy_pairs]
        # The policy's own backbone first: the ensemble's first member is the proxy that stands alone.
        seeds = [seed, *(other for other in range(arguments.members) if other != seed)][: arguments.members]
        members = tuple(Proxy(size, arguments.ensemble_pairs, each, policy_seed=seed) for each in seeds)
        several = [Proxies(members, COMBINATIONS[name]) for name in arguments.ensembles]
        of_seed += [
            OPTIMISERS[name](proxies, beta)
            for name, proxies, beta in product(arguments.optimisers, [*one, *several], arguments.rl_betas)
        ]
        cells |= {cell.name: cell for cell in of_seed}
    return list(cells.values())


if __name__ == "__main__":
    with one_line_errors():
        main()
