"""What a table lacks for a figure, in words."""

import pandas as pd

MEASUREMENT_NAMES = {
    "kl_nats": "KL(policy ‖ reference)",
    "forward_kl_nats": "forward KL",
    "win_rate": "win rate",
    "win_rate_length_controlled": "length-controlled win rate",
    "loss": "loss on held-out pairs",
    "implicit_reward_accuracy": "implicit-reward accuracy",
    "chosen_log_ratio": "log ratio of chosen responses",
    "rejected_log_ratio": "log ratio of rejected responses",
    "length_r2": "R² of log ratio on length",
    "length_r2_uncentred": "uncentred R² of log ratio on length",
}


def measured(points: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Checkpoints after the reference that have all of ``columns``; none where a column is missing."""
    trained = points[points["examples_seen"] > 0]
    trained = trained.reindex(columns=trained.columns.union(list(columns), sort=False))
    return trained[trained[list(columns)].notna().all(axis=1)]


def missing_measurements(points: pd.DataFrame, *columns: str) -> str:
    """Why no checkpoint has all of ``columns``; empty if one has."""
    if len(measured(points, *columns)):
        return ""
    if not len(measured(points)):
        return "no checkpoint after the reference"
    for column in columns:
        if not len(measured(points, column)):
            return f"no checkpoint has a {MEASUREMENT_NAMES[column]}"
    return f"no checkpoint has all of {', '.join(MEASUREMENT_NAMES[column] for column in columns)}"
