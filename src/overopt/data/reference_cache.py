"""Reference log-probabilities on disk, keyed by everything that can change them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from overopt.checkpoints.whole_file import whole_file
from overopt.data.packing import Ranks


@dataclass(frozen=True)
class ReferenceKey:
    """What a cached log-probability depends on. Another value of any field is another entry.

    Attributes:
        weights: hash of the reference's weights and configuration.
        tokens: hash of the example ids and their token ids in order, which the tokenizer, its
            truncation and the data decide.
        precision: of the forward pass.
    """

    weights: str
    tokens: str
    precision: str

    @property
    def name(self) -> str:
        """File name of the entry."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]


def cached_reference_log_probs(
    folder: Path,
    key: ReferenceKey,
    compute: Callable[[], Float[np.ndarray, "pair 2"]],
    ranks: Ranks = Ranks(),
) -> Float[np.ndarray, "pair 2"]:
    """Log pi_ref of chosen and rejected responses [nats], from the cache or else computed and kept.

    An entry is whole or absent, so any number of processes may share the folder.

    Args:
        folder: where entries live; made when missing.
        key: what the values depend on.
        compute: makes the values, float32; called by all processes or by none.
        ranks: processes that ask for the same entry at the same time.
    """
    path = folder / f"{key.name}.npy"
    # Where processes do not share a disk, some may know it and others not.
    known_to = ranks.total(torch.tensor(float(path.is_file())))
    if int(known_to) == ranks.world_size:
        values: np.ndarray = np.load(path, allow_pickle=False)
        return values
    values = compute().astype(np.float32)
    with whole_file(path) as file:
        np.save(file, values)
    return values
