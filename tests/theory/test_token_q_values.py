import numpy as np
import pytest
import torch

from overopt.theory.token_q_values import (
    GAUGES,
    seen_tokens,
    soft_maximum,
    token_values,
    unseen_share,
    value_above_max_q,
    value_above_mean,
    value_below_max,
    values_at_fixed_q,
    values_at_fixed_reward,
)

BETAS = (0.01, 0.1, 1.0, 10.0)
VOCABULARY = 7


def log_probs(seed, states=5, vocabulary=VOCABULARY):
    draws = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(states, vocabulary, generator=draws, dtype=torch.float64)).log_softmax(dim=1)


@pytest.mark.parametrize(
    ("gauge", "values", "rewards"),
    [
        # Log-ratios log 2 and -log 4 at beta 3: paid at the end, or token by token.
        ("sparse", [0.0, 3 * np.log(2)], [0.0, -3 * np.log(2)]),
        ("dense", [0.0, 0.0], [3 * np.log(2), -3 * np.log(4)]),
        # logsumexp of the logits 5 and 1: V = 15 and 3.
        ("logits", [15.0, 3.0], [15 - 3 + 3 * np.log(2), 3 - 3 * np.log(4)]),
    ],
)
def test_two_tokens_by_hand_in_each_gauge(gauge, values, rewards):
    policy, reference = torch.tensor([0.5, 0.125]).double().log(), torch.tensor([0.25, 0.5]).double().log()
    normalisers = torch.tensor([5.0, 1.0]).double()
    found = token_values(policy, reference, normalisers, beta=3.0, finished=True, gauge=gauge)
    np.testing.assert_allclose(found.values, values, atol=1e-12)
    np.testing.assert_allclose(found.next_values, [values[1], 0.0], atol=1e-12)
    np.testing.assert_allclose(found.rewards, rewards, atol=1e-12)
    np.testing.assert_allclose(found.q_values, np.array(values) + 3 * np.log([0.5, 0.125]), atol=1e-12)
    # Eq. 8, term by term.
    np.testing.assert_allclose(found.q_values, found.rewards + 3 * reference + found.next_values, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_advantages_and_the_sum_of_rewards_depend_on_no_gauge(beta):
    policy, reference, normalisers = log_probs(0)[:, 0], log_probs(1)[:, 0], log_probs(2)[:, 0]
    for gauge in GAUGES:
        found = token_values(policy, reference, normalisers, beta=beta, finished=True, gauge=gauge)
        assert torch.allclose(found.q_values - found.values, beta * policy, atol=1e-12)
        assert float(found.rewards.sum() - found.values[0]) == pytest.approx(beta * float((policy - reference).sum()))
    sparse = token_values(policy, reference, normalisers, beta=beta, finished=True)
    assert sparse.rewards[:-1].abs().max() < 1e-12 * max(beta, 1)


def test_after_a_response_without_an_end_the_text_goes_on():
    policy, reference, normalisers = log_probs(0)[:, 0], log_probs(1)[:, 0], log_probs(2)[:, 0]
    sparse = token_values(policy, reference, normalisers, beta=0.5, finished=False)
    assert float(sparse.next_values[-1]) == pytest.approx(0.5 * float((policy - reference).sum()))
    assert float(sparse.rewards.abs().max()) < 1e-12
    logits = token_values(policy, reference, normalisers, beta=0.5, finished=False, gauge="logits")
    assert logits.rewards.isnan().tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("beta", BETAS)
def test_equation_10_normalises_as_mended_and_not_as_printed(beta):
    q_values = 3 * log_probs(3) + torch.arange(5).double()[:, None]
    values = soft_maximum(q_values, beta)
    mended = ((q_values - values[:, None]) / beta).exp().sum(dim=1)
    printed = (q_values / beta - values[:, None]).exp().sum(dim=1)
    assert torch.allclose(mended, torch.ones(5).double(), atol=1e-12)
    assert beta == 1.0 or (printed - 1).abs().min() > 1e-3


def test_a_share_of_unseen_tokens_keeps_its_digits_at_either_end():
    log_probs = torch.tensor([[0.0, -60.0, -60.0], [-60.0, 0.0, -60.0]]).double()
    seen = torch.tensor([[True, True, False], [False, False, False]])
    tiny, everything = unseen_share(log_probs, seen).tolist()
    assert tiny == pytest.approx(np.exp(-60.0), rel=1e-12)  # 1 - (1 + e^-60) would be 0
    assert everything == pytest.approx(1.0)
    assert unseen_share(log_probs, torch.ones(2, 3, dtype=torch.bool)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("beta", BETAS)
def test_the_bootstraps_mass_is_the_policys_in_every_gauge(beta):
    policy = log_probs(4)
    seen = torch.zeros(policy.shape, dtype=torch.bool)
    seen[:, :2] = True
    for shift in (0.0, -3.0, 7.0):  # of V, hence of Q
        mass = ((shift + beta * policy - shift) / beta).exp()
        np.testing.assert_allclose(unseen_share(policy, seen), 1 - mass[:, :2].sum(dim=1), atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_at_fixed_rewards_value_falls_with_beta_from_the_best_token_to_the_references_mean(beta):
    policy, reference = log_probs(5), log_probs(6)
    others = beta * np.logspace(-4, 4, 33)
    found = values_at_fixed_reward(policy, reference, beta, others.tolist()).numpy()
    # Straight from the definition: R up to the state's V, a sum over the reference's tokens.
    above = beta * (policy - reference).numpy()
    weights = reference.exp().numpy()
    mean = (weights * above).sum(axis=1)
    for place in (12, 16, 24):
        direct = others[place] * np.log((weights * np.exp(above / others[place])).sum(axis=1))
        np.testing.assert_allclose(found[:, place], direct - mean, rtol=1e-8, atol=1e-12)
    assert (np.diff(found, axis=1) < 0).all()
    np.testing.assert_allclose(found[:, 0], above.max(axis=1) - mean, rtol=2e-3)
    assert (found[:, -1] < 1e-3 * found[:, 0]).all()
    # At its own beta V is between the two, by what the other functions say.
    optimism, headroom = value_above_mean(policy, reference, beta), value_below_max(policy, reference, beta)
    np.testing.assert_allclose(found[:, 16], optimism, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(optimism + headroom, above.max(axis=1) - mean, rtol=1e-12)
    assert optimism.min() > 0
    assert headroom.min() > 0


@pytest.mark.parametrize("beta", BETAS)
def test_at_fixed_q_value_grows_with_beta_and_stays_within_beta_log_vocabulary(beta):
    policy = log_probs(7)
    others = beta * np.logspace(-3, 3, 25)
    found = values_at_fixed_q(policy, beta, others.tolist()).numpy()
    assert (np.diff(found, axis=1) > -1e-15).all()
    assert (found[:, -1] > 100 * found[:, 12]).all()
    assert (found <= others * np.log(VOCABULARY) * (1 + 1e-12)).all()
    np.testing.assert_allclose(found[:, 12], value_above_max_q(policy, beta), rtol=1e-12)


def test_a_policy_that_is_its_reference_is_not_optimistic():
    policy = log_probs(8)
    assert value_above_mean(policy, policy, 0.3).abs().max() == 0
    assert value_below_max(policy, policy, 0.3).abs().max() == 0
    np.testing.assert_allclose(values_at_fixed_reward(policy, policy, 0.3, [0.01, 0.3, 9.0]), 0.0, atol=1e-13)


def test_seen_tokens_are_those_that_follow_the_same_prefix_somewhere_in_the_data():
    draws = np.random.default_rng(0)
    data = [draws.integers(0, 3, draws.integers(1, 6)) for _ in range(12)]
    reached = 0
    for response in [*data, *(draws.integers(0, 3, 6) for _ in range(10))]:
        found = seen_tokens(response, data)
        assert len(found) == len(response)
        for place, tokens in enumerate(found):
            prefix = response[:place].tolist()
            expected = {int(r[place]) for r in data if r[:place].tolist() == prefix and len(r) > place}
            assert tokens == expected
            reached += bool(expected)
    assert reached > 50
    for response in data:
        assert all(int(token) in tokens for token, tokens in zip(response, seen_tokens(response, data), strict=True))


@pytest.mark.parametrize("beta", [0.0, -1.0, np.inf, np.nan])
def test_a_beta_that_is_no_price_and_an_unknown_gauge_are_refused(beta):
    policy = log_probs(0)
    with pytest.raises(ValueError, match="positive beta"):
        token_values(policy[:, 0], policy[:, 1], policy[:, 2], beta=beta, finished=True)
    with pytest.raises(ValueError, match="positive beta"):
        soft_maximum(policy, beta)
    with pytest.raises(ValueError, match="'dual'; there are sparse, dense, logits"):
        token_values(policy[:, 0], policy[:, 1], policy[:, 2], beta=1.0, finished=True, gauge="dual")
