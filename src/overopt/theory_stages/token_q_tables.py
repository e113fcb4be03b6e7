"""Token rows -> means over prompts, with standard errors."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

_ON_DATA = ("unseen_share", "reference_unseen_share", "unseen_share_change")
"""Averaged over the states whose prefix the data has; elsewhere nothing is seen, and the share is 1 by definition."""
_ALL_STATES = ("optimism", "headroom", "optimism_share", "value_above_max_q", "value", "q_value", "off_data_share")


def summarise(tokens: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Means over a response's states, then over prompts, with standard errors over prompts (columns ``_se``).

    Args:
        tokens: a row a token, of any number of policies, with their ``beta`` [reward / nat].
        keys: columns that tell them and the kinds of responses apart.

    Returns:
        A row for each combination of keys. ``implicit_reward`` is that of the whole response; ``off_data_share`` the
        share of states that no labelled response reaches.
    """
    rows = tokens.assign(
        unseen_share_change=tokens["unseen_share"] - tokens["reference_unseen_share"],
        off_data_share=1.0 - tokens["prefix_seen"],
        # The reference has neither, hence no share.
        optimism_share=tokens["optimism"] / (tokens["optimism"] + tokens["headroom"]).where(lambda range_: range_ > 0),
        implicit_reward=tokens["beta"] * (tokens["log_prob"] - tokens["reference_log_prob"]),
    )
    by_response = [*keys, "prompt_id"]
    grouped = rows.groupby(by_response, sort=False)
    on_data = rows[rows["prefix_seen"]].groupby(by_response, sort=False)
    of_responses = pd.concat(
        [on_data[list(_ON_DATA)].mean(), grouped[list(_ALL_STATES)].mean(), grouped["implicit_reward"].sum()], axis=1
    )
    return mean_and_error(of_responses.reset_index(), keys)


def mean_and_error(of_prompts: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Mean over prompts of every other column, with its standard error; NaN of one prompt."""
    values = [str(column) for column in of_prompts if column not in (*keys, "prompt_id")]
    grouped = of_prompts.groupby(list(keys), sort=False)
    means, spreads = grouped[values].mean(), grouped[values].std()
    counts = grouped.size()
    errors = spreads.div(np.sqrt(counts), axis=0).add_suffix("_se")
    columns = [name for value in values for name in (value, f"{value}_se")]
    return pd.concat([counts.rename("prompts"), pd.concat([means, errors], axis=1)[columns]], axis=1).reset_index()
