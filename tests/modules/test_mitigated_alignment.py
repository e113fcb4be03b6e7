"""Mitigations in the objective: values and gradients by hand, their direction, and none of it by default."""

import math

import numpy as np
import pytest
import torch

from overopt.checkpoints.format import read_model_checkpoint
from overopt.evaluation.checkpoint_metrics import Evaluator, SampleEvaluator
from overopt.experiment import alignment_of
from overopt.models.policy import load_policy
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.direct_alignment import AlignmentObjective, DirectAlignmentModule, PairScores, score_pairs
from overopt.objectives.likelihood import ResponseLikelihood
from overopt.objectives.preference import PREFERENCE_LOSSES, preference_logit
from overopt.theory.chi_po import chi_po_link, chi_po_margins, chi_po_policy_with_ood_mass
from overopt.theory.response_set import ResponseSet
from tiny import FAST, Losses

BETA = 0.3
every_objective = pytest.mark.parametrize("objective", PREFERENCE_LOSSES)
MITIGATIONS = {
    "likelihood per token": {"nll_weight": 0.7},
    "likelihood per response": {"nll_weight": 0.01, "nll_per": "response"},
    "chi-PO": {"link": "chi_squared"},
    "chi-PO, clipped": {"link": "chi_squared", "max_reward": 0.4},
    "DPO-positive": {"positive_penalty": 5.0},
    "several": {"nll_weight": 0.1, "positive_penalty": 2.0, "length_penalty": 0.02},
}
every_mitigation = pytest.mark.parametrize("settings", MITIGATIONS.values(), ids=MITIGATIONS)

# Of four pairs: rising and falling chosen responses, right and wrong margins.
CHOSEN, REJECTED = np.array([1.5, -0.4, -2.0, 0.3]), np.array([-1.0, -3.0, -1.2, 2.5])
LENGTHS, REJECTED_LENGTHS, NLL = np.array([4, 9, 2, 7]), np.array([6, 5, 2, 8]), np.array([5.0, 20.0, 3.0, 9.0])


def scores(chosen=CHOSEN, rejected=REJECTED, nll=NLL):
    """As tensors whose gradients are asked for."""
    chosen, rejected, nll = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (chosen, rejected, nll))
    margin = torch.from_numpy(LENGTHS - REJECTED_LENGTHS)
    return PairScores(chosen, rejected, margin, ResponseLikelihood(nll, torch.from_numpy(LENGTHS)))


def gradients(alignment, at):
    leaves = (at.chosen_log_ratios, at.rejected_log_ratios, at.chosen.negative_log_likelihood)
    return torch.autograd.grad(alignment.pair_losses(at).sum(), leaves, materialize_grads=True)


def by_hand(settings):
    """DPO with a mitigation, from the papers' formulas."""
    link = chi_po_link if settings.get("link") == "chi_squared" else lambda log_ratio: log_ratio
    z = BETA * (link(CHOSEN) - link(REJECTED))
    z = z - BETA * settings.get("positive_penalty", 0) * np.maximum(0, -CHOSEN)
    z = z + settings.get("length_penalty", 0) * (LENGTHS - REJECTED_LENGTHS)
    if "max_reward" in settings:
        z = np.clip(z, -2 * settings["max_reward"], 2 * settings["max_reward"])
    nll = NLL if settings.get("nll_per") == "response" else NLL / LENGTHS
    return np.log1p(np.exp(-z)) + settings.get("nll_weight", 0) * nll


@every_mitigation
def test_a_mitigated_dpo_loss_is_its_papers_formula(settings):
    losses = AlignmentObjective("dpo", BETA, **settings).pair_losses(scores()).detach().numpy()
    np.testing.assert_allclose(losses, by_hand(settings), rtol=1e-13)
    assert np.abs(losses - by_hand({})).max() > 1e-3


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        pytest.param(objective, settings, id=f"{objective}, {name}")
        for objective in PREFERENCE_LOSSES
        for name, settings in MITIGATIONS.items()
        if not (objective in ("ipo", "ipo_azar") and "positive_penalty" in settings)  # refused
    ],
)
def test_a_gradient_is_the_finite_difference(objective, settings):
    if objective == "exponential" and "link" in settings:
        settings = {**settings, "max_reward": 0.4}
    alignment = AlignmentObjective(objective, BETA, **settings)

    def loss(chosen, rejected, nll):
        likelihood = ResponseLikelihood(nll, torch.from_numpy(LENGTHS))
        return alignment.pair_losses(PairScores(chosen, rejected, scores().length_margin, likelihood))

    at = scores()
    assert torch.autograd.gradcheck(
        loss, (at.chosen_log_ratios, at.rejected_log_ratios, at.chosen.negative_log_likelihood)
    )


@every_objective
def test_weights_of_zero_and_the_log_link_are_the_objective_itself(objective):
    at = scores()
    plain = PREFERENCE_LOSSES[objective](
        preference_logit(at.chosen_log_ratios - at.rejected_log_ratios, at.length_margin, beta=BETA), beta=BETA
    )
    off = AlignmentObjective(objective, BETA, nll_weight=0.0, link="log", positive_penalty=0.0)
    assert off == AlignmentObjective(objective, BETA)
    assert off.pair_losses(at).tolist() == plain.tolist()
    grads = torch.autograd.grad(plain.sum(), (at.chosen_log_ratios, at.rejected_log_ratios))
    assert [g.tolist() for g in gradients(off, at)] == [*(g.tolist() for g in grads), [0, 0, 0, 0]]


def test_the_likelihood_term_pulls_the_chosen_response_up_and_leaves_the_rejected_one():
    plain, mitigated = (gradients(AlignmentObjective("dpo", BETA, nll_weight=w), scores()) for w in (0.0, 0.7))
    assert mitigated[0].tolist() == plain[0].tolist()
    assert mitigated[1].tolist() == plain[1].tolist()
    np.testing.assert_allclose(mitigated[2], 0.7 / LENGTHS)  # of the negative log-likelihood, which descent lowers


def test_dpo_positive_penalises_a_falling_chosen_response_only():
    dpo, positive = AlignmentObjective("dpo", BETA), AlignmentObjective("dpo", BETA, positive_penalty=5.0)
    added = (positive.pair_losses(scores()) - dpo.pair_losses(scores())).tolist()
    assert [value > 0 for value in added] == (CHOSEN < 0).tolist()
    assert [value for value, chosen in zip(added, CHOSEN, strict=True) if chosen >= 0] == [0, 0]
    # Both responses fall, the rejected one faster: DPO is content, DPO-positive isn't.
    falls = [scores(CHOSEN - t, REJECTED - 2 * t) for t in (3.0, 6.0)]
    near, far = (dpo.pair_losses(at) for at in falls)
    assert (far < near).all()
    near, far = (positive.pair_losses(at) for at in falls)
    assert (far > near).all()


def test_chi_po_holds_a_raised_response_back_by_a_weight_that_its_ratio_gives():
    """At equal margins of phi the pull on a log-ratio is that of DPO times 1 + pi/pi_ref."""
    at = scores()
    chosen, rejected, _ = gradients(AlignmentObjective("dpo", BETA, link="chi_squared"), at)
    z = BETA * (chi_po_link(CHOSEN) - chi_po_link(REJECTED))
    slope = -BETA / (1 + np.exp(z))
    np.testing.assert_allclose(chosen, slope * (1 + np.exp(CHOSEN)), rtol=1e-12)
    np.testing.assert_allclose(rejected, -slope * (1 + np.exp(REJECTED)), rtol=1e-12)


def test_chi_po_sees_no_difference_between_policies_that_the_theory_says_it_cannot_tell_apart():
    generator = np.random.default_rng(0)
    reference, policy = (np.log(generator.dirichlet(np.ones(6))) for _ in range(2))
    responses = ResponseSet(
        prompts=("post",),
        responses=tuple("abcdef"),
        demonstrated=np.zeros(6, dtype=bool),
        reference=np.exp(reference),
        prompt_of=np.zeros(6, dtype=np.int64),
        chosen=np.array([0, 1, 0]),
        rejected=np.array([1, 2, 2]),
    )
    moved = chi_po_policy_with_ood_mass(responses, policy, 0.9)
    assert np.exp(moved[3:]).sum() == pytest.approx(0.9)
    alignment = AlignmentObjective("dpo", BETA, link="chi_squared")

    def losses(log_policy):
        log_ratio = torch.from_numpy(log_policy - reference)
        none = torch.zeros(3, dtype=torch.int64)
        likelihood = ResponseLikelihood(torch.zeros(3), none)
        return alignment.pair_losses(PairScores(log_ratio[[0, 1, 0]], log_ratio[[1, 2, 2]], none, likelihood)).numpy()

    np.testing.assert_allclose(losses(moved), losses(policy), rtol=1e-9)
    margins = chi_po_margins(responses, policy)
    np.testing.assert_allclose(losses(policy), np.log1p(np.exp(-BETA * margins)), rtol=1e-12)


def test_losses_and_gradients_stay_finite_in_float32_far_from_the_reference():
    for settings in MITIGATIONS.values():
        far = scores(np.array([300.0, -300.0, 90.0, -90.0]), np.array([-300.0, 300.0, 89.0, -400.0]))
        far = PairScores(*(x.float().detach().requires_grad_() for x in far[:2]), *far[2:])
        for objective in ("dpo", "slic", "squared_hinge", "savage"):
            alignment = AlignmentObjective(objective, BETA, **settings)
            loss = alignment.pair_losses(far)
            assert loss.isfinite().all()
            assert all(g.isfinite().all() for g in gradients(alignment, far))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nll_weight": -0.1}, "nll_weight=-0.1"),
        ({"nll_weight": math.inf}, "nll_weight=inf"),
        ({"positive_penalty": -1.0}, "positive_penalty=-1.0"),
        ({"positive_penalty": math.nan}, "positive_penalty=nan"),
        ({"max_reward": 1.0}, "give link chi_squared too"),
        ({"max_reward": -1.0, "link": "chi_squared"}, "max_reward > 0"),
        ({"objective": "ipo", "positive_penalty": 1.0}, "ipo rewards that beyond its target"),
        ({"objective": "ipo_azar", "positive_penalty": 1.0}, "ipo_azar rewards that beyond its target"),
        ({"label_smoothing": 0.1, "positive_penalty": 1.0}, "leave out label_smoothing or positive_penalty"),
        ({"link": "chi_squared", "positive_penalty": 1.0}, "got link='chi_squared'"),
        ({"link": "chi_squared", "objective": "exponential"}, "give max_reward too"),
    ],
    ids=str,
)
def test_bad_settings_and_combinations_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        DirectAlignmentModule("nowhere.ckpt", **arguments)
    assert "\n" not in str(error.value)


class Published(DirectAlignmentModule):
    """The published objective and nothing else."""

    def loss_sum(self, micro_batch):
        scores = score_pairs(self.policy, micro_batch)
        logit = preference_logit(
            scores.chosen_log_ratios - scores.rejected_log_ratios, scores.length_margin, beta=self.alignment.beta
        )
        return PREFERENCE_LOSSES[self.alignment.objective](logit, beta=self.alignment.beta).sum(), {}


@pytest.fixture
def make_pairs(make_data, sft_checkpoint):
    def make(**changes):
        return make_data(**{"examples": "preferences", "tokenizer": str(sft_checkpoint)} | changes)

    return make


@pytest.fixture
def losses_of(make_pairs, make_trainer, sft_checkpoint):
    """Train an epoch, and give the loss of each step, and the module."""

    def run(kind=DirectAlignmentModule, callbacks=(), data=None, **settings):
        losses = Losses()
        module = kind(str(sft_checkpoint), beta=BETA, **settings, optimizer=FAST)
        trainer = make_trainer(callbacks=[losses, *callbacks], enable_checkpointing=bool(callbacks))
        trainer.fit(module, datamodule=data or make_pairs())
        return losses.by_examples, module

    return run


@every_objective
def test_by_default_training_is_that_of_the_published_objective_bit_for_bit(losses_of, objective):
    losses, module = losses_of(objective=objective)
    assert losses == losses_of(Published, objective=objective)[0]
    assert len(set(losses.values())) == len(losses) == 6
    # And so is what it records, on which the keys of stages depend.
    names = {"objective", "beta", "length_penalty", "label_smoothing", "smoothing", "reference"}
    assert module.parameters_to_log().keys() == names


@every_mitigation
def test_a_mitigation_reaches_training_from_the_first_step(losses_of, settings):
    losses, module = losses_of(**settings)
    plain, _ = losses_of()
    assert losses != plain
    assert module.parameters_to_log().keys() > settings.keys()
    (first, *_), (base, *_) = losses.values(), plain.values()
    if settings.keys() & {"nll_weight", "length_penalty"}:
        assert first != pytest.approx(base, rel=1e-3)
    else:  # every ratio is 1 at first
        assert first == pytest.approx(math.log(2), rel=1e-5)


@every_mitigation
def test_held_out_loss_of_a_checkpoint_is_that_of_training(losses_of, make_pairs, tmp_path, sft_checkpoint, settings):
    data = make_pairs()
    _, module = losses_of(callbacks=[CheckpointSchedule(str(tmp_path / "c"))], data=data, **settings)
    checkpoint = read_model_checkpoint(tmp_path / "c" / "last.ckpt")
    assert alignment_of(checkpoint) == module.alignment
    evaluator = Evaluator(SampleEvaluator(data, load_policy(sft_checkpoint), None, num_prompts=2))
    metrics, _ = evaluator.evaluate(load_policy(tmp_path / "c" / "last.ckpt"), alignment_of(checkpoint))
    with torch.inference_mode():
        batch = data.evaluation_set.collate(range(len(data.evaluation_set)))
        expected = module.alignment.pair_losses(score_pairs(module.policy, batch)).mean()
    assert metrics["eval/loss"] == pytest.approx(float(expected), rel=1e-4)


def test_a_checkpoint_from_before_the_mitigations_is_read_as_one_without_them(losses_of, tmp_path):
    losses_of(callbacks=[CheckpointSchedule(str(tmp_path / "c"))])
    checkpoint = read_model_checkpoint(tmp_path / "c" / "last.ckpt")
    for name in ("nll_weight", "nll_per", "link", "max_reward", "positive_penalty"):
        del checkpoint.training[name]
    assert alignment_of(checkpoint) == AlignmentObjective("dpo", BETA)


def test_implicit_rewards_of_chi_po_are_beta_phi(losses_of, make_pairs, make_trainer):
    data = make_pairs()
    _, module = losses_of(data=data, link="chi_squared")
    rows = [row for batch in make_trainer().predict(module, datamodule=data) for row in batch]
    places = [place for batch in data.val_dataloader().batches for place in batch]
    with torch.inference_mode():
        expected = score_pairs(module.policy, data.evaluation_set.collate(places))
    found = [row["chosen_implicit_reward"] for row in rows]
    np.testing.assert_allclose(found, BETA * chi_po_link(expected.chosen_log_ratios.numpy()), rtol=1e-4)
