"""Policy -> completions on held-out prompts, rescored as sampled."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from overopt.data.datamodule import PreferenceDataModule
from overopt.data.splits import post_position
from overopt.data.tokenization import (
    TokenizedDemonstration,
    collate_demonstrations,
    end_of_text_id,
    padding_id,
)
from overopt.evaluation.records import Completion
from overopt.metrics.kl import SequenceKL, SequenceKLEstimate, kl_k1, kl_k3, token_log_ratios
from overopt.models.generation import sample_responses
from overopt.models.policy import Policy


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


class SampledCompletions(NamedTuple):
    """Completions of one policy, and what they say of its distance from the reference."""

    completions: list[Completion]
    kl: SequenceKLEstimate


def sample_completions(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[EvaluationPrompt],
    *,
    max_response_tokens: int,
    seed: int,
    batch_size: int = 256,
    on_batch: Callable[[int], None] | None = None,
) -> SampledCompletions:
    """Sample one response per prompt at temperature 1 and rescore the sampled token ids in float32.

    Args:
        policy: what is sampled from.
        reference: what it is compared with; may be the policy itself.
        prompts: held-out prompts.
        max_response_tokens: length limit, the end of text included.
        seed: fixes the draws of each prompt.
        batch_size: prompts at a time.
        on_batch: told after each sampled batch how many prompts it had.
    """
    end = end_of_text_id(policy.tokenizer)
    sampled = sample_responses(
        policy.causal_lm,
        [prompt.token_ids for prompt in prompts],
        eos_token_id=end,
        max_response_tokens=max_response_tokens,
        seed=seed,
        batch_size=batch_size,
        on_batch=on_batch,
    )
    kl = SequenceKL()
    completions: list[Completion] = []
    for first in range(0, len(prompts), batch_size):
        chunk = list(zip(prompts[first : first + batch_size], sampled[first : first + batch_size], strict=True))
        batch = collate_demonstrations(
            [
                TokenizedDemonstration(
                    prompt.prompt_id,
                    np.asarray(prompt.token_ids, np.int32),
                    np.asarray(sample.token_ids, np.int32),
                )
                for prompt, sample in chunk
            ],
            padding_id(policy.tokenizer),
        )
        with torch.inference_mode():
            device = policy.causal_lm.device
            inputs = batch.input_ids.to(device), batch.response_mask.to(device)
            policy_log_probs, reference_log_probs = policy(*inputs).cpu(), reference(*inputs).cpu()
        kl.update(policy_log_probs, reference_log_probs, batch.response_mask)
        ratios = token_log_ratios(policy_log_probs, reference_log_probs, batch.response_mask)
        k1, k3 = kl_k1(ratios), kl_k3(ratios)
        policy_totals = policy_log_probs.double().sum(dim=1)
        for row, (prompt, sample) in enumerate(chunk):
            completions.append(
                Completion(
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
            )
    return SampledCompletions(completions, kl.compute())
