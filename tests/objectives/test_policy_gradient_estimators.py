"""Every estimator against enumeration: all samples that could be drawn, each with its probability."""

import itertools
import math

import pytest
import torch

from overopt.objectives.policy_gradient import (
    ADVANTAGES,
    clipped_loss,
    kl_k2_loss,
    kl_k3_loss,
    kl_penalised_reward,
    leave_one_out_advantages,
    plain_advantages,
    score_function_loss,
)

BETA = 0.7
TOKENS = 2
# Responses of two tokens out of two: later tokens' divergence depends on earlier ones.
RESPONSES = list(itertools.product(range(TOKENS), repeat=2))
REWARDS = torch.tensor([1.3, -0.4, 5.0, 0.2], dtype=torch.float64)


def start():
    """Logits of a policy and its reference: of the first token, and of the second after either first one."""
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 3, TOKENS, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), reference


def token_log_probs(logits):
    """[response, token] log-probabilities of all four responses."""
    log_probs = logits.log_softmax(dim=-1)
    return torch.stack([torch.stack([log_probs[0, a], log_probs[1 + a, b]]) for a, b in RESPONSES])


def exact_gradient(logits, reference, beta=BETA, rewards=REWARDS):
    """Of Eq. 3's objective, from all probabilities."""
    log_policy, log_reference = token_log_probs(logits).sum(1), token_log_probs(reference).sum(1)
    objective = (log_policy.exp() * (rewards - beta * (log_policy - log_reference))).sum()
    return torch.autograd.grad(objective, logits)[0]


def kl_gradient(from_logits, to_logits, variable):
    log_from, log_to = token_log_probs(from_logits).sum(1), token_log_probs(to_logits).sum(1)
    return torch.autograd.grad((log_from.exp() * (log_from - log_to)).sum(), variable)[0]


def ascent(objective, kl, log_probs, reference, drawn):
    """What a step would go up by for one tuple of responses to a prompt, averaged over them."""
    chosen, of_reference = log_probs[drawn], reference[drawn]
    totals, log_ratios = chosen.sum(1), (chosen - of_reference).sum(1)
    rewards = REWARDS[drawn][None]
    if kl == "reward":
        rewards = kl_penalised_reward(rewards, log_ratios[None], beta=BETA)
    advantages = ADVANTAGES[objective](rewards)[0]
    if objective == "ppo":
        of_tokens = advantages.repeat_interleave(2)
        losses = clipped_loss(chosen.flatten(), chosen.flatten().detach(), of_tokens, clip_range=0.2).view(-1, 2).sum(1)
    else:
        losses = score_function_loss(totals, advantages)
    if kl == "k2":
        losses = losses + BETA * kl_k2_loss(log_ratios)
    if kl == "k3":
        losses = losses + BETA * kl_k3_loss(log_ratios, totals)
    return -losses.mean()


@pytest.mark.parametrize("kl", ["reward", "k2", "k3"])
@pytest.mark.parametrize(
    ("objective", "samples"), [("rloo", 2), ("rloo", 3), ("reinforce", 1), ("reinforce", 2), ("ppo", 3)]
)
def test_the_gradient_is_unbiased_over_all_tuples_of_samples(objective, samples, kl):
    logits, reference_logits = start()
    reference = token_log_probs(reference_logits)
    probabilities = token_log_probs(logits).sum(1).exp().detach()
    mean = torch.zeros_like(logits)
    for drawn in itertools.product(range(len(RESPONSES)), repeat=samples):
        places = list(drawn)
        up = ascent(objective, kl, token_log_probs(logits), reference, places)
        mean += probabilities[places].prod() * torch.autograd.grad(up, logits)[0]
    exact = exact_gradient(logits, reference_logits)
    assert exact.norm() > 0.1
    assert (mean - exact).abs().max() < 1e-12


def mean_gradient(loss_of_responses):
    """Expectation under the policy of the gradient of a loss of each response."""
    logits, reference_logits = start()
    policy, reference = token_log_probs(logits), token_log_probs(reference_logits)
    losses = loss_of_responses(policy, policy - reference)
    return torch.autograd.grad((policy.sum(1).exp().detach() * losses).sum(), logits)[0]


def test_k1_has_no_expected_gradient_and_k3_that_of_the_other_kl_and_k2_of_tokens_is_biased():
    """Why penalties are as they are."""
    logits, reference = start()
    wanted = kl_gradient(logits, reference, logits)
    other = kl_gradient(reference, logits, logits)
    assert (wanted - other).norm() > 0.1
    assert mean_gradient(lambda policy, ratios: ratios.sum(1)).abs().max() < 1e-12
    k3 = mean_gradient(lambda policy, ratios: torch.expm1(-ratios.sum(1)) + ratios.sum(1))
    assert (k3 - other).abs().max() < 1e-12
    of_tokens = mean_gradient(lambda policy, ratios: (ratios.square() / 2).sum(1))
    assert (of_tokens - wanted).norm() > 0.01
    assert (mean_gradient(lambda policy, ratios: kl_k2_loss(ratios.sum(1))) - wanted).abs().max() < 1e-12
    right_k3 = mean_gradient(lambda policy, ratios: kl_k3_loss(ratios.sum(1), policy.sum(1)))
    assert (right_k3 - wanted).abs().max() < 1e-12


def test_the_value_of_k3_is_the_kl_and_it_is_never_negative():
    logits, reference = start()
    log_policy, log_ratios = (
        token_log_probs(logits).sum(1),
        (token_log_probs(logits) - token_log_probs(reference)).sum(1),
    )
    k3 = kl_k3_loss(log_ratios, log_policy)
    assert (k3 >= 0).all()
    assert (log_policy.exp() * (k3 - log_ratios)).sum().abs() < 1e-12


@pytest.mark.parametrize(("objective", "kl"), [*itertools.product(ADVANTAGES, ["reward", "penalty"])])
def test_policy_gradient_finds_the_optimum_of_a_bandit(objective, kl):
    """Two tokens of known reward: pi* is the reference times exp(reward / beta), normalised."""
    beta, rewards = 0.5, torch.tensor([0.3, 0.8], dtype=torch.float64)
    log_reference = torch.tensor([0.7, 0.3], dtype=torch.float64).log()
    optimum = (log_reference + rewards / beta).softmax(dim=0)
    assert (optimum - log_reference.exp()).abs().sum() / 2 > 0.2
    logits = log_reference.clone().requires_grad_()
    generator, steps = torch.Generator().manual_seed(0), 400
    prompts, samples = 32, 4
    for step in range(steps):
        drawn = torch.multinomial(logits.detach().softmax(0), prompts * samples, True, generator=generator)
        policy_when_drawn = logits.detach().log_softmax(0)[drawn]
        for _ in range(2 if objective == "ppo" else 1):
            log_probs = logits.log_softmax(0)[drawn]
            log_ratios = log_probs - log_reference[drawn]
            of_prompts = rewards[drawn].view(prompts, samples)
            if kl == "reward":
                drawn_ratios = policy_when_drawn - log_reference[drawn]
                of_prompts = kl_penalised_reward(of_prompts, drawn_ratios.view(prompts, samples), beta=beta)
            advantages = ADVANTAGES[objective](of_prompts).flatten()
            if objective == "ppo":
                losses = clipped_loss(log_probs, policy_when_drawn, advantages, clip_range=0.2)
            else:
                losses = score_function_loss(log_probs, advantages)
            if kl == "penalty":
                losses = losses + beta * kl_k2_loss(log_ratios)
            (gradient,) = torch.autograd.grad(losses.mean(), logits)
            with torch.no_grad():
                logits -= 2.0 * (1 - step / steps) * gradient
    assert (logits.detach().softmax(0) - optimum).abs().sum() / 2 < 0.02


def test_the_baseline_of_a_response_is_the_mean_of_the_others():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    by_hand = torch.stack(
        [rewards[:, i] - rewards[:, [j for j in range(3) if j != i]].mean(dim=1) for i in range(3)], dim=1
    )
    assert torch.allclose(leave_one_out_advantages(rewards), by_hand)
    assert torch.equal(plain_advantages(rewards), rewards)


def test_at_the_optimum_every_single_gradient_vanishes():
    beta, log_reference = 0.4, torch.tensor([[0.5, 0.2, 0.3]]).double().log()
    rewards = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    log_optimum = (log_reference + rewards / beta).log_softmax(dim=1)
    penalised = kl_penalised_reward(rewards, log_optimum - log_reference, beta=beta)
    assert leave_one_out_advantages(penalised).abs().max() < 1e-12
    assert leave_one_out_advantages(rewards).abs().max() > 0.5


def test_clipping_ends_the_gradient_on_the_side_that_the_advantage_asks_for():
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5], dtype=torch.float64)
    log_probs = ratios.log().requires_grad_()
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0], dtype=torch.float64)
    losses = clipped_loss(log_probs, torch.zeros(4, dtype=torch.float64), advantages, clip_range=0.2)
    assert losses.tolist() == pytest.approx([-2.4, -1.0, 3.0, 1.6])
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    assert gradient.tolist() == pytest.approx([0.0, -1.0, 3.0, 0.0])


def test_bad_settings_are_refused():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="at least 2 responses a prompt, got 1"):
        leave_one_out_advantages(one)
    for beta in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="beta >= 0"):
            kl_penalised_reward(one, one, beta=beta)
    for clip_range in (0.0, 1.0):
        with pytest.raises(ValueError, match="clip_range < 1"):
            clipped_loss(one[0], one[0], one[0], clip_range=clip_range)
