"""Policy -> completions on held-out prompts: drawn here or by a server, then rescored here as sampled."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from lightning.fabric.utilities import move_data_to_device

from overopt.data.datamodule import PreferenceDataModule
from overopt.data.packing import Packing
from overopt.data.splits import post_position
from overopt.data.tokenization import end_of_text_id, padding_id
from overopt.evaluation.records import Completion
from overopt.evaluation.sampler_agreement import SamplerAgreement, sampler_agreement
from overopt.metrics.kl import SequenceKL, SequenceKLEstimate, kl_k1, kl_k3, token_log_ratios
from overopt.models.generation import SampledResponse, sample_responses
from overopt.models.policy import Policy
from overopt.packed_tokens import PromptGroup


class EvaluationPrompt(NamedTuple):
    """A held-out prompt and the dataset's response that samples are judged against.

    Attributes:
        prompt_id: example id.
        post_id: its post; no two prompts share one.
        token_ids: the prompt.
        text: the same as text.
        opponent: the dataset's response.
    """

    prompt_id: str
    post_id: str
    token_ids: list[int]
    text: str
    opponent: str


def evaluation_prompts(data: PreferenceDataModule, num_prompts: int, opponent: str = "human") -> list[EvaluationPrompt]:
    """Held-out prompts, one a post, in the order of a hash of their posts.

    Args:
        data: set up, of any kind of examples.
        num_prompts: how many; fewer are an error, never silently less.
        opponent: ``human``, the response that people wrote, or ``preferred``, the chosen one of a held-out pair.

    Raises:
        ValueError: too few held-out posts, or an unknown opponent.
    """
    if opponent not in ("human", "preferred"):
        raise ValueError(f"unknown opponent {opponent!r}; one of human, preferred")
    if opponent == "human":
        demonstrations = data.held_out_demonstrations()
        rows = [
            (example.example_id, example.post_id, tokenized.prompt_ids, example.response)
            for example, tokenized in zip(demonstrations.examples, demonstrations.tokenized, strict=True)
        ]
    else:
        preferences = data.held_out_preferences()
        rows = [
            (example.example_id, example.post_id, tokenized.prompt_ids, example.chosen)
            for example, tokenized in zip(preferences.examples, preferences.tokenized, strict=True)
        ]
    by_post: dict[str, EvaluationPrompt] = {}
    for example_id, post_id, prompt_ids, response in rows:
        ids = prompt_ids.tolist()
        text = data.tokenizer.decode(ids, skip_special_tokens=True)
        by_post.setdefault(post_id, EvaluationPrompt(example_id, post_id, ids, text, response))
    if len(by_post) < num_prompts:
        raise ValueError(
            f"{num_prompts} evaluation prompts wanted, {len(by_post)} held-out posts found: ask for fewer prompts "
            "or hold out a larger share of the posts"
        )
    ordered = sorted(by_post.values(), key=lambda p: (post_position("evaluation " + p.post_id), p.prompt_id))
    return ordered[:num_prompts]


@runtime_checkable
class Sampler(Protocol):
    """Draws a response to each prompt from a policy's own distribution: temperature 1, nothing cut from it."""

    def __call__(
        self,
        policy: Policy,
        prompts: Sequence[EvaluationPrompt],
        *,
        max_response_tokens: int,
        seed: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[SampledResponse]:
        """One response per prompt, in their order.

        Args:
            policy: what is sampled from.
            prompts: held-out prompts.
            max_response_tokens: length limit, the end of text included.
            seed: fixes the draws of each prompt.
            on_batch: told how many more prompts are done.
        """
        ...


def sample_here(
    policy: Policy,
    prompts: Sequence[EvaluationPrompt],
    *,
    max_response_tokens: int,
    seed: int,
    on_batch: Callable[[int], None] | None = None,
    batch_size: int = 256,
) -> list[SampledResponse]:
    """The :class:`Sampler` of this process; ``batch_size`` prompts side by side."""
    return sample_responses(
        policy.causal_lm,
        [prompt.token_ids for prompt in prompts],
        eos_token_id=end_of_text_id(policy.tokenizer),
        max_response_tokens=max_response_tokens,
        seed=seed,
        batch_size=batch_size,
        on_batch=on_batch,
    )


class RescoredCompletions(NamedTuple):
    """Completions of one policy, and what they say of its distance from the reference.

    Attributes:
        completions: one a prompt.
        kl: of the policy from the reference.
        agreement: of a server's log-probabilities with ours; ``None`` where it gave none, or none drew the samples.
    """

    completions: list[Completion]
    kl: SequenceKLEstimate
    agreement: SamplerAgreement | None


def rescore(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[EvaluationPrompt],
    sampled: Sequence[SampledResponse],
    *,
    packing: Packing,
) -> RescoredCompletions:
    """Completions out of sampled token ids, their log-probabilities computed here, in float32, by the code that trains.

    Whoever drew the samples, these are the numbers that count: a serving engine computes in another precision, and
    a log-ratio is a small difference of large numbers.

    Args:
        policy: what was sampled from.
        reference: what it is compared with; may be the policy itself.
        prompts: held-out prompts.
        sampled: a response to each.
        packing: how samples go through the model.
    """
    groups = [
        PromptGroup.of(prompt.token_ids, sample.token_ids) for prompt, sample in zip(prompts, sampled, strict=True)
    ]
    kl = SequenceKL(sync_on_compute=False)  # other processes of a training may have no samples
    completions: list[Completion | None] = [None] * len(prompts)
    log_probs: list[list[float]] = [[]] * len(prompts)
    for places, tokens in packing.batches(groups, padding_id(policy.tokenizer)):
        on_device = move_data_to_device(tokens, policy.causal_lm.device)
        with torch.inference_mode():
            of_tokens, of_reference = policy(on_device).cpu(), reference(on_device).cpu()
        policy_log_probs, reference_log_probs = tokens.padded(of_tokens), tokens.padded(of_reference)
        mask = tokens.mask()
        kl.update(policy_log_probs, reference_log_probs, mask)
        ratios = token_log_ratios(policy_log_probs, reference_log_probs, mask)
        k1, k3 = kl_k1(ratios), kl_k3(ratios)
        policy_totals = tokens.sums(of_tokens.double())
        for row, place in enumerate(places):
            prompt, sample = prompts[place], sampled[place]
            log_probs[place] = policy_log_probs[row, mask[row]].tolist()
            completions[place] = Completion(
                prompt_id=prompt.prompt_id,
                prompt=prompt.text,
                response=policy.tokenizer.decode(sample.token_ids, skip_special_tokens=True),
                token_ids=sample.token_ids,
                finished=sample.finished,
                policy_log_prob=float(policy_totals[row]),
                reference_log_prob=float(policy_totals[row] - k1[row]),
                k3=float(k3[row]),
                opponent=prompt.opponent,
            )
    theirs = [sample.log_probs for sample in sampled]
    return RescoredCompletions(
        [c for c in completions if c is not None], kl.compute(), sampler_agreement(theirs, log_probs)
    )
