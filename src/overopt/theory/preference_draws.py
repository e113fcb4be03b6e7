"""How many preferences it takes until margins determine the policy: random ones, drawn one after another."""

import math

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import DisjointSet

from overopt.theory.response_set import ResponseSet, group_logsumexp

QUANTILES = (0.05, 0.5, 0.95)


def preferences_needed(responses: ResponseSet) -> int:
    """Fewest preferences that leave no freedom: a spanning tree of each prompt."""
    return responses.num_responses - responses.num_prompts


def draw_until_determined(responses: ResponseSet, seed: int) -> pd.DataFrame:
    """Distinct pairs of responses to the same prompt, uniformly without replacement, until no freedom is left.

    Only which responses are compared matters to the rank, not which one is preferred.

    Args:
        responses: the set; its own preferences are not used, but say which responses are OOD.
        seed: fixes the order of the pairs.

    Returns:
        A row for each number of ``preferences`` drawn, from 0: ``freedom`` [dimensions]; ``never_compared``
        [responses]; ``mass_low`` and ``mass_high``, between which equal margins let the probability of the set's
        unseen responses be [fraction, mean over prompts]. The margins for this are the reference's own, 0.
    """
    generator = np.random.default_rng(seed)
    pairs = _pairs(responses)
    joined = DisjointSet(range(responses.num_responses))
    never_compared = set(range(responses.num_responses))
    label = np.arange(responses.num_responses)
    rows = [_row(responses, label, 0, len(never_compared))]
    for drawn, pair in enumerate(generator.permutation(len(pairs)), start=1):
        first, second = map(int, pairs[pair])
        never_compared -= {first, second}
        if joined.merge(first, second):
            label = np.where(label == label[second], label[first], label)
            rows.append(_row(responses, label, drawn, len(never_compared)))
        else:
            rows.append({**rows[-1], "preferences": drawn, "never_compared": len(never_compared)})
        if not rows[-1]["freedom"]:
            break
    return pd.DataFrame(rows)


def _pairs(responses: ResponseSet) -> np.ndarray:
    pairs = []
    for prompt in range(responses.num_prompts):
        entries = np.flatnonzero(responses.prompt_of == prompt)
        pairs.append(entries[np.stack(np.triu_indices(len(entries), k=1), axis=1)])
    return np.concatenate(pairs)


def _row(responses: ResponseSet, label: np.ndarray, drawn: int, never_compared: int) -> dict[str, int | float]:
    low, high = mass_range(responses, responses.log_reference, label)
    return {
        "preferences": drawn,
        "freedom": len(np.unique(label)) - responses.num_prompts,
        "never_compared": never_compared,
        "mass_low": low,
        "mass_high": high,
    }


def mass_range(responses: ResponseSet, log_policy: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Between what equal margins let the OOD mass be [fraction, mean over prompts].

    Within a component the distribution is fixed, between them it is free: a prompt's mass can come as near as one likes
    to that of its component with the smallest, or largest, share of unseen responses.

    Args:
        responses: the set.
        log_policy: log probabilities of any policy with these margins [nats].
        label: component of each entry.
    """
    label = np.unique(label, return_inverse=True)[1]
    number = int(label.max()) + 1
    within = np.exp(log_policy - group_logsumexp(log_policy, label, number)[label])
    share = np.bincount(label, within * responses.unseen, minlength=number)
    low, high = np.full(responses.num_prompts, np.inf), np.full(responses.num_prompts, -np.inf)
    np.minimum.at(low, responses.prompt_of, share[label])
    np.maximum.at(high, responses.prompt_of, share[label])
    return float(low.mean()), float(high.mean())


def draw_table(responses: ResponseSet, *, draws: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Many orders of random pairs.

    Args:
        responses: the set.
        draws: orders, at least 1.
        seed: of the first; the next ones follow it.

    Returns:
        A row for each number of ``preferences`` up to the largest needed: for freedom, never_compared, mass_low and
        mass_high the median and, as ``_q05`` and ``_q95``, the quantiles over orders; ``determined``, the share of
        orders without freedom; ``random_graph``, the limit of :func:`connected_share`. And how many each order needed.

    Raises:
        ValueError: there is no order to draw.
    """
    if draws < 1:
        raise ValueError(f"need at least one order of random preferences, got --draws {draws}")
    orders = [draw_until_determined(responses, seed + draw).set_index("preferences") for draw in range(draws)]
    needed = np.array([order.index.max() for order in orders])
    index = range(int(needed.max()) + 1)
    # What is determined stays so.
    stacked = np.stack([order.reindex(index).ffill().to_numpy(float) for order in orders])
    low, median, high = np.quantile(stacked, QUANTILES, axis=0)
    table = pd.DataFrame({"preferences": index})
    for column, name in enumerate(orders[0].columns):
        table[name] = median[:, column]
        table[f"{name}_q05"], table[f"{name}_q95"] = low[:, column], high[:, column]
    table["determined"] = [float((needed <= drawn).mean()) for drawn in index]
    single = responses.num_prompts == 1
    table["random_graph"] = [connected_share(responses.num_responses, drawn) if single else math.nan for drawn in index]
    return table, needed


def connected_share(num_vertices: int, num_edges: int) -> float:
    """Limit of the share of random graphs that are connected: exp(-exp(-c)) with c = 2 edges / vertices - log vertices.

    Source: Erdős and Rényi 1959, "On random graphs I".
    """
    return math.exp(-num_vertices * math.exp(-2 * num_edges / num_vertices))
