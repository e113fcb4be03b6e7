"""Do policies of any OOD mass have the same loss: a check by another code path than the one that makes them.

    make rank-deficiency

Policies are made in log space, in the null space of the query matrix (src/overopt/theory/rank_deficiency.py). Here each
is taken as plain probabilities in float64, turned into conditionals token by token by exact fractions, and its losses
are computed by the functions that training uses. Sets: the paper's tree and data, a deeper tree with more preferences,
and random sets with several prompts, where directions are random too.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from kept import keep_summary
from rich.progress import track

from overopt.objectives.preference import PREFERENCE_LOSSES
from overopt.theory.rank_deficiency import (
    freedom,
    least_norm_policy,
    move_in_null_space,
    null_space_basis,
    policy_with_ood_mass,
)
from overopt.theory.response_set import ResponseSet, tree_response_set
from overopt.theory.tree_mdp import TreeData, TreeMDP, paper_data

BAR = 1e-9
BETAS = (0.01, 0.1, 0.5)
MASSES = (0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
# Of random moves in log probabilities [nats]: much further, probabilities leave float64.
SIZE = 3.0


def token_log_probs(tree: TreeMDP, probabilities: Sequence[float]) -> list[float]:
    """Sums of log conditionals of each trajectory [nats]; visits are added as fractions, without rounding."""
    visits: dict[tuple[int, ...], Fraction] = {}
    trajectories = list(itertools.product(range(tree.branching), repeat=tree.depth))
    for actions, probability in zip(trajectories, probabilities, strict=True):
        for length in range(tree.depth + 1):
            visits[actions[:length]] = visits.get(actions[:length], Fraction(0)) + Fraction(float(probability))
    return [
        math.fsum(_log(visits[actions[: step + 1]] / visits[actions[:step]]) for step in range(tree.depth))
        for actions in trajectories
    ]


def _log(fraction: Fraction) -> float:
    # The quotient of two floats may be too small for one.
    return math.log(fraction.numerator) - math.log(fraction.denominator)


def losses(responses: ResponseSet, log_policy: np.ndarray, beta: float, tree: TreeMDP | None) -> dict[str, float]:
    """Mean loss of each objective from a policy's probabilities."""
    policy = np.exp(log_policy)
    if tree is None:
        log_ratio = np.array([math.log(p) - math.log(q) for p, q in zip(policy, responses.reference, strict=True)])
    else:
        log_ratio = np.subtract(token_log_probs(tree, policy), token_log_probs(tree, responses.reference))
    logit = torch.tensor(beta * (log_ratio[responses.chosen] - log_ratio[responses.rejected]))
    return {name: loss(logit, beta=beta).mean().item() for name, loss in PREFERENCE_LOSSES.items()}


def random_set(seed: int) -> ResponseSet:
    """Two prompts with six to nine responses each, five preferences."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(6, 10, 2)
    prompt_of = np.repeat([0, 1], counts)
    prompts = [0, 1, *generator.integers(2, size=3)]
    pairs = np.array([generator.choice(np.flatnonzero(prompt_of == p)[:4], 2, replace=False) for p in prompts])
    return ResponseSet(
        ("0", "1"),
        tuple(map(str, range(len(prompt_of)))),
        prompt_of,
        np.concatenate([generator.dirichlet(np.full(count, 2.0)) for count in counts]),
        pairs[:, 0],
        pairs[:, 1],
        np.zeros(len(prompt_of), dtype=bool),
    )


def cases(num_sets: int) -> Iterator[tuple[str, ResponseSet, TreeMDP | None]]:
    """Sets by name, with their tree where they have one."""
    for mass in (0.0, 0.9):
        responses = tree_response_set(paper_data(), demonstration_mass=mass)
        yield f"paper's tree, {mass:g} on demonstrations", responses, TreeMDP()
    tree = TreeMDP(2, 6)
    data = TreeData.parse(
        tree,
        ["a0 a0 a0 a0 a0 a0"],
        ["a1 a1 a0 a0 a0 a0 > a0 a0 a0 a0 a0 a0", "a0 a1 a1 a0 a1 a0 > a1 a1 a0 a0 a0 a0"],
    )
    yield "64 trajectories, 2 preferences", tree_response_set(data), tree
    for seed in range(num_sets):
        yield f"random set {seed}", random_set(seed), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=10, help="random sets beside the trees")
    parser.add_argument("--directions", type=int, default=20, help="random null-space moves of each set and beta")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the summary")
    options = parser.parse_args()
    lines, largest, policies, reached = [], 0.0, 0, []
    for name, responses, tree in track(list(cases(options.sets)), description="sets"):
        generator = np.random.default_rng(0)
        differences, masses = [], []
        for beta in BETAS:
            origin = least_norm_policy(responses, beta=beta)
            before = losses(responses, origin, beta, tree)
            moved = [policy_with_ood_mass(responses, origin, mass) for mass in MASSES]
            masses += [responses.ood_mass(policy) for policy in moved]
            directions = generator.normal(0, SIZE, (options.directions, null_space_basis(responses).shape[1]))
            moved += [move_in_null_space(responses, origin, direction) for direction in directions]
            for policy in moved:
                after = losses(responses, policy, beta, tree)
                differences.append(max(abs(after[objective] - before[objective]) for objective in before))
        largest = max(largest, *differences)
        policies += len(differences)
        reached += masses
        lines.append(
            f"{name}: freedom {freedom(responses)}, {len(differences)} policies, OOD mass {min(masses):.3g} to "
            f"{max(masses):.3g}, largest difference in loss {max(differences):.1e}"
        )
    lines.append(
        f"largest difference in loss between {policies} policies of OOD mass {min(reached):.3f} to {max(reached):.3f}, "
        f"of {len(PREFERENCE_LOSSES)} objectives: {largest:.1e} ({'below' if largest < BAR else 'NOT below'} {BAR:g}); "
        "verified token by token from probabilities"
    )
    if options.keep is not None:
        keep_summary(options.keep, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
