"""Recurrent policies on a tree MDP, one a seed, that compute and train together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from overopt.packed_tokens import PackedTokens
from overopt.theory.tree_mdp import TreeMDP

Memory = tuple[Tensor, ...]
"""What a cell hands on: hidden units, and an LSTM's cell units; each [sequence, width]."""


def _rnn_step(from_input: Tensor, from_hidden: Tensor, memory: Memory) -> Memory:
    return (torch.tanh(from_input + from_hidden),)


def _gru_step(from_input: Tensor, from_hidden: Tensor, memory: Memory) -> Memory:
    reset_input, update_input, new_input = from_input.chunk(3, dim=-1)
    reset_hidden, update_hidden, new_hidden = from_hidden.chunk(3, dim=-1)
    update = torch.sigmoid(update_input + update_hidden)
    new = torch.tanh(new_input + torch.sigmoid(reset_input + reset_hidden) * new_hidden)
    return ((1 - update) * new + update * memory[0],)


def _lstm_step(from_input: Tensor, from_hidden: Tensor, memory: Memory) -> Memory:
    enter, forget, new, out = (from_input + from_hidden).chunk(4, dim=-1)
    cell = torch.sigmoid(forget) * memory[1] + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(cell), cell


class _Cell(NamedTuple):
    """PyTorch's weights and its formula written out: vmap refuses nn.RNN, and loops over nn.RNNCell."""

    weights: type[nn.RNNCell | nn.GRUCell | nn.LSTMCell]
    step: Callable[[Tensor, Tensor, Memory], Memory]
    memories: int


CELLS = {
    "rnn": _Cell(nn.RNNCell, _rnn_step, 1),
    "gru": _Cell(nn.GRUCell, _gru_step, 1),
    "lstm": _Cell(nn.LSTMCell, _lstm_step, 2),
}


@dataclass(frozen=True)
class RecurrentArchitecture:
    """A recurrent policy's shape; the paper says no more than "RNN".

    Attributes:
        cell: rnn (tanh), gru or lstm.
        width: hidden units.
        observes: what is read at each step, as one-hot: ``actions``, the action taken before (a language model's way),
            or ``states``, the number of the state, which says all by itself.
        init_scale: factor on PyTorch's initial weights, which are uniform within 1/sqrt(width).

    Raises:
        ValueError: an unknown cell, or a width or scale that is not positive.
    """

    cell: str = "rnn"
    width: int = 64
    observes: str = "actions"
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.cell not in CELLS or self.observes not in ("actions", "states"):
            raise ValueError(
                f"cell is one of {', '.join(CELLS)} and observes is actions or states, got {self.cell!r} and "
                f"{self.observes!r}"
            )
        if self.width < 1 or self.init_scale <= 0:
            raise ValueError(
                f"need width >= 1 and init_scale > 0, got {self.width=}, {self.init_scale=}".replace("self.", "")
            )


class RecurrentPolicy(nn.Module):
    """One policy: observations in, log-probabilities of all actions out."""

    def __init__(self, tree: TreeMDP, architecture: RecurrentArchitecture) -> None:
        super().__init__()
        observations = tree.branching + 1 if architecture.observes == "actions" else tree.num_states
        self.kind = CELLS[architecture.cell]
        self.cell = self.kind.weights(observations, architecture.width, dtype=torch.float64)
        self.head = nn.Linear(architecture.width, tree.branching, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(architecture.init_scale)

    def forward(self, levels: Sequence[Int[Tensor, " _"]]) -> tuple[Float[Tensor, " _"], ...]:
        """The log pi(action | state) at every state of the tree [nats], level by level, in the order of trajectories.

        Args:
            levels: what is observed at each state of a level.
        """
        memory: Memory = (self.cell.weight_hh.new_zeros(1, self.cell.hidden_size),) * self.kind.memories
        log_probs = []
        for observations in levels:
            from_input = self.cell.weight_ih.T[observations] + self.cell.bias_ih
            from_hidden = F.linear(memory[0], self.cell.weight_hh, self.cell.bias_hh)
            memory = self.kind.step(from_input, from_hidden, memory)
            log_probs.append(F.log_softmax(self.head(memory[0]), dim=-1).flatten())
            memory = tuple(part.repeat_interleave(self.head.out_features, dim=0) for part in memory)
        return tuple(log_probs)


class RecurrentPolicies(nn.Module):
    """Policies of one tree, one a seed, in the place of :class:`overopt.models.policy.Policy`.

    Weights of all seeds are stacked and run under ``torch.func.vmap``. A loss that is summed over seeds gives each
    seed its own gradient, and an optimiser that works by element (RMSprop, AdamW) updates each as if it were alone; the
    norm of the gradient must not be clipped, which would tie them together. All is float64: nothing here is large.

    Args:
        tree: whose trajectories are the responses.
        seeds: of the initial weights; a seed's policy does not depend on the others.
        architecture: shape of each.
    """

    def __init__(self, tree: TreeMDP, seeds: Sequence[int], architecture: RecurrentArchitecture) -> None:
        super().__init__()
        if not seeds:
            raise ValueError("need at least one seed")
        self.tree = tree
        self.num_seeds = len(seeds)
        single = []
        for seed in seeds:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(seed)
                single.append(RecurrentPolicy(tree, architecture))
        weights, _ = stack_module_state(single)
        self.weights = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(w) for name, w in weights.items()})
        # In a tuple, so that its weights, which nothing reads, are no parameters of this module.
        self._single = (single[0].to("meta"),)
        self._levels = tuple(_observations(tree, architecture.observes))
        #: Log-probability of every trajectory in the last forward pass, so that to record it costs no second one.
        self.latest: Float[Tensor, "seed trajectory"] = self.trajectory_log_probs()

    def forward(self, tokens: PackedTokens) -> Float[Tensor, " target"]:
        """Log-probability of each action of trajectories that are laid out as responses [nats].

        Args:
            tokens: every response a trajectory; as many for each seed, all of the first seed first.
        """
        actions = tokens.targets.view(self.num_seeds, -1, self.tree.depth)
        levels = self._log_probs()
        self.latest = self._totals(levels).detach()
        prefix = torch.zeros_like(actions[..., 0])
        of_actions = []
        for action, log_probs in zip(actions.unbind(dim=-1), levels, strict=True):
            prefix = prefix * self.tree.branching + action
            of_actions.append(log_probs.gather(1, prefix))
        return torch.stack(of_actions, dim=-1).flatten()

    @torch.no_grad()
    def trajectory_log_probs(self) -> Float[Tensor, "seed trajectory"]:
        """Log-probability of every trajectory under every policy [nats]."""
        return self._totals(self._log_probs())

    def _log_probs(self) -> tuple[Float[Tensor, "seed _"], ...]:
        """The log pi(action | state) at every state, level by level."""
        weights = {name.replace("/", "."): weight for name, weight in self.weights.items()}
        log_probs: tuple[Tensor, ...] = vmap(self._one)(weights)
        return log_probs

    def _one(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        log_probs: tuple[Tensor, ...] = functional_call(self._single[0], dict(weights), (self._levels,))
        return log_probs

    def _totals(self, levels: Sequence[Float[Tensor, "seed _"]]) -> Float[Tensor, "seed trajectory"]:
        totals = levels[0]
        for log_probs in levels[1:]:
            totals = totals.repeat_interleave(self.tree.branching, dim=1) + log_probs
        return totals


def _observations(tree: TreeMDP, observes: str) -> Iterator[Int[Tensor, " _"]]:
    """What is read at the states of each level: the action that led there (at the start none), or the state."""
    first = 0
    for level in range(tree.depth):
        states = torch.arange(tree.branching**level)
        if observes == "states":
            yield first + states
        else:
            yield states % tree.branching if level else torch.tensor([tree.branching])
        first += len(states)
