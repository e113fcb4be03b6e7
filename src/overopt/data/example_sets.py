"""Examples of one split, tokenised, ready to be packed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from overopt.data.packing import Packing
from overopt.data.schema import Demonstration, PreferenceBatch, PreferenceExample
from overopt.data.tokenization import TokenizationCounts, TokenizedDemonstration, TokenizedPreference
from overopt.packed_tokens import PackedTokens


@dataclass
class DemonstrationSet:
    """Demonstrations of one split as text and as token ids, in one order.

    Attributes:
        examples: as the source gave them.
        tokenized: the same as token ids.
        counts: what tokenising cut.
        packing: how they become tensors.
        lengths: of each example as it goes through the model [tokens].
        padding: token id written into padding.
    """

    examples: Sequence[Demonstration]
    tokenized: Sequence[TokenizedDemonstration]
    counts: TokenizationCounts
    packing: Packing
    lengths: Sequence[int]
    padding: int

    def __len__(self) -> int:
        return len(self.tokenized)

    def collate(self, indices: Sequence[int]) -> PackedTokens:
        """The examples at these places as one batch."""
        return self.packing.pack([self.tokenized[i].group for i in indices], self.padding)


@dataclass
class PreferenceSet:
    """Labelled pairs of one split as text and as token ids, in one order.

    Attributes:
        examples: as the source gave them.
        tokenized: the same as token ids.
        counts: what tokenising cut.
        packing: how they become tensors.
        lengths: of each example as it goes through the model [tokens].
        padding: token id written into padding.
        reference_log_probs: of chosen and rejected responses, once a reference has been attached [nats].
    """

    examples: Sequence[PreferenceExample]
    tokenized: Sequence[TokenizedPreference]
    counts: TokenizationCounts
    packing: Packing
    lengths: Sequence[int]
    padding: int
    reference_log_probs: Float[np.ndarray, "pair 2"] | None = None

    def __len__(self) -> int:
        return len(self.tokenized)

    def collate(self, indices: Sequence[int]) -> PreferenceBatch:
        """The pairs at these places as one batch."""
        tokens = self.packing.pack([self.tokenized[i].group for i in indices], self.padding)
        if self.reference_log_probs is None:
            return PreferenceBatch(tokens, torch.full((len(indices), 2), torch.nan))
        return PreferenceBatch(tokens, torch.from_numpy(self.reference_log_probs[list(indices)]))

    @property
    def tokens_hash(self) -> str:
        """Hash of ids and token ids in order: what log-probabilities of the set depend on."""
        digest = hashlib.sha256()
        for example_id, *token_ids in self.tokenized:
            digest.update(example_id.encode())
            for ids in token_ids:
                digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
        return digest.hexdigest()
