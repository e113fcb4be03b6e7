"""A policy beside its reference, at each token of responses to labelled prompts: rows of a table."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from overopt.data.datamodule import PreferenceDataModule
from overopt.data.example_sets import PreferenceSet
from overopt.data.splits import post_position
from overopt.data.tokenization import end_of_text_id, padding_id
from overopt.evaluation.sampling import EvaluationPrompt, sample_here
from overopt.models.log_probs import response_logits
from overopt.models.policy import Policy
from overopt.packed_tokens import PackedTokens, PromptGroup, TokenIds
from overopt.theory.token_q_values import (
    TokenValues,
    seen_tokens,
    token_values,
    unseen_share,
    value_above_max_q,
    value_above_mean,
    value_below_max,
    values_at_fixed_q,
    values_at_fixed_reward,
)

ResponseKind = Literal["chosen", "rejected", "sampled"]
Part = Literal["train", "evaluation"]
BETA_FACTORS = tuple(10.0 ** (exponent / 4) for exponent in range(-8, 9))
"""Other prices that V is taken at, as multiples of the policy's own."""
LOGITS_MIB = 16.0  # float64, and several tensors of that size at a time


class LabelledPrompt(NamedTuple):
    """A prompt with its labelled responses as token ids.

    Attributes:
        prompt: what is sampled on.
        chosen: of one pair.
        rejected: of the same pair.
        labelled: all responses that some pair of the part gives to this prompt.
    """

    prompt: EvaluationPrompt
    chosen: TokenIds
    rejected: TokenIds
    labelled: tuple[TokenIds, ...]


def labelled_prompts(data: PreferenceDataModule, part: Part, num_prompts: int) -> list[LabelledPrompt]:
    """Prompts of a part, one a post, in the order of a hash of their posts.

    Args:
        data: set up, of preferences.
        part: ``train``, what the policy was trained on, or ``evaluation``, what was held out.
        num_prompts: how many; fewer are an error, never silently less.

    Raises:
        ValueError: too few posts, or a prompt without tokens.
    """
    pairs = data.train_set if part == "train" else data.evaluation_set
    if not isinstance(pairs, PreferenceSet):
        raise ValueError("soft values are taken on labelled pairs, and this data holds demonstrations")
    labelled: dict[bytes, dict[bytes, TokenIds]] = {}
    first_of_post: dict[str, int] = {}
    for place, (example, row) in enumerate(zip(pairs.examples, pairs.tokenized, strict=True)):
        first_of_post.setdefault(example.post_id, place)
        known = labelled.setdefault(row.prompt_ids.tobytes(), {})
        known |= {ids.tobytes(): ids for ids in (row.chosen_ids, row.rejected_ids)}
    if len(first_of_post) < num_prompts:
        raise ValueError(
            f"{num_prompts} prompts wanted, {len(first_of_post)} posts with labelled pairs found in part {part}: "
            "ask for fewer with --num-prompts"
        )
    posts = sorted(first_of_post, key=lambda post: (post_position("evaluation " + post), post))[:num_prompts]
    chosen_prompts = []
    for post in posts:
        example, row = pairs.examples[first_of_post[post]], pairs.tokenized[first_of_post[post]]
        ids = row.prompt_ids.tolist()
        if not ids:
            raise ValueError(f"the prompt of {example.example_id!r} has no token, so nothing predicts its response")
        text = data.tokenizer.decode(ids, skip_special_tokens=True)
        prompt = EvaluationPrompt(example.example_id, post, ids, text, example.chosen)
        responses = tuple(labelled[row.prompt_ids.tobytes()].values())
        chosen_prompts.append(LabelledPrompt(prompt, row.chosen_ids, row.rejected_ids, responses))
    return chosen_prompts


class Measurements(NamedTuple):
    """What one policy gave.

    Attributes:
        tokens: a row a token of each response.
        curves: a row a prompt, response and other beta: V at that price, averaged over the response's states; empty
            unless asked for.
    """

    tokens: pd.DataFrame
    curves: pd.DataFrame


class TokenMeasurer:
    """Measures policies of one reference on the same prompts.

    Args:
        data: set up, of the preferences that the policies were trained on.
        reference: the frozen policy.
        part: where prompts come from.
        num_prompts: one a post.
        responses: which kinds.
        gauge: a name in :data:`overopt.theory.token_q_values.GAUGES`.
        seed: fixes the draws, for all policies alike.
    """

    def __init__(
        self,
        data: PreferenceDataModule,
        reference: Policy,
        *,
        part: Part = "train",
        num_prompts: int = 64,
        responses: Sequence[ResponseKind] = ("chosen", "rejected", "sampled"),
        gauge: str = "sparse",
        seed: int = 0,
    ) -> None:
        self.reference = reference.eval()
        self.prompts = labelled_prompts(data, part, num_prompts)
        self._data = data
        self._kinds = tuple(responses)
        self._gauge = gauge
        self._seed = seed
        tokenizer = data.tokenizer
        self._end, self._padding = end_of_text_id(tokenizer), padding_id(tokenizer)
        self._texts: dict[int, str] = {}

    def measure(
        self,
        policy: Policy,
        beta: float,
        on_prompts: Callable[[int], None] = lambda number: None,
        *,
        other_betas: Sequence[float] = (),
    ) -> Measurements:
        """Soft values at each token of each response.

        Args:
            policy: may be the reference itself, whose log-ratios are 0.
            beta: price of divergence that it was trained at [reward / nat].
            on_prompts: told how many more prompts are done.
            other_betas: prices to take V at too, which costs several times the rest [reward / nat].

        Raises:
            ValueError: the policy's log-probabilities are not numbers.
        """
        policy.eval()
        groups = [PromptGroup(np.asarray(p.prompt.token_ids, np.int32), r) for p, r in self._responses(policy)]
        tokens: list[list[pd.DataFrame]] = [[] for _ in groups]  # by prompt: passes take them by length
        curves: list[pd.DataFrame] = []
        for places, packed in self._data.packing.batches(groups, self._padding):
            of_batch = [(place, response) for place in places for response in groups[place].responses]
            seen = [s for place, response in of_batch for s in seen_tokens(response, self.prompts[place].labelled)]
            states = self._states(policy, packed, seen, beta, other_betas)
            lengths = packed.lengths().tolist()
            by_response = {name: values.split(lengths) for name, values in states.items()}
            for number, (place, response) in enumerate(of_batch):
                of_response = {name: values[number] for name, values in by_response.items()}
                prompt_id, kind = self.prompts[place].prompt.prompt_id, self._kinds[number % len(self._kinds)]
                key = {"prompt_id": prompt_id, "response": kind}
                tokens[place].append(self._token_rows(key, response, of_response, beta))
                if other_betas:
                    curves.append(_curve_rows(key, of_response, other_betas))
            on_prompts(len(places))
        table = pd.concat([rows for of_prompt in tokens for rows in of_prompt], ignore_index=True)
        if not np.isfinite(table[["log_prob", "reference_log_prob"]].to_numpy()).all():
            raise ValueError("log-probabilities are not finite numbers: its training has diverged")
        return Measurements(table, pd.concat(curves, ignore_index=True) if curves else pd.DataFrame())

    def _responses(self, policy: Policy) -> list[tuple[LabelledPrompt, tuple[TokenIds, ...]]]:
        sampled = self._reference_samples if policy is self.reference else self._samples(policy)
        kinds: Mapping[str, Sequence[TokenIds]] = {
            "chosen": [prompt.chosen for prompt in self.prompts],
            "rejected": [prompt.rejected for prompt in self.prompts],
            "sampled": sampled,
        }
        rows = zip(*(kinds[kind] for kind in self._kinds), strict=True)
        return list(zip(self.prompts, rows, strict=True))

    @cached_property
    def _reference_samples(self) -> list[TokenIds]:
        return self._samples(self.reference)

    def _samples(self, policy: Policy) -> list[TokenIds]:
        if "sampled" not in self._kinds:
            return []
        prompts = [prompt.prompt for prompt in self.prompts]
        limit = self._data.max_response_tokens
        drawn = sample_here(policy, prompts, max_response_tokens=limit, seed=self._seed)
        return [np.asarray(sample.token_ids, np.int32) for sample in drawn]

    def _states(
        self,
        policy: Policy,
        packed: PackedTokens,
        seen: Sequence[set[int]],
        beta: float,
        other_betas: Sequence[float],
    ) -> dict[str, Tensor]:
        """Everything that needs the whole vocabulary, for each state of a batch, on the CPU."""
        tokens = move_data_to_device(packed, policy.causal_lm.device)
        chunks = response_logits(policy.causal_lm, tokens, logits_mib=LOGITS_MIB)
        is_reference = policy is self.reference
        others = chunks if is_reference else response_logits(self.reference.causal_lm, tokens, logits_mib=LOGITS_MIB)
        parts: list[dict[str, Tensor]] = []
        for part, logits in chunks:
            reference_logits = logits if is_reference else next(others).logits
            mask = _mask(seen[part], logits)
            parts.append(measure_states(logits, reference_logits, tokens.targets[part], mask, beta, other_betas))
        of_chunks = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
        return of_chunks | {"prefix_seen": torch.tensor([bool(tokens) for tokens in seen])}

    def _token_rows(
        self, key: dict[str, str], response: TokenIds, states: Mapping[str, Tensor], beta: float
    ) -> pd.DataFrame:
        values: TokenValues = token_values(
            states["log_prob"],
            states["reference_log_prob"],
            states["log_normaliser"],
            beta=beta,
            finished=int(response[-1]) == self._end,
            gauge=self._gauge,
        )
        columns = {
            "log_prob": states["log_prob"],
            "reference_log_prob": states["reference_log_prob"],
            "q_value": values.q_values,
            "value": values.values,
            "next_value": values.next_values,
            "reward": values.rewards,
            **{name: states[name] for name in STATE_COLUMNS},
        }
        return pd.DataFrame(
            {
                **key,
                "position": np.arange(len(response)),
                "token_id": response,
                "token": [self._text(int(token)) for token in response],
                **{name: column.numpy() for name, column in columns.items()},
            }
        )

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = str(self._data.tokenizer.decode([token]))
        return self._texts[token]


STATE_COLUMNS = (
    "prefix_seen",
    "unseen_share",
    "reference_unseen_share",
    "optimism",
    "headroom",
    "value_above_max_q",
)
_CURVES = ("at_fixed_reward", "at_fixed_q")


def measure_states(
    logits: Float[Tensor, "state vocabulary"],
    reference_logits: Float[Tensor, "state vocabulary"],
    taken: Int[Tensor, " state"],
    seen: Bool[Tensor, "state vocabulary"],
    beta: float,
    other_betas: Sequence[float],
) -> dict[str, Tensor]:
    """All quantities of states that take the whole vocabulary to know, in float64.

    Args:
        logits: the policy's.
        reference_logits: the reference's; the same tensor where it is read itself.
        taken: the token that the response takes.
        seen: the tokens that labelled responses take after the same prefix.
        beta: price of divergence [reward / nat].
        other_betas: other prices to take V at.
    """
    with torch.inference_mode():
        log_normalisers = logits.double().logsumexp(dim=1)
        log_probs = logits.double() - log_normalisers[:, None]
        # One and the same where the reference is read: its log-ratios are 0, and not nearly so.
        reference = log_probs if reference_logits is logits else reference_logits.double().log_softmax(dim=1)
        states = {
            "log_prob": log_probs.gather(1, taken[:, None]).squeeze(1),
            "reference_log_prob": reference.gather(1, taken[:, None]).squeeze(1),
            "log_normaliser": log_normalisers,
            "unseen_share": unseen_share(log_probs, seen),
            "reference_unseen_share": unseen_share(reference, seen),
            "optimism": value_above_mean(log_probs, reference, beta),
            "headroom": value_below_max(log_probs, reference, beta),
            "value_above_max_q": value_above_max_q(log_probs, beta),
        }
        if other_betas:
            states["at_fixed_reward"] = values_at_fixed_reward(log_probs, reference, beta, other_betas)
            states["at_fixed_q"] = values_at_fixed_q(log_probs, beta, other_betas)
        return states


def _mask(seen: Sequence[set[int]], logits: Float[Tensor, "state vocabulary"]) -> Bool[Tensor, "state vocabulary"]:
    mask = torch.zeros(logits.shape, dtype=torch.bool)
    rows = [row for row, tokens in enumerate(seen) for _ in tokens]
    mask[rows, [token for tokens in seen for token in tokens]] = True
    return mask.to(logits.device)


def _curve_rows(key: dict[str, str], states: Mapping[str, Tensor], betas: Sequence[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **key,
            "other_beta": betas,
            **{name: states[name].mean(dim=0).numpy() for name in _CURVES},
            # What V at fixed reward comes from as the price goes to 0; towards infinity it goes to 0.
            "at_fixed_reward_limit": float((states["optimism"] + states["headroom"]).mean()),
        }
    )
