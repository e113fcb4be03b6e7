"""Losses against formulas written out by hand, in numpy and with their derivatives worked out on paper."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overopt.objectives.preference import (
    LABEL_SMOOTHINGS,
    PREFERENCE_LOSSES,
    conservative,
    ipo_loss,
    preference_logit,
    preference_loss,
    robust,
)

BETA = 0.2

# objective: value and derivative in z, at BETA.
FORMULAS = {
    "dpo": (lambda z: np.log1p(np.exp(-z)), lambda z: -1 / (1 + np.exp(z))),
    "ipo": (lambda z: z**2 - 2 * z + 1, lambda z: 2 * z - 2),
    "ipo_azar": (lambda z: 25 * (z - 1) ** 2, lambda z: 50 * (z - 1)),
    "slic": (lambda z: np.where(z < 1, 1 - z, 0), lambda z: np.where(z < 1, -1.0, 0.0)),
    "squared_hinge": (
        lambda z: np.where(z < 1, (1 - z) ** 2, 0),
        lambda z: np.where(z < 1, 2 * z - 2, 0),
    ),
    "exponential": (lambda z: np.exp(-z), lambda z: -np.exp(-z)),
    "savage": (lambda z: (1 + np.exp(z)) ** -2.0, lambda z: -2 * np.exp(z) / (1 + np.exp(z)) ** 3),
}
AT_STEP_0 = {
    "dpo": math.log(2),
    "ipo": 1,
    "ipo_azar": 25,
    "slic": 1,
    "squared_hinge": 1,
    "exponential": 1,
    "savage": 0.25,
}
every_objective = pytest.mark.parametrize("objective", PREFERENCE_LOSSES)
every_loss = pytest.mark.parametrize("loss", PREFERENCE_LOSSES.values(), ids=PREFERENCE_LOSSES)
every_smoothing = pytest.mark.parametrize("smoothed", LABEL_SMOOTHINGS.values(), ids=LABEL_SMOOTHINGS)


def logits(*, requires_grad=False):
    """A range on both sides of every bend, without the hinge's own corner at 1."""
    return torch.linspace(-6.05, 6.05, 41, dtype=torch.float64).requires_grad_(requires_grad)


def test_the_table_holds_the_objectives_that_are_documented():
    assert list(PREFERENCE_LOSSES) == list(FORMULAS)


@every_objective
def test_a_loss_has_its_formulas_value_and_derivative(objective):
    value, derivative = FORMULAS[objective]
    z = logits(requires_grad=True)
    loss = PREFERENCE_LOSSES[objective](z, beta=BETA)
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach(), value(z.detach().numpy()), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(z.grad, derivative(z.detach().numpy()), rtol=1e-12, atol=1e-15)


@every_loss
def test_a_losss_gradient_is_its_finite_difference(loss):
    z = torch.tensor([-3.0, -0.7, 0.0, 0.4, 1.6, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: loss(z, beta=BETA), z)


@every_objective
def test_the_loss_at_step_0_is_the_one_of_a_zero_logit(objective):
    # Policy and reference agree, so margins are 0; and the two responses are equally long.
    logit = preference_logit(torch.zeros(3), torch.zeros(3, dtype=torch.int64), beta=BETA, length_penalty=0.01)
    loss = PREFERENCE_LOSSES[objective](logit, beta=BETA)
    torch.testing.assert_close(loss, torch.full((3,), float(AT_STEP_0[objective])))


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_are_finite_at_logits_of_200(objective, dtype):
    z = torch.tensor([-200.0, 200.0], dtype=dtype, requires_grad=True)
    loss = PREFERENCE_LOSSES[objective](z, beta=BETA)
    loss.sum().backward()
    value, derivative = FORMULAS[objective]
    if objective == "exponential" and dtype == torch.float32:
        # exp(200) is no float32: documented, and not silently cut.
        assert loss.tolist() == [math.inf, 0.0]
        return
    assert loss.isfinite().all()
    assert z.grad.isfinite().all()
    z64 = np.array([-200.0, 200.0])
    np.testing.assert_allclose(loss.detach(), value(z64), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(z.grad, derivative(z64), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("objective", [name for name in PREFERENCE_LOSSES if name != "savage"])
@settings(deadline=None, max_examples=50)
@given(
    left=st.floats(-20, 20),
    right=st.floats(-20, 20),
    weight=st.floats(0, 1),
)
def test_every_objective_but_savage_is_convex(objective, left, right, weight):
    def loss(z):
        return PREFERENCE_LOSSES[objective](torch.tensor([z], dtype=torch.float64), beta=BETA).item()

    chord = weight * loss(left) + (1 - weight) * loss(right)
    assert loss(weight * left + (1 - weight) * right) <= chord * (1 + 1e-12) + 1e-12


def test_savage_bends_the_other_way_below_minus_log_2():
    z = -math.log(2) + torch.tensor([-3.0, -0.01, 0.01, 3.0], dtype=torch.float64)
    z.requires_grad_()
    (slope,) = torch.autograd.grad(PREFERENCE_LOSSES["savage"](z, beta=BETA).sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    assert (curvature < 0).tolist() == [True, True, False, False]


def test_a_loss_keeps_pairs_apart():
    z = torch.tensor([-1.0, 0.5, 2.0])
    for loss in PREFERENCE_LOSSES.values():
        one_by_one = torch.cat([loss(pair, beta=BETA) for pair in z.split(1)])
        torch.testing.assert_close(loss(z, beta=BETA), one_by_one)


# IPO's two conventions


@settings(deadline=None, max_examples=50)
@given(
    margin=st.floats(-50, 50),
    length_margin=st.integers(-40, 40),
    beta=st.floats(0.01, 2),
    length_penalty=st.floats(0, 0.1),
)
def test_ipo_azar_is_the_formula_of_azar_et_al_at_half_of_beta(margin, length_margin, beta, length_penalty):
    tau = beta / 2
    logit = preference_logit(
        torch.tensor([margin], dtype=torch.float64),
        torch.tensor([length_margin]),
        beta=beta,
        length_penalty=length_penalty,
    )
    azar = PREFERENCE_LOSSES["ipo_azar"](logit, beta=beta).item()
    expected = (margin + length_penalty / beta * length_margin - 1 / (2 * tau)) ** 2
    assert azar == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert azar == pytest.approx(ipo_loss(logit).item() / beta**2)


def test_ipos_gradient_in_the_margin_is_beta_squared_times_azars():
    gradients = {}
    for objective in ("ipo", "ipo_azar"):
        margin = torch.tensor([-3.0, 0.0, 8.0], dtype=torch.float64, requires_grad=True)
        logit = preference_logit(margin, torch.tensor([0, 4, -4]), beta=BETA, length_penalty=0.02)
        PREFERENCE_LOSSES[objective](logit, beta=BETA).sum().backward()
        gradients[objective] = margin.grad
    assert gradients["ipo"].abs().min() > 0
    torch.testing.assert_close(gradients["ipo"], BETA**2 * gradients["ipo_azar"])


@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf, math.nan])
def test_ipo_azar_refuses_a_beta_it_cannot_divide_by(beta):
    with pytest.raises(ValueError, match="beta > 0"):
        PREFERENCE_LOSSES["ipo_azar"](torch.zeros(1), beta=beta)


# The logit and its length term


def test_the_logit_is_beta_margin_plus_the_price_of_the_length_margin():
    logit = preference_logit(torch.tensor([2.0, -1.0]), torch.tensor([-30, 10]), beta=0.5, length_penalty=0.01)
    torch.testing.assert_close(logit, torch.tensor([0.7, -0.4]))


def test_the_published_objective_does_not_look_at_lengths():
    margin = torch.tensor([2.0, 2.0])
    assert preference_logit(margin, torch.tensor([-500, 500]), beta=0.5).tolist() == [1.0, 1.0]


def test_the_length_term_is_as_precise_as_the_margin():
    margin = torch.tensor([0.1], dtype=torch.float64)
    logit = preference_logit(margin, torch.tensor([7]), beta=1.0, length_penalty=0.1)
    assert logit.dtype == torch.float64
    assert logit.item() == pytest.approx(0.8, abs=1e-15)


def test_the_regularised_optimum_has_the_rewards_difference_as_its_logit():
    # max E[r - alpha |y|] - beta KL(pi || ref) over four responses: pi is ref exp((r - alpha |y|) / beta).
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(4, generator=generator, dtype=torch.float64)
    reference = torch.rand(4, generator=generator, dtype=torch.float64).log_softmax(0)
    length, alpha, beta = torch.tensor([3, 9, 27, 81]), 0.05, 0.3
    policy = (reference + (reward - alpha * length) / beta).log_softmax(0)
    log_ratio = policy - reference
    chosen, rejected = torch.combinations(torch.arange(4)).T
    logit = preference_logit(
        log_ratio[chosen] - log_ratio[rejected],
        length[chosen] - length[rejected],
        beta=beta,
        length_penalty=alpha,
    )
    torch.testing.assert_close(logit, reward[chosen] - reward[rejected])


@every_loss
def test_descent_raises_the_margin_no_more_when_the_chosen_response_is_longer(loss):
    margin = torch.tensor([2.0, 2.0], requires_grad=True)
    logit = preference_logit(margin, torch.tensor([0, 20]), beta=0.1, length_penalty=0.01)
    loss(logit, beta=0.1).sum().backward()
    equal_length, longer = -margin.grad
    assert equal_length > 0  # an already satisfied pair would prove nothing
    assert longer <= equal_length


@pytest.mark.parametrize("objective", [name for name in PREFERENCE_LOSSES if name != "slic"])
def test_where_the_slope_bends_descent_raises_the_margin_of_a_longer_chosen_response_less(
    objective,
):
    margin = torch.tensor([2.0, 2.0], requires_grad=True)
    logit = preference_logit(margin, torch.tensor([0, 20]), beta=0.1, length_penalty=0.01)
    PREFERENCE_LOSSES[objective](logit, beta=0.1).sum().backward()
    equal_length, longer = -margin.grad
    assert longer < equal_length


@pytest.mark.parametrize(
    "prices",
    [
        {"beta": 0.0},
        {"beta": -0.1},
        {"beta": math.nan},
        {"beta": math.inf},
        {"beta": 0.1, "length_penalty": -0.01},
        {"beta": 0.1, "length_penalty": math.nan},
    ],
)
def test_a_logit_refuses_prices_without_meaning(prices):
    with pytest.raises(ValueError, match="need finite beta > 0 and length_penalty >= 0, got beta="):
        preference_logit(torch.zeros(1), torch.zeros(1, dtype=torch.int64), **prices)


# Names


@every_objective
def test_a_name_resolves_to_its_table_entry(objective):
    assert preference_loss(objective) is PREFERENCE_LOSSES[objective]


def test_an_unknown_objective_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown objective 'kto'; one of dpo, ipo, ipo_azar, slic") as error:
        preference_loss("kto")
    assert str(error.value).endswith("squared_hinge, exponential, savage")


# Label smoothing


@every_objective
@pytest.mark.parametrize("eps", [0.05, 0.3, 0.49])
def test_conservative_smoothing_mixes_in_the_flipped_pair(objective, eps):
    value, derivative = FORMULAS[objective]
    z = logits(requires_grad=True)
    loss = conservative(PREFERENCE_LOSSES[objective], label_smoothing=eps)(z, beta=BETA)
    loss.sum().backward()
    x = z.detach().numpy()
    np.testing.assert_allclose(loss.detach(), (1 - eps) * value(x) + eps * value(-x), rtol=1e-12)
    expected = (1 - eps) * derivative(x) - eps * derivative(-x)
    np.testing.assert_allclose(z.grad, expected, rtol=1e-11, atol=1e-11)


@every_objective
@pytest.mark.parametrize("eps", [0.05, 0.3, 0.49])
def test_robust_smoothing_takes_the_flipped_pair_out(objective, eps):
    value, derivative = FORMULAS[objective]
    z = logits(requires_grad=True)
    loss = robust(PREFERENCE_LOSSES[objective], label_smoothing=eps)(z, beta=BETA)
    loss.sum().backward()
    x = z.detach().numpy()
    expected = ((1 - eps) * value(x) - eps * value(-x)) / (1 - 2 * eps)
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-10, atol=1e-10)
    expected = ((1 - eps) * derivative(x) + eps * derivative(-x)) / (1 - 2 * eps)
    np.testing.assert_allclose(z.grad, expected, rtol=1e-10, atol=1e-10)


@every_loss
def test_robust_smoothing_is_unbiased_under_the_noise_it_assumes(loss):
    eps, z = 0.2, logits()
    noisy = robust(loss, label_smoothing=eps)
    expected_over_labels = (1 - eps) * noisy(z, beta=BETA) + eps * noisy(-z, beta=BETA)
    torch.testing.assert_close(expected_over_labels, loss(z, beta=BETA), rtol=1e-12, atol=1e-11)


def test_conservative_dpo_stops_where_the_preference_is_as_sure_as_its_label():
    eps = 0.1
    z = torch.tensor([math.log((1 - eps) / eps)], dtype=torch.float64, requires_grad=True)
    conservative(preference_loss("dpo"), label_smoothing=eps)(z, beta=BETA).sum().backward()
    assert z.grad.item() == pytest.approx(0, abs=1e-16)


@every_smoothing
@every_objective
def test_smoothing_leaves_the_loss_at_step_0_alone(objective, smoothed):
    loss = smoothed(PREFERENCE_LOSSES[objective], label_smoothing=0.2)
    torch.testing.assert_close(loss(torch.zeros(1), beta=BETA), torch.tensor([float(AT_STEP_0[objective])]))


@every_smoothing
@every_loss
def test_no_smoothing_is_the_loss_itself_even_where_the_flipped_loss_overflows(loss, smoothed):
    z = torch.tensor([0.3, 200.0])
    assert smoothed(loss, label_smoothing=0.0)(z, beta=BETA).tolist() == loss(z, beta=BETA).tolist()


@every_smoothing
@pytest.mark.parametrize("eps", [-0.01, 0.5, 1.0, math.nan])
def test_smoothing_refuses_what_is_no_share_of_flipped_labels(smoothed, eps):
    with pytest.raises(ValueError, match=r"0 <= label_smoothing < 0\.5"):
        smoothed(preference_loss("dpo"), label_smoothing=eps)


@every_smoothing
@every_loss
def test_a_smoothed_loss_survives_the_way_to_a_worker_process(loss, smoothed):
    there = smoothed(loss, label_smoothing=0.1)
    back = pickle.loads(pickle.dumps(there))
    assert back(torch.ones(1), beta=BETA).item() == there(torch.ones(1), beta=BETA).item()
