"""Where the probability goes: mass of the pair, of other demonstrations, and of trajectories that no data has."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from overopt.theory.tree_mdp import TreeData

FEW = 3
"""Trajectories that the paper may mean by "a select few"."""


def mass_table(log_probs: Float[np.ndarray, "step seed trajectory"], data: TreeData) -> pd.DataFrame:
    """What the policies have become at each step, a row a seed and step.

    Args:
        log_probs: of every trajectory, from the reference at step 0 on [nats].
        data: says what each trajectory is to the training.

    Returns:
        ``seed`` (its place) and ``step``; ``chosen``, ``rejected``, ``demonstrated`` (in no preference) and ``unseen``:
        probability of the trajectories of that class, which sum to 1; ``unseen_effective``: by how many trajectories of
        equal probability the unseen mass might as well be held, exp of its entropy; ``unseen_top`` and ``unseen_few``:
        share of the unseen mass that the most likely one and the three most likely ones hold; ``margin_nats``: mean
        over preferences; ``kl_nats``: KL(policy || reference), exact. NaN where the data leave nothing unseen.
    """
    probabilities = np.exp(log_probs)
    classes = np.array(data.classes())
    steps, seeds, _ = log_probs.shape
    step, seed = np.indices((steps, seeds))
    columns = {"seed": seed, "step": step}
    for kind in ("chosen", "rejected", "demonstrated", "unseen"):
        columns[kind] = probabilities[..., classes == kind].sum(axis=-1)
    columns |= _concentration(log_probs[..., classes == "unseen"])
    log_ratios = log_probs - log_probs[:1]
    columns["margin_nats"] = np.mean(
        [log_ratios[..., p.chosen] - log_ratios[..., p.rejected] for p in data.preferences], 0
    )
    columns["kl_nats"] = (probabilities * log_ratios).sum(axis=-1)
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()})


def _concentration(log_probs: Float[np.ndarray, "step seed unseen"]) -> dict[str, Float[np.ndarray, "step seed"]]:
    if not log_probs.shape[-1]:
        nothing = np.full(log_probs.shape[:-1], np.nan)
        return dict.fromkeys(("unseen_effective", "unseen_top", "unseen_few"), nothing)
    # Relative to the largest first: all of it may be too little for a float.
    shares = np.exp(log_probs - log_probs.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(shares > 0, shares * np.log(shares), 0.0).sum(axis=-1)
    falling = -np.sort(-shares, axis=-1)
    return {
        "unseen_effective": np.exp(entropy),
        "unseen_top": falling[..., 0],
        "unseen_few": falling[..., :FEW].sum(axis=-1),
    }
