"""Is the policy gradient that of Eq. 3, and does it find Eq. 3's optimum: checks against enumeration.

    make rlhf-checks

Policies are tables of logits, small enough for every response to be listed. The gradient of each estimator is averaged
over all tuples of responses that could be drawn to a prompt, each with its probability, and held against the gradient
of Eq. 3 itself, differentiated through all probabilities. On a two-token bandit of known rewards each estimator, fed
with draws, is held against the exact optimum: the reference times exp(reward / beta), normalised. All goes through
the objective that the module trains by, tokens packed as it packs them.
"""

import argparse
import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from kept import keep_summary
from rich.progress import track
from torch import Tensor

from overopt.data.schema import SampledBatch
from overopt.modules.policy_gradient import PolicyGradientObjective
from overopt.packed_tokens import PackedTokens, PromptGroup, pack

LARGEST_DEVIATION, LARGEST_DISTANCE = 1e-9, 0.02
TOKENS, LENGTH = 2, 3
RESPONSES = list(itertools.product(range(TOKENS), repeat=LENGTH))
ESTIMATORS = [
    (objective, kl, samples)
    for objective, kl in itertools.product(("rloo", "reinforce", "ppo"), ("reward", "penalty"))
    for samples in (2, 3)
]


def token_log_probs(logits: Tensor, responses: Sequence[tuple[int, ...]]) -> Tensor:
    """Of each token of each response, one after another [nats]; the table has a row a prefix, in order of length."""
    log_probs = logits.log_softmax(dim=-1)
    states = {prefix: i for i, prefix in enumerate(p for n in range(LENGTH) for p in _prefixes(n))}
    return torch.stack([log_probs[states[r[:step]], r[step]] for r in responses for step in range(len(r))])


def _prefixes(length: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(TOKENS), repeat=length))


@cache
def packed(prompts: int, samples: int, length: int) -> PackedTokens:
    """Responses as the module packs them; which tokens they are of, nothing here asks."""
    answer = np.zeros(length, np.int32)
    return pack([PromptGroup(np.array([0], np.int32), (answer,) * samples)] * prompts)


def sampled_batch(
    objective: PolicyGradientObjective, drawn_by: Tensor, reference: Tensor, rewards: Tensor
) -> SampledBatch:
    """Responses of one length as the module steps on them; those to a prompt together, as many as it draws.

    Args:
        objective: gives the advantages.
        drawn_by: log-probabilities of their tokens [nats].
        reference: the same under the reference [nats].
        rewards: one a response.
    """
    samples = objective.samples_per_prompt
    tokens = packed(len(rewards) // samples, samples, len(drawn_by) // len(rewards))
    finished = torch.zeros_like(rewards)
    log_ratios = tokens.sums(drawn_by - reference)
    advantages = objective.advantages(*(x.view(-1, samples) for x in (rewards, log_ratios, finished))).flatten()
    return SampledBatch(tokens, advantages, drawn_by, reference, rewards, None, finished)


def deviation(objective: PolicyGradientObjective, seed: int) -> float:
    """Largest component of (mean estimate - exact gradient), relative to the exact gradient's largest."""
    generator = torch.Generator().manual_seed(seed)
    states = sum(TOKENS**n for n in range(LENGTH))
    start, of_reference = torch.randn(2, states, TOKENS, generator=generator, dtype=torch.float64)
    rewards = 3 * torch.randn(len(RESPONSES), generator=generator, dtype=torch.float64) + 1
    logits = start.requires_grad_()
    of_tokens = token_log_probs(logits, RESPONSES)
    reference = token_log_probs(of_reference, RESPONSES).view(-1, LENGTH)
    totals = of_tokens.view(-1, LENGTH).sum(dim=1)
    value = (totals.exp() * (rewards - objective.beta * (totals - reference.sum(dim=1)))).sum()
    (exact,) = torch.autograd.grad(value, logits, retain_graph=True)
    samples = objective.samples_per_prompt
    mean = torch.zeros_like(logits)
    for places in map(list, itertools.product(range(len(RESPONSES)), repeat=samples)):
        log_probs = of_tokens.view(-1, LENGTH)[places].flatten()
        batch = sampled_batch(
            objective,
            log_probs.detach(),
            reference[places].flatten(),
            rewards[places],
        )
        loss = objective.losses(log_probs, batch).sum() / samples
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        mean -= totals.detach()[places].sum().exp() * gradient
    return float((mean - exact).abs().max() / exact.abs().max())


def distance_from_optimum(objective: PolicyGradientObjective, seed: int, steps: int = 400, prompts: int = 32) -> float:
    """Total variation between the optimum and where gradient descent on draws ends."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(2, generator=generator, dtype=torch.float64)
    log_reference = torch.randn(2, generator=generator, dtype=torch.float64).log_softmax(dim=0)
    optimum = (log_reference + rewards / objective.beta).softmax(dim=0)
    logits = log_reference.clone().requires_grad_()
    for step in range(steps):
        drawn = torch.multinomial(
            logits.detach().softmax(dim=0), prompts * objective.samples_per_prompt, True, generator=generator
        )
        batch = sampled_batch(
            objective,
            logits.detach().log_softmax(dim=0)[drawn],
            log_reference[drawn],
            rewards[drawn],
        )
        for _ in range(objective.passes):
            loss = objective.losses(logits.log_softmax(dim=0)[drawn], batch).mean()
            (gradient,) = torch.autograd.grad(loss, logits)
            with torch.no_grad():
                logits -= 2 * (1 - step / steps) * gradient
    return float((logits.detach().softmax(dim=0) - optimum).abs().sum() / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=int, default=3, help="random policies of the enumeration")
    parser.add_argument("--bandits", type=int, default=5, help="bandits, of random rewards and reference")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the summary")
    options = parser.parse_args()
    lines, deviations, distances = [], [], []
    for name, kl, samples in track(ESTIMATORS, description="estimators"):
        enumerated = PolicyGradientObjective(name, beta=0.7, samples_per_prompt=samples, kl=kl)
        found = [deviation(enumerated, seed) for seed in range(options.policies)]
        line = f"{name}, {samples} samples, KL in the {kl}: gradient off by {max(found):.1e} at most"
        deviations += found
        if samples == 3:
            bandit = PolicyGradientObjective(name, beta=0.5, samples_per_prompt=4, kl=kl, inner_epochs=2)
            ends = [distance_from_optimum(bandit, seed) for seed in range(options.bandits)]
            distances += ends
            line += f"; from the bandit's optimum, with 4 samples, {max(ends):.1e} in total variation at most"
        lines.append(line)
    unbiased, converged = max(deviations) < LARGEST_DEVIATION, max(distances) < LARGEST_DISTANCE
    lines.append(
        f"largest total variation from the exact optimum {max(distances):.4f} over {len(distances)} bandits "
        f"({'below' if converged else 'NOT below'} {LARGEST_DISTANCE:g}), largest relative deviation of the gradient "
        f"{max(deviations):.1e} over {len(deviations)} enumerations ({'below' if unbiased else 'NOT below'} "
        f"{LARGEST_DEVIATION:g})"
    )
    if options.keep is not None:
        keep_summary(options.keep, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
