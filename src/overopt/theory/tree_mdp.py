"""The tree MDP of Fig. 6: a stand-in for text in which every response can be listed.

Actions are tokens, a state is the sequence of actions that led to it, a trajectory is a response, and the start state
is the only prompt. All trajectories have the same length; a leaf leads to the absorbing state whatever comes after.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

MAX_TRAJECTORIES = 100_000


@dataclass(frozen=True)
class TreeMDP:
    """A tree with the same number of actions at every state.

    States are numbered as in Fig. 6: s1 is the start, then level by level, children in the order of their actions.
    Trajectories are numbered in the order of their actions, from 0: (a0, a0, a0), (a0, a0, a1), ...

    Attributes:
        branching: actions at every state, at least 2.
        depth: actions of a trajectory, at least 1.

    Raises:
        ValueError: with fewer actions or no depth there is nothing to choose; or too many trajectories to list.

    >>> TreeMDP().num_trajectories
    27
    >>> TreeMDP().name(TreeMDP().trajectory("a1 a1 a0"))
    's1 a1 s3 a1 s9 a0'
    """

    branching: int = 3
    depth: int = 3

    def __post_init__(self) -> None:
        if self.branching < 2 or self.depth < 1:
            raise ValueError(
                f"a tree needs a branching of at least 2 and a depth of at least 1, got {self.branching=}, "
                f"{self.depth=}: with less it has one trajectory, and nothing to prefer".replace("self.", "")
            )
        # The logarithm first: a power of large numbers would not come back.
        if self.depth * np.log(self.branching) > np.log(MAX_TRAJECTORIES) + 1e-9:
            raise ValueError(
                f"a tree of branching {self.branching} and depth {self.depth} has {self.branching}^{self.depth} "
                f"trajectories; up to {MAX_TRAJECTORIES:,} can be listed"
            )

    @property
    def num_trajectories(self) -> int:
        """Leaves of the tree, hence trajectories."""
        return int(self.branching**self.depth)

    @cached_property
    def actions(self) -> Int[np.ndarray, "trajectory depth"]:
        """The actions of each trajectory."""
        return np.array(list(itertools.product(range(self.branching), repeat=self.depth)))

    @cached_property
    def states(self) -> Int[np.ndarray, "trajectory depth"]:
        """The number of the state in which each action is taken; 1 is the start."""
        states = np.ones_like(self.actions)
        for step in range(1, self.depth):
            states[:, step] = self.branching * (states[:, step - 1] - 1) + 2 + self.actions[:, step - 1]
        return states

    @property
    def num_states(self) -> int:
        """States in which an action is taken; the absorbing one is not among them."""
        return sum(self.branching**level for level in range(self.depth))

    def name(self, trajectory: int) -> str:
        """A trajectory as the paper writes it, without the absorbing state."""
        pairs = zip(self.states[trajectory], self.actions[trajectory], strict=True)
        return " ".join(f"s{state} a{action}" for state, action in pairs)

    def trajectory(self, text: str) -> int:
        """The number of a trajectory written as ``a1 a1 a0`` or, as in the paper, ``(s1, a1, s3, a1, s9, a0, s∞)``.

        Raises:
            ValueError: it isn't a trajectory of this tree.
        """
        steps = re.findall(r"[as]\d+", text)
        if re.sub(r"[as]\d+|s_?(∞|inf)|[(),\s>-]", "", text) or not steps:
            raise ValueError(f"{text!r} is no trajectory: write it as {self.name(0)!r} or {_actions_alone(self, 0)!r}")
        taken = [int(step[1:]) for step in steps if step[0] == "a"]
        if len(taken) != self.depth or max(taken) >= self.branching:
            raise ValueError(
                f"trajectory {text!r} is outside the tree: it takes {self.depth} actions, each one of "
                f"a0 to a{self.branching - 1}, such as {_actions_alone(self, 0)!r}"
            )
        number = int(np.ravel_multi_index(taken, (self.branching,) * self.depth))
        if any(step[0] == "s" for step in steps) and " ".join(steps) != self.name(number):
            raise ValueError(
                f"trajectory {text!r} is outside the tree: these actions lead through {self.name(number)!r}"
            )
        return number


@dataclass(frozen=True)
class TreePreference:
    """One trajectory preferred to another, by their numbers.

    Raises:
        ValueError: a trajectory would be preferred to itself.
    """

    chosen: int
    rejected: int

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise ValueError(
                f"trajectory {self.chosen} can't be preferred to itself: a preference needs two different ones"
            )


@dataclass(frozen=True)
class TreeData:
    """What is trained on: demonstrations for SFT, then preferences for alignment.

    Attributes:
        tree: the tree.
        demonstrations: numbers of trajectories, at least one.
        preferences: at least one.

    Raises:
        ValueError: there are none of either, or one is outside the tree.
    """

    tree: TreeMDP
    demonstrations: tuple[int, ...]
    preferences: tuple[TreePreference, ...]

    def __post_init__(self) -> None:
        if not self.demonstrations or not self.preferences:
            raise ValueError(
                f"need at least one demonstration and one preference, got {len(self.demonstrations)} and "
                f"{len(self.preferences)}"
            )
        used = [*self.demonstrations, *itertools.chain(*((p.chosen, p.rejected) for p in self.preferences))]
        if outside := [number for number in used if not 0 <= number < self.tree.num_trajectories]:
            raise ValueError(f"trajectory {outside[0]} is outside the tree, which has {self.tree.num_trajectories}")

    @classmethod
    def parse(cls, tree: TreeMDP, demonstrations: Sequence[str], preferences: Sequence[str]) -> "TreeData":
        """From text; a preference is ``CHOSEN > REJECTED``.

        Raises:
            ValueError: see :meth:`TreeMDP.trajectory`; or a preference is written otherwise.
        """
        pairs = []
        for preference in preferences:
            sides = preference.split(">")
            if len(sides) != 2:
                raise ValueError(f"preference {preference!r} is not written as 'CHOSEN > REJECTED'")
            chosen, rejected = map(tree.trajectory, sides)
            if chosen == rejected:
                raise ValueError(
                    f"preference {preference!r}: a trajectory can't be preferred to itself, name two different ones"
                )
            pairs.append(TreePreference(chosen, rejected))
        return cls(tree, tuple(map(tree.trajectory, demonstrations)), tuple(pairs))

    def classes(self) -> list[str]:
        """What each trajectory is to the data: ``chosen``, ``rejected``, ``demonstrated`` only, or ``unseen``.

        One that is chosen in a preference and rejected in another is ``chosen``.
        """
        classes = ["unseen"] * self.tree.num_trajectories
        for number in self.demonstrations:
            classes[number] = "demonstrated"
        for preference in self.preferences:
            classes[preference.rejected] = "rejected"
        for preference in self.preferences:
            classes[preference.chosen] = "chosen"
        return classes


def with_more_preferences(data: TreeData, number: int, *, seed: int) -> TreeData:
    """The same data with random preferences beside their own, all of which one reward explains.

    Each trajectory gets a reward from a standard normal distribution, those in the data's own preferences so that these
    hold; distinct pairs are drawn without replacement, and the higher reward is chosen.

    Args:
        data: whose preferences come first.
        number: of all preferences.
        seed: of rewards and pairs.

    Raises:
        ValueError: fewer than the data's own, or more than there are pairs.
    """
    own = data.preferences
    most = data.tree.num_trajectories * (data.tree.num_trajectories - 1) // 2
    if not len(own) <= number <= most:
        raise ValueError(f"the tree has {most} pairs, of which the data compare {len(own)}: can't have {number}")
    draws = np.random.default_rng(seed)
    rewards = draws.normal(size=data.tree.num_trajectories)
    for preference in own:
        if rewards[preference.chosen] < rewards[preference.rejected]:
            swapped = [preference.chosen, preference.rejected]
            rewards[swapped] = rewards[swapped[::-1]]
    known = {frozenset((p.chosen, p.rejected)) for p in own}
    pairs = [p for p in itertools.combinations(range(data.tree.num_trajectories), 2) if frozenset(p) not in known]
    drawn = [pairs[place] for place in draws.permutation(len(pairs))[: number - len(own)]]
    more = [TreePreference(*sorted(pair, key=lambda trajectory: -rewards[trajectory])) for pair in drawn]
    return TreeData(data.tree, data.demonstrations, (*own, *more))


def _actions_alone(tree: TreeMDP, trajectory: int) -> str:
    return " ".join(f"a{action}" for action in tree.actions[trajectory])


PAPER_DEMONSTRATIONS = ("s1 a0 s2 a0 s5 a0", "s1 a1 s3 a1 s9 a0", "s1 a2 s4 a2 s13 a2")
PAPER_PREFERENCES = ("s1 a1 s3 a1 s9 a0 > s1 a0 s2 a0 s5 a0",)


def tree_data(tree: TreeMDP, demonstrations: Sequence[str] | None, preferences: Sequence[str] | None) -> TreeData:
    """Data from text, App. E.1's where it is left out.

    Raises:
        ValueError: what :meth:`TreeData.parse` refuses, or something is left out on another tree than the paper's.
    """
    if tree != TreeMDP() and (demonstrations is None or preferences is None):
        raise ValueError(
            f"the paper's demonstrations and preference are for branching 3 and depth 3; for {tree.branching} and "
            f"{tree.depth} name them, such as --demonstrations {_actions_alone(tree, 0)!r} --preferences "
            f"'{_actions_alone(tree, tree.num_trajectories - 1)} > {_actions_alone(tree, 0)}'"
        )
    return TreeData.parse(
        tree,
        PAPER_DEMONSTRATIONS if demonstrations is None else demonstrations,
        PAPER_PREFERENCES if preferences is None else preferences,
    )


def paper_data() -> TreeData:
    """The three demonstrations and the one preference of App. E.1."""
    return tree_data(TreeMDP(), None, None)
