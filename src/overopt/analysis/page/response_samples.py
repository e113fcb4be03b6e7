"""What the policies write: the same prompts at the lowest, the best and the highest divergence."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from overopt.analysis.findings.over_optimization import OverOptimization
from overopt.analysis.laws.curves import group_name, require_columns
from overopt.analysis.page.number_text import number_text
from overopt.analysis.page.tables import Row, table_rows

SAMPLE_PROMPTS = 4


@dataclass(frozen=True)
class Samples:
    """Responses of one curve to a few prompts.

    Attributes:
        curve: objective and model.
        checkpoints: headings, from the lowest KL over the best win rate to the highest KL.
        prompts: for each prompt its text, the opponent, and one response and win probability a checkpoint.
    """

    curve: str
    checkpoints: list[str]
    prompts: list[dict[str, object]]


def samples(points: pd.DataFrame, facts: list[OverOptimization], completions: pd.DataFrame) -> list[Samples]:
    """Responses at the lowest KL, the best win rate and the highest KL of each curve that has them."""
    require_columns(completions, ["run_id", "examples_seen", "prompt_id", "prompt", "response"])
    found = []
    for fact in facts:
        trained = table_rows(
            points[
                (points["objective"] == fact.objective)
                & (points["model"] == fact.model)
                & (points["examples_seen"] > 0)
                & points[["kl_nats", "win_rate"]].notna().all(axis=1)
            ]
        )
        checkpoints = {
            "lowest KL": min(trained, key=lambda point: point["kl_nats"]),
            "best win rate": max(trained, key=lambda point: point["win_rate"]),
            "highest KL": max(trained, key=lambda point: point["kl_nats"]),
        }
        by_prompt = [_by_prompt(completions, point) for point in checkpoints.values()]
        shared = [prompt_id for prompt_id in by_prompt[0] if all(prompt_id in column for column in by_prompt)]
        if not shared:
            continue
        found.append(
            Samples(
                curve=group_name(fact.objective, fact.model),
                checkpoints=[
                    f"{name}: {point['kl_nats']:.1f} nats, win rate {point['win_rate']:.2f} "
                    f"(beta {point['beta']:g}, {point['examples_seen']:,} examples)"
                    for name, point in checkpoints.items()
                ],
                prompts=[
                    {
                        "prompt": str(by_prompt[0][prompt_id]["prompt"]).strip(),
                        "opponent": str(by_prompt[0][prompt_id].get("opponent", "")).strip(),
                        "responses": [
                            {
                                "text": str(column[prompt_id]["response"]).strip(),
                                "win_probability": number_text(column[prompt_id].get("win_probability"), "{:.2f}"),
                            }
                            for column in by_prompt
                        ],
                    }
                    for prompt_id in shared[:SAMPLE_PROMPTS]
                ],
            )
        )
    return found


def _by_prompt(completions: pd.DataFrame, point: Row) -> dict[str, dict[str, Any]]:
    mine = (completions["run_id"] == point["run_id"]) & (completions["examples_seen"] == point["examples_seen"])
    rows = table_rows(completions[mine].drop_duplicates("prompt_id"))
    return {str(row["prompt_id"]): row for row in sorted(rows, key=lambda row: str(row["prompt_id"]))}
