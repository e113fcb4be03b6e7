"""KL estimators against sums over every response a tiny language model can give."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overopt.metrics.kl import (
    ForwardKL,
    SequenceKL,
    distance,
    kl_k1,
    kl_k3,
    mean_estimate,
    token_log_ratios,
)

VOCABULARY, MAX_TOKENS, END_OF_TEXT = 3, 3, 0


class Responses(NamedTuple):
    policy: torch.Tensor
    reference: torch.Tensor
    mask: torch.Tensor

    def __getitem__(self, rows):
        return Responses(*(tensor[rows] for tensor in (self.policy, self.reference, self.mask)))


def language_model(seed, temperature):
    """Next-token log-probabilities after every prefix: nothing but a table."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = [p for n in range(MAX_TOKENS) for p in itertools.product(range(1, VOCABULARY), repeat=n)]
    return {
        prefix: (torch.randn(VOCABULARY, generator=generator, dtype=torch.float64) / temperature).log_softmax(0)
        for prefix in prefixes
    }


POLICY, REFERENCE = language_model(seed=1, temperature=0.8), language_model(seed=2, temperature=1.5)


def every_response():
    """All responses: they stop at end-of-text or at the length limit."""
    for tokens in range(1, MAX_TOKENS + 1):
        for response in itertools.product(range(VOCABULARY), repeat=tokens):
            stopped = response[-1] == END_OF_TEXT or tokens == MAX_TOKENS
            if stopped and END_OF_TEXT not in response[:-1]:
                yield response


def rescored(responses):
    """Token log-probs under both models; padding holds NaN, which must not matter."""
    rows = {}
    for name, model in (("policy", POLICY), ("reference", REFERENCE)):
        rows[name] = torch.full((len(responses), MAX_TOKENS), math.nan, dtype=torch.float64)
        for row, response in zip(rows[name], responses, strict=True):
            for t, token in enumerate(response):
                row[t] = model[response[:t]][token]
    lengths = torch.tensor([len(response) for response in responses])
    return Responses(**rows, mask=torch.arange(MAX_TOKENS) < lengths[:, None])


def sampled(model, count, seed):
    """Ancestral sampling, a token at a time."""
    generator = torch.Generator().manual_seed(seed)
    responses = []
    for _ in range(count):
        response = ()
        while len(response) < MAX_TOKENS and END_OF_TEXT not in response:
            token = torch.multinomial(model[response].exp(), 1, generator=generator).item()
            response = (*response, token)
        responses.append(response)
    return responses


def exact_kl(model, other):
    """sum over responses of p log(p/q), from whole-sequence probabilities in plain Python."""
    total, mass = 0.0, 0.0
    for response in every_response():
        p, q = (math.prod(m[response[:t]][y].exp().item() for t, y in enumerate(response)) for m in (model, other))
        total, mass = total + p * math.log(p / q), mass + p
    assert mass == pytest.approx(1)
    return total


def measured(*batches):
    metric = SequenceKL()
    for batch in batches:
        metric.update(*batch)
    return metric


# The estimators


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_an_estimators_expectation_over_all_responses_is_the_kl(estimator):
    responses = rescored(list(every_response()))
    assert len(responses.mask) == 1 + 2 + 12
    probability = responses.policy.nan_to_num(0).sum(-1).exp()
    expectation = (probability * estimator(token_log_ratios(*responses))).sum().item()
    assert expectation == pytest.approx(exact_kl(POLICY, REFERENCE), rel=1e-12)
    assert expectation > 0.1  # two models that agree would prove nothing


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_samples_of_the_policy_estimate_the_kl_within_three_standard_errors(estimator):
    responses = sampled(POLICY, 3000, seed=0)
    estimate = getattr(measured(rescored(responses)).compute(), estimator)
    assert 0 < estimate.standard_error < 0.05
    assert abs(estimate.mean - exact_kl(POLICY, REFERENCE)) < 3 * estimate.standard_error
    # A test that would also pass for the other direction would not tell the two apart.
    assert abs(estimate.mean - exact_kl(REFERENCE, POLICY)) > 3 * estimate.standard_error


def test_k3_of_a_token_is_the_formula():
    r = torch.tensor([[0.5, -2.0, 0.0]], dtype=torch.float64)
    expected = (math.exp(-0.5) - 1 + 0.5) + (math.exp(2.0) - 1 - 2.0)
    assert kl_k3(r).item() == pytest.approx(expected, rel=1e-14)
    assert kl_k1(r).item() == pytest.approx(-1.5)


def test_k3_sums_token_terms_rather_than_taking_the_term_of_the_sum():
    r = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    assert kl_k3(r).item() == pytest.approx(math.e + 1 / math.e - 2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=5))
def test_k3_is_never_negative_and_zero_only_without_a_difference(log_ratios):
    k3 = kl_k3(torch.tensor([log_ratios], dtype=torch.float64)).item()
    assert k3 >= 0
    assert k3 > 0 or max(map(abs, log_ratios)) < 1e-7


def test_k3_of_a_small_difference_keeps_its_digits():
    # exp(-r) - 1 + r is r^2 / 2 here, far below float32's spacing at 1.
    policy = torch.tensor([[-1.0]])
    reference = policy - 2**-20
    k3 = kl_k3(token_log_ratios(policy, reference, torch.tensor([[True]]))).item()
    assert k3 == pytest.approx(2**-41, rel=1e-4)


def test_log_ratios_are_policy_minus_reference_and_zero_off_the_mask():
    policy = torch.tensor([[-1.0, -2.0, math.nan, -math.inf]])
    reference = torch.tensor([[-3.0, -1.5, -1.0, -math.inf]])
    ratios = token_log_ratios(policy, reference, torch.tensor([[True, True, False, False]]))
    assert ratios.tolist() == [[2.0, -0.5, 0.0, 0.0]]


def test_a_nan_inside_a_response_is_not_hidden():
    estimate = measured(Responses(torch.tensor([[math.nan]]), torch.tensor([[-1.0]]), torch.tensor([[True]]))).compute()
    assert estimate.k1.mean.isnan()
    assert estimate.k3.mean.isnan()


# Means and standard errors


@settings(deadline=None, max_examples=50)
@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=30),
    shift=st.sampled_from([0.0, 1e4]),
)
def test_a_standard_error_is_the_sample_deviation_over_root_n(values, shift):
    samples = np.array(values) + shift
    estimate = mean_estimate(torch.tensor(samples.sum()), torch.tensor((samples**2).sum()), torch.tensor(len(samples)))
    assert estimate.mean.item() == pytest.approx(samples.mean())
    expected = samples.std(ddof=1) / math.sqrt(len(samples))
    # sqrt of what rounding leaves of a vanishing variance
    assert estimate.standard_error.item() == pytest.approx(expected, rel=1e-6, abs=3e-8 * (100 + shift))


def test_a_large_running_sum_does_not_swallow_small_terms():
    metric = ForwardKL()
    metric.update(torch.tensor([-1e8]))
    for _ in range(100):
        metric.update(torch.tensor([-1.0]))
    assert metric.compute().mean.item() == pytest.approx((1e8 + 100) / 101, rel=1e-15)


# The metric


@settings(deadline=None, max_examples=50)
@given(cuts=st.lists(st.integers(0, 20), max_size=4), seed=st.integers(0, 3))
def test_uneven_batches_measure_what_one_batch_measures(cuts, seed):
    responses = rescored(sampled(POLICY, 20, seed=seed))
    bounds = [0, *sorted(cuts), 20]
    batches = [responses[start:stop] for start, stop in itertools.pairwise(bounds)]
    # A batch is as wide as its longest response.
    batches = [
        Responses(*(t[:, : max(1, int(batch.mask.sum(-1).max()))] for t in batch))
        for batch in batches
        if len(batch.mask)
    ]
    assert sum(len(batch.mask) for batch in batches) == 20
    torch.testing.assert_close(measured(*batches).compute(), measured(responses).compute())


def test_states_of_two_processes_merge_into_those_of_one():
    responses = rescored(sampled(POLICY, 20, seed=5))
    one, other = measured(responses[:3]), measured(responses[3:10], responses[10:])
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), measured(responses).compute())
    assert one.compute().k1.num_samples == 20


def test_the_metrics_mean_is_over_responses_not_over_tokens():
    metric = measured(
        Responses(
            policy=torch.tensor([[-1.0, -1.0, -1.0], [-1.0, 0.0, 0.0]]),
            reference=torch.tensor([[-2.0, -2.0, -2.0], [-2.0, 0.0, 0.0]]),
            mask=torch.tensor([[True, True, True], [True, False, False]]),
        )
    )
    k1, k3 = metric.compute()
    assert (k1.mean.item(), k1.standard_error.item(), k1.num_samples.item()) == (2.0, 1.0, 2)
    # k3 is exp(-1) a token: 3 tokens and 1.
    assert k3.mean.item() == pytest.approx(2 / math.e)
    assert k3.standard_error.item() == pytest.approx(1 / math.e)


def test_a_negative_mean_is_reported_not_clamped():
    one_token = Responses(torch.tensor([[-2.0]]), torch.tensor([[-1.0]]), torch.tensor([[True]]))
    assert measured(one_token).compute().k1.mean == -1.0


def test_equal_models_are_at_zero_without_error():
    log_probs, mask = torch.tensor([[-0.3, -1.7], [-2.2, 0.0]]), torch.tensor([[True, True], [True, False]])
    k1, k3 = measured(Responses(log_probs, log_probs, mask)).compute()
    assert [k1.mean, k1.standard_error, k3.mean, k3.standard_error] == [0, 0, 0, 0]


def test_without_samples_there_is_no_mean_and_with_one_no_standard_error():
    metric = SequenceKL()
    with pytest.warns(UserWarning, match="called before"):
        k1, k3 = metric.compute()
    assert all(value.isnan() for value in (k1.mean, k1.standard_error, k3.mean, k3.standard_error))
    assert k1.num_samples == 0
    k1, k3 = measured(rescored([(1, 0)])).compute()
    assert k1.mean.isfinite()
    assert k3.mean.isfinite()
    assert k1.standard_error.isnan()
    assert k3.standard_error.isnan()


def test_a_module_moved_to_bfloat16_does_not_take_the_sums_precision():
    responses = rescored(sampled(POLICY, 20, seed=6))
    metric = SequenceKL().to(torch.bfloat16)
    metric.update(*responses[:7])
    metric.update(*responses[7:])
    torch.testing.assert_close(metric.compute(), measured(responses).compute())


def test_a_reset_metric_starts_over():
    responses = rescored(sampled(POLICY, 20, seed=7))
    metric = measured(responses)
    metric.reset()
    metric.update(*responses[:5])
    torch.testing.assert_close(metric.compute(), measured(responses[:5]).compute())


# Forward KL


def test_preferred_responses_drawn_from_the_reference_give_its_kl_to_the_policy():
    reference, policy = [0.5, 0.25, 0.25], [0.2, 0.7, 0.1]
    drawn = torch.tensor([0, 0, 1, 2])  # exactly in the reference's proportions
    log_ratios = torch.tensor([math.log(p / q) for p, q in zip(policy, reference, strict=True)])[drawn]
    metric = ForwardKL()
    metric.update(log_ratios[:1])
    metric.update(log_ratios[1:])
    expected = sum(q * math.log(q / p) for p, q in zip(policy, reference, strict=True))
    estimate = metric.compute()
    assert estimate.mean.item() == pytest.approx(expected, rel=1e-6)
    by_numpy = np.std(log_ratios.numpy().astype(float), ddof=1) / 2
    assert estimate.standard_error.item() == pytest.approx(by_numpy)
    assert estimate.num_samples == 4


def test_forward_kl_is_positive_where_preferred_responses_became_less_likely():
    metric = ForwardKL()
    metric.update(torch.tensor([-3.0, -2.0]))
    assert metric.compute().mean == 2.5


def test_forward_kl_states_merge():
    one, other = ForwardKL(), ForwardKL()
    one.update(torch.tensor([-3.0]))
    other.update(torch.tensor([1.0, 0.5]))
    one.merge_state(other)
    assert one.compute().mean == 0.5
    assert one.compute().standard_error.item() == pytest.approx(np.std([3, -1, -0.5], ddof=1) / math.sqrt(3))


def test_forward_kl_without_pairs_is_nan():
    with pytest.warns(UserWarning, match="called before"):
        estimate = ForwardKL().compute()
    assert estimate.mean.isnan()
    assert estimate.standard_error.isnan()


# Distance


def test_a_distance_is_the_root_of_the_kl_and_tells_when_it_cut_a_negative_one():
    root, cut = distance(torch.tensor([9.0, 0.0, -1e-3, math.nan]))
    assert root[:3].tolist() == [3.0, 0.0, 0.0]
    assert root[3].isnan()
    assert cut.tolist() == [False, False, True, False]


def test_a_distance_takes_a_single_estimate():
    estimate = measured(rescored(sampled(POLICY, 50, seed=8))).compute().k3.mean
    assert distance(estimate).distance.item() == pytest.approx(math.sqrt(estimate.item()))
