import numpy as np
import pytest
import torch
from torch import nn

from overopt.theory.recurrent_policies import RecurrentArchitecture, RecurrentPolicies
from overopt.theory.tree_mdp import TreeMDP
from overopt.theory.tree_training import for_all_seeds

NETWORKS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def one_by_one(policies: RecurrentPolicies, seed: int, cell: str, observes: str) -> torch.Tensor:
    """Each trajectory alone through PyTorch's own network, step by step."""
    tree, weights = policies.tree, {name: weight[seed].detach() for name, weight in policies.weights.items()}
    inputs = weights["cell/weight_ih"].shape[1]
    network = NETWORKS[cell](inputs, weights["cell/weight_hh"].shape[1], batch_first=True, dtype=torch.float64)
    network.load_state_dict({f"{name.removeprefix('cell/')}_l0": w for name, w in weights.items() if "cell" in name})
    log_probs = []
    for trajectory in range(tree.num_trajectories):
        actions = tree.actions[trajectory]
        seen = [tree.branching, *actions[:-1]] if observes == "actions" else tree.states[trajectory] - 1
        one_hot = torch.eye(inputs, dtype=torch.float64)[np.array(seen)]
        logits = network(one_hot[None])[0][0] @ weights["head/weight"].T + weights["head/bias"]
        log_probs.append(sum(logits.log_softmax(-1)[step, action] for step, action in enumerate(actions)))
    return torch.stack(log_probs)


@pytest.mark.parametrize("observes", ["actions", "states"])
@pytest.mark.parametrize("cell", NETWORKS)
def test_all_trajectories_at_once_have_the_probabilities_of_pytorch_s_own_network_one_by_one(cell, observes):
    policies = RecurrentPolicies(TreeMDP(), [3, 7], RecurrentArchitecture(cell, 5, observes, init_scale=2.0))
    together = policies.trajectory_log_probs()
    for seed in range(2):
        torch.testing.assert_close(together[seed], one_by_one(policies, seed, cell, observes), atol=1e-12, rtol=0)
    torch.testing.assert_close(together.exp().sum(dim=1), torch.ones(2, dtype=torch.float64), atol=1e-12, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize(("branching", "depth"), [(2, 1), (3, 3), (4, 2)])
def test_a_batch_of_trajectories_has_the_log_probabilities_of_the_whole_tree_and_keeps_them(branching, depth):
    tree = TreeMDP(branching, depth)
    policies = RecurrentPolicies(tree, range(3), RecurrentArchitecture(width=4))
    last = tree.num_trajectories - 1
    tokens = for_all_seeds([(last, 0), (1, last)], policies)
    scores = tokens.sums(policies(tokens)).view(3, 4)
    torch.testing.assert_close(scores, policies.trajectory_log_probs()[:, [last, 0, 1, last]])
    torch.testing.assert_close(policies.latest, policies.trajectory_log_probs())


def test_a_seed_s_policy_does_not_depend_on_the_others_nor_on_what_was_drawn_before():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone = RecurrentPolicies(TreeMDP(), [5], RecurrentArchitecture(width=4)).trajectory_log_probs()
    torch.testing.assert_close(torch.get_rng_state(), state)
    torch.rand(3)
    among = RecurrentPolicies(TreeMDP(), [1, 5, 2], RecurrentArchitecture(width=4)).trajectory_log_probs()
    torch.testing.assert_close(among[1], alone[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"cell": "mlp"}, "rnn, gru, lstm"), ({"width": 0}, "width"), ({"init_scale": 0.0}, "init_scale"),
     ({"observes": "rewards"}, "actions or states")],
)  # fmt: skip
def test_an_architecture_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RecurrentArchitecture(**settings)


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match="at least one seed"):
        RecurrentPolicies(TreeMDP(), [], RecurrentArchitecture())
