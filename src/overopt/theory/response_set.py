"""A finite response set: all responses that its prompts have, their reference probabilities, and the preferences.

The tree's trajectories are one; small sets from files are others. Entries are numbered through all prompts: they are
the coordinates of the paper's single vector of size |X x Y| (Sec. 4).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from overopt.data.sources.rows import JSON_LINES, Row, read_rows
from overopt.theory.tree_mdp import TreeData

# Null spaces are dense matrices of this size squared.
MAX_RESPONSES = 1000
# Probabilities are written by hand with few digits.
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class ResponseSet:
    """Prompts, all their responses, and what is known of them.

    Attributes:
        prompts: texts or names.
        responses: texts or names, one an entry.
        prompt_of: number of the prompt of each entry.
        reference: probability of each entry under the reference, above 0; 1 in sum over each prompt.
        chosen: entry preferred in each preference.
        rejected: entry of the same prompt that it is preferred to.
        demonstrated: entries that are in the data otherwise.

    Raises:
        ValueError: there are no preferences or too many entries; or a preference or a reference isn't as said above.
    """

    prompts: tuple[str, ...]
    responses: tuple[str, ...]
    prompt_of: Int[np.ndarray, " response"]
    reference: Float[np.ndarray, " response"]
    chosen: Int[np.ndarray, " pair"]
    rejected: Int[np.ndarray, " pair"]
    demonstrated: Bool[np.ndarray, " response"]

    def __post_init__(self) -> None:
        if len(self.responses) > MAX_RESPONSES:
            raise ValueError(
                f"{len(self.responses):,} responses; null spaces are computed for up to {MAX_RESPONSES:,}: "
                "take a smaller tree or fewer prompts"
            )
        if not len(self.chosen):
            raise ValueError("no preference: with none there is nothing to be fitted")
        if not (np.isfinite(self.reference) & (self.reference > 0)).all():
            raise ValueError("reference probabilities must be above 0: elsewhere log pi/pi_ref is not defined")
        totals = np.bincount(self.prompt_of, self.reference, minlength=len(self.prompts))
        if (off := np.abs(totals - 1) > SUM_TOLERANCE).any():
            place = int(np.argmax(off))
            raise ValueError(
                f"reference probabilities of prompt {self.prompts[place]!r} sum to {totals[place]:.8g}; expected 1: "
                "list every response of a prompt"
            )
        if (self.chosen == self.rejected).any():
            raise ValueError("a response can't be preferred to itself: a preference needs two different ones")
        if (self.prompt_of[self.chosen] != self.prompt_of[self.rejected]).any():
            raise ValueError("a preference is between two responses to the same prompt")

    @property
    def num_prompts(self) -> int:
        """Prompts."""
        return len(self.prompts)

    @property
    def num_responses(self) -> int:
        """Entries of all prompts: columns of the query matrix."""
        return len(self.responses)

    @property
    def num_preferences(self) -> int:
        """Preferences, repeated ones included: rows of the query matrix."""
        return len(self.chosen)

    @cached_property
    def log_reference(self) -> Float[np.ndarray, " response"]:
        """Log probabilities under the reference [nats], normalised to rounding."""
        return normalised(np.log(self.reference), self.prompt_of, self.num_prompts)

    @cached_property
    def compared(self) -> Bool[np.ndarray, " response"]:
        """Entries in a preference."""
        compared = np.zeros(self.num_responses, dtype=bool)
        compared[self.chosen] = compared[self.rejected] = True
        return compared

    @cached_property
    def unseen(self) -> Bool[np.ndarray, " response"]:
        """Out-of-distribution entries: in no preference and not demonstrated."""
        return np.asarray(~(self.compared | self.demonstrated))

    @cached_property
    def components(self) -> "Components":
        """Connected components of the graph whose edges are the preferences."""
        edges = coo_array(
            (np.ones(self.num_preferences), (self.chosen, self.rejected)), shape=(self.num_responses,) * 2
        )
        number, label = connected_components(edges, directed=False)
        prompt_of = np.zeros(number, dtype=int)
        prompt_of[label] = self.prompt_of
        return Components(label.astype(int), prompt_of)

    def ood_mass(self, log_policy: Float[np.ndarray, " response"]) -> float:
        """Probability of an unseen response [fraction], mean over prompts.

        Args:
            log_policy: log probabilities, normalised over each prompt [nats].
        """
        return float(np.exp(log_policy[self.unseen]).sum() / self.num_prompts)


@dataclass(frozen=True, eq=False)
class Components:
    """Which responses are tied together by preferences; one that is in none is a component of its own.

    Attributes:
        label: number of the component of each entry.
        prompt_of: number of the prompt of each component.
    """

    label: Int[np.ndarray, " response"]
    prompt_of: Int[np.ndarray, " component"]

    @property
    def number(self) -> int:
        """Components of all prompts."""
        return len(self.prompt_of)


def group_logsumexp(
    values: Float[np.ndarray, " entry"], group: Int[np.ndarray, " entry"], num_groups: int
) -> Float[np.ndarray, " group"]:
    """Log sum exp over each group; a group without entries, or with -inf only, has -inf."""
    largest = np.full(num_groups, -np.inf)
    np.maximum.at(largest, group, values)
    shift = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(shift + np.log(np.bincount(group, np.exp(values - shift[group]), minlength=num_groups)))


def normalised(
    log_weights: Float[np.ndarray, " entry"], group: Int[np.ndarray, " entry"], num_groups: int
) -> Float[np.ndarray, " entry"]:
    """Log probabilities that sum to one over each group."""
    return np.asarray(log_weights - group_logsumexp(log_weights, group, num_groups)[group])


def tree_response_set(data: TreeData, *, demonstration_mass: float = 0.0) -> ResponseSet:
    """The trajectories of a tree, the start state as the only prompt.

    Args:
        data: demonstrations and preferences.
        demonstration_mass: the reference is a mixture of the demonstrations, with this weight, and of all
            trajectories, each part uniform: 0 is the uniform policy, near 1 an SFT policy that fits its few
            demonstrations well.

    Raises:
        ValueError: the weight is not in [0, 1): at 1 most trajectories would have no probability.
    """
    if not 0 <= demonstration_mass < 1:
        raise ValueError(
            f"need 0 <= demonstration mass < 1, got {demonstration_mass}: the reference must give every trajectory "
            "some probability"
        )
    number = data.tree.num_trajectories
    demonstrated = np.zeros(number, dtype=bool)
    demonstrated[list(data.demonstrations)] = True
    if number > MAX_RESPONSES:
        raise ValueError(
            f"{number:,} trajectories; null spaces are computed for up to {MAX_RESPONSES:,}: take a smaller tree"
        )
    return ResponseSet(
        prompts=("s1",),
        responses=tuple(map(data.tree.name, range(number))),
        prompt_of=np.zeros(number, dtype=int),
        reference=(1 - demonstration_mass) / number + demonstration_mass * demonstrated / demonstrated.sum(),
        chosen=np.array([preference.chosen for preference in data.preferences]),
        rejected=np.array([preference.rejected for preference in data.preferences]),
        demonstrated=demonstrated,
    )


def read_response_set(paths: Iterable[Path]) -> ResponseSet:
    """From JSON Lines files of two kinds of rows, in any order and any number of files.

    ``{"prompt", "response", "reference_probability"}``, with ``"demonstration": true`` where the response was in the
    data otherwise; and ``{"prompt", "chosen", "rejected"}``.

    Raises:
        ValueError: a row is malformed (names file, line and key), a response is listed twice or not at all, or see
            :class:`ResponseSet`.
    """
    listed: dict[tuple[str, str], tuple[float, bool]] = {}
    pairs: list[tuple[Row, str, str, str]] = []
    for path in paths:
        for row in read_rows(path, JSON_LINES):
            prompt = row.text("prompt")
            if "chosen" in row or "rejected" in row:
                pairs.append((row, prompt, row.text("chosen"), row.text("rejected")))
                continue
            if "response" not in row:
                raise ValueError(
                    f"{row.place}: expected a response (keys 'response' and 'reference_probability') or a preference "
                    f"(keys 'chosen' and 'rejected'); keys found: {', '.join(map(repr, row.fields))}"
                )
            entry = (prompt, row.text("response"))
            if entry in listed:
                raise ValueError(f"{row.place}: response {entry[1]!r} of prompt {prompt!r} is listed twice")
            listed[entry] = (_probability(row), _flag(row, "demonstration"))
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in listed))}
    entries = {entry: number for number, entry in enumerate(listed)}
    for row, prompt, chosen, rejected in pairs:
        if chosen == rejected:
            raise ValueError(f"{row.place}: chosen and rejected are the same, a preference needs two different ones")
        for side, response in (("chosen", chosen), ("rejected", rejected)):
            if (prompt, response) not in entries:
                raise ValueError(
                    f"{row.place}: the {side} response {response!r} is none that prompt {prompt!r} has: list it with "
                    "its reference_probability"
                )
    return ResponseSet(
        prompts=tuple(prompts),
        responses=tuple(response for _, response in listed),
        prompt_of=np.array([prompts[prompt] for prompt, _ in listed], dtype=int),
        reference=np.array([probability for probability, _ in listed.values()], dtype=float),
        chosen=np.array([entries[prompt, chosen] for _, prompt, chosen, _ in pairs], dtype=int),
        rejected=np.array([entries[prompt, rejected] for _, prompt, _, rejected in pairs], dtype=int),
        demonstrated=np.array([demonstrated for _, demonstrated in listed.values()], dtype=bool),
    )


def _probability(row: Row) -> float:
    value = row.value("reference_probability")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and 0 < value <= 1):
        raise ValueError(f"{row.place}: 'reference_probability' must be above 0 and at most 1, found {value!r}")
    return float(value)


def _flag(row: Row, key: str) -> bool:
    value = row.fields.get(key)
    if not isinstance(value, bool | None):
        raise ValueError(f"{row.place}: {key!r} must be true or false, found {value!r}")
    return bool(value)
