"""What flows through the data stage: examples on the way in, batches on the way out."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from overopt.packed_tokens import PackedTokens


@dataclass(frozen=True)
class Prompt:
    r"""A prompt as text, split so that what may be cut is known.

    Attributes:
        prefix: text before the post; the whole prompt where there is no post.
        post: the only part that may be cut when the prompt is too long; ``None`` where nothing may be.
        suffix: text after the post, such as ``"\n\nTL;DR:"``; never cut.
    """

    prefix: str
    post: str | None = None
    suffix: str = ""

    @property
    def text(self) -> str:
        """The prompt uncut."""
        return self.prefix + (self.post or "") + self.suffix


@dataclass(frozen=True)
class Demonstration:
    """A prompt with the response a person wrote: what SFT imitates and a sample is judged against.

    Attributes:
        example_id: unique within its source.
        post_id: what splits are made by; examples of one post share it.
        prompt: the prompt.
        response: starts with one space, is not empty, has no end-of-text mark.
        split: the published split it comes from, such as ``train``; ``None`` where the data names none.
    """

    example_id: str
    post_id: str
    prompt: Prompt
    response: str
    split: str | None = None


@dataclass(frozen=True)
class PreferenceExample:
    """A labelled pair of responses; fields as in :class:`Demonstration`."""

    example_id: str
    post_id: str
    prompt: Prompt
    chosen: str
    rejected: str
    split: str | None = None


class PreferenceBatch(NamedTuple):
    """Labelled pairs: responses 2i and 2i + 1 are the chosen and the rejected one of pair i.

    Attributes:
        tokens: prompts and responses.
        reference_log_probs: log pi_ref of chosen and rejected response, summed over tokens [nats]; NaN where no
            reference has been attached (reward modelling needs none).
    """

    tokens: PackedTokens
    reference_log_probs: Float[Tensor, "pair 2"]


class SampledBatch(NamedTuple):
    """Responses that a policy drew, and what is known of them; constants, no gradient goes through them.

    Attributes:
        tokens: prompts and responses.
        advantages: of each response, relative to others to its prompt.
        drawn_log_probs: of each token under the policy that drew it [nats].
        reference_log_probs: of each token under the reference [nats].
        proxy_rewards: what the policy is optimised against.
        gold_rewards: of a reward model that is only watched; ``None`` without one.
        unfinished: 1 where the length limit came before the end of text, else 0.
    """

    tokens: PackedTokens
    advantages: Float[Tensor, " response"]
    drawn_log_probs: Float[Tensor, " target"]
    reference_log_probs: Float[Tensor, " target"]
    proxy_rewards: Float[Tensor, " response"]
    gold_rewards: Float[Tensor, " response"] | None
    unfinished: Float[Tensor, " response"]

    def log_ratios(self) -> Float[Tensor, " response"]:
        """Nats by which each response is likelier than under the reference, for the policy that drew it."""
        return self.tokens.sums(self.drawn_log_probs - self.reference_log_probs)


class StepBatch(NamedTuple):
    """One rank's share of one optimiser step.

    Attributes:
        micro_batches: what goes through the model at a time.
        scales: 1 for each micro-batch; 0 for a filler, which keeps ranks in step where a last batch does
            not divide among them.
        num_examples: examples of the step over all ranks: what the summed losses are divided by.
        num_tokens: what the step costs, over all ranks, in the sense of :class:`overopt.checkpoints.cost.Cost`.
    """

    micro_batches: tuple[PackedTokens | PreferenceBatch | SampledBatch, ...]
    scales: tuple[float, ...]
    num_examples: int
    num_tokens: int = 0


class EvaluationBatch(NamedTuple):
    """Held-out examples that go through the model together.

    Attributes:
        examples: demonstrations, or labelled pairs.
        counts: false for a filler, which keeps ranks in step and is seen by another rank, or in another batch.
    """

    examples: PackedTokens | PreferenceBatch
    counts: bool
