import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from overopt.modules.direct_alignment import AlignmentObjective
from overopt.modules.optimizers import OptimizerSettings
from overopt.theory.recurrent_policies import RecurrentArchitecture, RecurrentPolicies
from overopt.theory.tree_mdp import TreeData, TreeMDP, paper_data
from overopt.theory.tree_training import TreeTraining, align, train_sft

FAST = OptimizerSettings(name="adamw", learning_rate=1e-2, warmup_steps=0)
TRAINING = TreeTraining(RecurrentArchitecture(width=6), sft_steps=40, steps=15, optimizer=FAST)
# Losses by hand, from the margin and beta.
BY_HAND = {
    "dpo": lambda margin, beta: -F.logsigmoid(beta * margin),
    "ipo": lambda margin, beta: (beta * margin - 1) ** 2,
    "slic": lambda margin, beta: torch.clamp(1 - beta * margin, min=0),
}


def all_log_probs(network: torch.nn.RNN, head: torch.nn.Linear, tree: TreeMDP) -> torch.Tensor:
    seen = np.concatenate([np.full((tree.num_trajectories, 1), tree.branching), tree.actions[:, :-1]], axis=1)
    outputs = network(F.one_hot(torch.from_numpy(seen), tree.branching + 1).double())[0]
    return head(outputs).log_softmax(-1).gather(-1, torch.from_numpy(tree.actions)[..., None]).sum(dim=(1, 2))


@pytest.mark.parametrize("objective", BY_HAND)
def test_training_is_that_of_a_plain_loop_over_pytorch_s_own_network(objective):
    data = paper_data()
    [pair] = data.preferences
    fresh = RecurrentPolicies(data.tree, [11], TRAINING.architecture).weights
    network = torch.nn.RNN(4, 6, batch_first=True, dtype=torch.float64)
    head = torch.nn.Linear(6, 3, dtype=torch.float64)
    network.load_state_dict({f"{n.removeprefix('cell/')}_l0": w[0] for n, w in fresh.items() if "cell" in n})
    head.load_state_dict({n.removeprefix("head/"): w[0] for n, w in fresh.items() if "head" in n})

    def trained(loss, steps):
        optimizer = torch.optim.AdamW(
            [*network.parameters(), *head.parameters()], lr=1e-2, betas=(0.9, 0.95), weight_decay=0
        )
        found = [all_log_probs(network, head, data.tree).detach()]
        for _ in range(steps):
            optimizer.zero_grad()
            loss(all_log_probs(network, head, data.tree)).backward()
            optimizer.step()
            found.append(all_log_probs(network, head, data.tree).detach())
        return torch.stack(found)

    sft_by_loop = trained(lambda log_probs: -log_probs[list(data.demonstrations)].mean(), TRAINING.sft_steps)
    reference = sft_by_loop[-1]

    def loss(log_probs):
        ratios = log_probs - reference
        return BY_HAND[objective](ratios[pair.chosen] - ratios[pair.rejected], 0.1)

    aligned_by_loop = trained(loss, TRAINING.steps)
    sft = train_sft(data, [11], TRAINING)
    aligned = align(sft.policies, data, AlignmentObjective(objective, 0.1), TRAINING)
    np.testing.assert_allclose(sft.log_probs[:, 0], sft_by_loop, atol=1e-9)
    np.testing.assert_allclose(aligned[:, 0], aligned_by_loop, atol=1e-9)
    assert np.abs(aligned[-1] - aligned[0]).max() > 0.1


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_seeds_that_train_together_train_as_if_alone(name):
    data = TreeData.parse(TreeMDP(2, 2), ["a0 a0", "a1 a1"], ["a0 a0 > a1 a1", "a0 a1 > a1 a0", "a0 a0 > a1 a0"])
    optimizer = OptimizerSettings(name=name, learning_rate=1e-2, warmup_steps=3)
    training = TreeTraining(RecurrentArchitecture("gru", 5), sft_steps=5, steps=8, optimizer=optimizer)
    together = train_sft(data, range(3), training)
    aligned = align(together.policies, data, AlignmentObjective("dpo", 0.5), training)
    for seed in range(3):
        alone = train_sft(data, [seed], training)
        np.testing.assert_allclose(alone.log_probs[:, 0], together.log_probs[:, seed], atol=1e-10)
        alone_aligned = align(alone.policies, data, AlignmentObjective("dpo", 0.5), training)
        np.testing.assert_allclose(alone_aligned[:, 0], aligned[:, seed], atol=1e-10)


def test_every_step_is_recorded_probabilities_sum_to_one_and_the_reference_stays():
    data = paper_data()
    steps = []
    sft = train_sft(data, range(2), TRAINING, lambda: steps.append(1))
    before = sft.policies.trajectory_log_probs()
    aligned = align(sft.policies, data, AlignmentObjective("ipo", 0.5), TRAINING, lambda: steps.append(1))
    assert sft.log_probs.shape == (41, 2, 27)
    assert aligned.shape == (16, 2, 27)
    assert len(steps) == 40 + 15
    np.testing.assert_allclose(np.exp(aligned).sum(axis=-1), 1, atol=1e-12)
    np.testing.assert_array_equal(aligned[0], before.numpy())
    np.testing.assert_array_equal(sft.policies.trajectory_log_probs(), before)
    demonstrated = np.exp(sft.log_probs[:, :, list(data.demonstrations)]).sum(axis=-1)
    assert (demonstrated[-1] > demonstrated[0] + 0.2).all()
    [pair] = data.preferences
    assert (np.diff(aligned[..., pair.chosen] - aligned[..., pair.rejected], axis=0)[:3] > 0).all()


def test_without_sft_the_reference_is_the_fresh_policy():
    training = TreeTraining(RecurrentArchitecture(width=4), sft_steps=0, steps=1, optimizer=FAST)
    sft = train_sft(paper_data(), [0], training)
    assert sft.log_probs.shape == (1, 1, 27)
    assert math.isclose(np.exp(sft.log_probs).sum(), 1)


def test_a_training_without_steps_is_refused():
    with pytest.raises(ValueError, match="steps >= 1"):
        TreeTraining(steps=0)
