import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from overopt.theory.rank_deficiency import log_ratio_margins, policy_with_ood_mass, row_space_basis
from overopt.theory.regularised_optimum import (
    RegularisedLoss,
    descend_over_logits,
    regularised_optimum,
    smallest_curvature,
)
from overopt.theory.regularisers import REGULARISERS

TERMS = [name for name in REGULARISERS if name != "none"]


def value_of(responses, loss, log_policy):
    return float(loss.of_logits(responses, torch.tensor(log_policy)))


def brute_force(responses, loss, *, starts=4):
    """Smallest loss that a quasi-Newton method over all logits finds."""

    def value_and_gradient(values):
        logits = torch.tensor(values, requires_grad=True)
        value = loss.of_logits(responses, logits)
        [gradient] = torch.autograd.grad(value, logits)
        return value.item(), gradient.numpy()

    generator = np.random.default_rng(0)
    spread = [2.0 * (start > 0) for start in range(starts)]
    first = [responses.log_reference + generator.normal(0, size, responses.num_responses) for size in spread]
    ends = [minimize(value_and_gradient, logits, jac=True, method="BFGS", options={"maxiter": 150}) for logits in first]
    return min(end.fun for end in ends)


@pytest.mark.parametrize("regulariser", TERMS)
def test_a_profile_is_the_term_at_its_best_shares(regulariser, random_response_set):
    responses = random_response_set(11, num_preferences=3)
    components = responses.components
    log_ratio = np.random.default_rng(1).normal(size=responses.num_responses) * responses.compared
    profile = REGULARISERS[regulariser].profile(responses, log_ratio)
    within = responses.log_reference + log_ratio
    loss = RegularisedLoss("ipo", 1.0, regulariser, 1.0)
    bare = RegularisedLoss("ipo", 1.0)

    def at_shares(shift):
        logits = within + shift[components.label]
        return value_of(responses, loss, logits) - value_of(responses, bare, logits)

    options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-9, "fatol": 1e-13}
    best = minimize(at_shares, np.zeros(components.number), method="Nelder-Mead", options=options)
    assert profile.value == pytest.approx(best.fun, abs=2e-4)
    assert profile.value <= best.fun + 1e-9
    shares = np.exp(profile.log_shares)
    np.testing.assert_allclose(np.bincount(components.prompt_of, shares), 1)


@pytest.mark.parametrize("regulariser", TERMS)
def test_derivatives_of_a_profile_agree_with_differences(regulariser, random_response_set):
    responses = random_response_set(12, num_preferences=4)
    basis = row_space_basis(responses)
    point = np.random.default_rng(2).normal(size=basis.shape[1])

    def profile(coordinates):
        return REGULARISERS[regulariser].profile(responses, basis @ coordinates)

    step = 1e-5
    for direction in np.eye(len(point)):
        above, below = profile(point + step * direction), profile(point - step * direction)
        middle = profile(point)
        assert (above.value - below.value) / (2 * step) == pytest.approx(
            middle.gradient @ basis @ direction, rel=1e-6, abs=1e-9
        )
        np.testing.assert_allclose(
            basis.T @ (above.gradient - below.gradient) / (2 * step),
            basis.T @ middle.hessian @ basis @ direction,
            rtol=1e-5,
            atol=1e-8,
        )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("regulariser", TERMS)
@pytest.mark.parametrize("objective", ["dpo", "ipo", "squared_hinge"])
def test_no_descent_over_all_logits_finds_a_smaller_loss(objective, regulariser, seed, random_response_set):
    responses = random_response_set(seed, num_preferences=3)
    loss = RegularisedLoss(objective, 0.5, regulariser, 1.0)
    optimum = regularised_optimum(responses, loss)
    found = brute_force(responses, loss)
    assert optimum.loss <= found + 1e-8
    if optimum.attained:
        assert optimum.loss == pytest.approx(value_of(responses, loss, optimum.log_policy), abs=1e-10)
        assert optimum.loss == pytest.approx(found, abs=1e-5)


def test_slic_comes_to_rest_at_its_kink(paper_set):
    optimum = regularised_optimum(paper_set, RegularisedLoss("slic", 0.5, "kl", 0.1))
    assert optimum.attained
    assert optimum.margins[0] == pytest.approx(2.0)
    # By hand: with the margin held, the best shares are in proportion to the reference's times exp(-KL within).
    pair = paper_set.reference[[paper_set.chosen[0], paper_set.rejected[0]]]
    within = pair * np.exp([1.0, -1.0]) / (pair @ np.exp([1.0, -1.0]))
    divergence = within @ np.log(within / (pair / pair.sum()))
    rest = 1 - pair.sum()
    assert optimum.loss == pytest.approx(-0.1 * np.log(rest + pair.sum() * np.exp(-divergence)), abs=1e-12)


def test_dpo_without_a_regulariser_has_no_optimum_and_any_ood_mass(paper_set):
    optimum = regularised_optimum(paper_set, RegularisedLoss("dpo", 0.1))
    assert not optimum.attained
    assert optimum.loss < 1e-9
    assert (optimum.ood_low, optimum.ood_high) == (0.0, 1.0)


def test_dpo_on_labels_that_contradict_each_other_has_one(random_response_set):
    responses = random_response_set(4, num_prompts=1, sizes=(4, 5), num_preferences=1)
    both = type(responses)(
        **{
            **vars_of(responses),
            "chosen": np.array([0, 0, 1]),
            "rejected": np.array([1, 1, 0]),
        }
    )
    optimum = regularised_optimum(both, RegularisedLoss("dpo", 0.5))
    assert optimum.attained
    # Two of three prefer it: the logit is log 2.
    np.testing.assert_allclose(optimum.margins * 0.5, np.log(2) * np.array([1, 1, -1]), atol=1e-8)
    assert smallest_curvature(both, RegularisedLoss("dpo", 0.5), optimum.log_policy) == pytest.approx(0, abs=1e-12)


def vars_of(responses):
    return {name: getattr(responses, name) for name in responses.__dataclass_fields__}


@pytest.mark.parametrize("objective", ["dpo", "ipo", "slic"])
def test_nll_drives_out_all_ood_mass_and_is_attained_by_no_policy(objective, paper_set):
    loss = RegularisedLoss(objective, 0.1, "nll", 0.01)
    optimum = regularised_optimum(paper_set, loss)
    assert not optimum.attained
    assert optimum.ood_high == 0.0
    # Every policy with OOD mass does worse than the same one with half of it.
    policies = [policy_with_ood_mass(paper_set, paper_set.log_reference, mass) for mass in (0.4, 0.2, 0.1)]
    losses = [value_of(paper_set, loss, policy) for policy in policies]
    assert losses == sorted(losses, reverse=True)
    assert optimum.loss < losses[-1]


@pytest.mark.parametrize("regulariser", ["kl", "chi_squared"])
@pytest.mark.parametrize("objective", ["dpo", "ipo", "slic"])
def test_a_divergence_from_the_reference_never_leaves_less_ood_mass_than_the_reference_has(
    objective, regulariser, paper_set
):
    own = paper_set.ood_mass(paper_set.log_reference)
    masses = []
    for strength in (0.1, 100.0):
        optimum = regularised_optimum(paper_set, RegularisedLoss(objective, 0.5, regulariser, strength))
        masses.append(optimum.ood_low)
        assert optimum.ood_low == optimum.ood_high >= own
    assert masses[0] > 1.1 * own
    assert masses[1] == pytest.approx(own, rel=1e-2)


def test_a_strong_kl_keeps_a_dpo_optimum_and_a_weak_one_loses_it_to_infinity(paper_set):
    # The rejected response's own probability q is all that KL charges for giving it up: -log(1 - q).
    price = -np.log(1 - paper_set.reference[paper_set.rejected[0]])
    threshold = np.log(2) / price
    weak = regularised_optimum(paper_set, RegularisedLoss("dpo", 0.1, "kl", 0.8 * threshold))
    strong = regularised_optimum(paper_set, RegularisedLoss("dpo", 0.1, "kl", 1.2 * threshold))
    assert not weak.attained
    assert weak.loss == pytest.approx(0.8 * threshold * price, abs=1e-9)
    assert strong.attained
    assert strong.loss < np.log(2)
    assert smallest_curvature(paper_set, RegularisedLoss("dpo", 0.1, "kl", 1.2 * threshold), strong.log_policy) > 0


def test_descents_from_any_ood_mass_meet_under_kl_and_stay_apart_without(paper_set):
    starts = np.stack([policy_with_ood_mass(paper_set, paper_set.log_reference, mass) for mass in (0.01, 0.9)])
    ends = {
        name: descend_over_logits(paper_set, RegularisedLoss("ipo", 0.5, name, strength), starts)
        for name, strength in (("none", 0.0), ("kl", 1.0))
    }
    kept, met = ([paper_set.ood_mass(end) for end in ends[name]] for name in ("none", "kl"))
    optimum = regularised_optimum(paper_set, RegularisedLoss("ipo", 0.5, "kl", 1.0))
    np.testing.assert_allclose(met, optimum.ood_low, atol=1e-4)
    assert kept[1] - kept[0] > 0.5
    for end in ends["none"]:
        assert log_ratio_margins(paper_set, end)[0] == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dpp", 0.1), "one of dpo"),
        (("dpo", 0.0), "beta > 0"),
        (("dpo", 0.1, "l2", 1.0), "no regulariser 'l2'; there are none, nll"),
        (("dpo", 0.1, "kl", -1.0), "strength >= 0"),
    ],
)
def test_a_loss_that_is_none_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RegularisedLoss(*arguments)
