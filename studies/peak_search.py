"""Seven runs of a search against a grid of 21 betas: what their choices are worth on prompts that neither has seen.

    make find-peak

For each seed, all betas of a grid and ``sweeps/find_peak.py``, with the same policies, pairs and evaluation prompts.
Each side chooses one checkpoint, the one that wins most within the KL budget; both are then sampled on all held-out
prompts that were not used to choose.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from kept import keep_summary
from sweep_scripts import run_script

from overopt.checkpoints.checkpoint_names import checkpoint_path
from overopt.checkpoints.format import read_model_checkpoint
from overopt.data.datamodule import PreferenceDataModule, data_of_checkpoint
from overopt.embedded.recipe import Recipe
from overopt.evaluation.judges.gold_reward import gold_reward_judge
from overopt.evaluation.records import Comparison, read_completions
from overopt.evaluation.sampling import EvaluationPrompt, evaluation_prompts, rescore, sample_here
from overopt.experiment import completions_path, open_policy

MARGIN = 0.02
FRESH_SEED = 1_000_000  # of draws that no choice was made by


class Choice(NamedTuple):
    """A checkpoint that was chosen, and what it took."""

    beta: float
    examples_seen: int
    runs: int
    pairs: int
    checkpoint: Path

    def __str__(self) -> str:
        return f"beta {self.beta:g} after {self.examples_seen} pairs"


def choice(folder: Path, points: pd.DataFrame, budget: float) -> Choice:
    """The checkpoint of a sweep that wins most within the budget, on the prompts that it was evaluated on."""
    trained = points[points.examples_seen > 0]
    allowed = trained[trained.kl_nats <= budget]
    if allowed.empty:
        raise SystemExit(
            f"no trained checkpoint below {folder} keeps {budget:g} nats; the lowest has {trained.kl_nats.min():.3g}: "
            "raise --kl-budget"
        )
    best = trained.loc[allowed.win_rate.idxmax()]
    [run] = folder.glob(f"{best.objective}-beta{best.beta:g}-*-seed{best.seed}")
    per_run = trained.groupby("beta").examples_seen.max()
    seen = int(best.examples_seen)
    return Choice(best.beta, seen, len(per_run), int(per_run.sum()), checkpoint_path(run / "checkpoints", seen))


def fresh_prompts(
    folder: Path, run: Path, size: str, seed: int
) -> tuple[Path, list[EvaluationPrompt], PreferenceDataModule]:
    """All held-out prompts of the texts but those that checkpoints were evaluated on."""
    reference = folder / f"sft-{size}-seed{seed}" / "checkpoints" / "last.ckpt"
    data = data_of_checkpoint(read_model_checkpoint(reference), reference)
    data.setup("predict")
    posts = {example.post_id for example in data.held_out_demonstrations().examples}
    used = {completion.prompt for completion in read_completions(completions_path(run / "evaluation", 0))}
    fresh = [prompt for prompt in evaluation_prompts(data, len(posts)) if prompt.text not in used]
    assert len(fresh) <= len(posts) - len(used)
    return reference, fresh, data


def score(
    checkpoint: Path, reference: Path, gold: Path, prompts: Sequence[EvaluationPrompt], data
) -> tuple[float, np.ndarray]:
    """KL [nats] and win probability on each prompt."""
    policy = open_policy(checkpoint)
    sampled = sample_here(policy, prompts, max_response_tokens=data.max_response_tokens, seed=FRESH_SEED)
    rescored = rescore(policy, open_policy(reference), prompts, sampled, packing=data.packing)
    comparisons = [
        Comparison(c.prompt_id, c.prompt, sample=c.response, opponent=c.opponent) for c in rescored.completions
    ]
    verdicts = gold_reward_judge(gold, Recipe().gold_temperature).judge(comparisons)
    return float(rescored.kl.k1.mean), np.array([verdict.win_probability for verdict in verdicts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", default="0.7M")
    parser.add_argument("--betas", type=int, default=21, help="of the grid")
    parser.add_argument("--runs", type=int, default=7, help="of the search")
    parser.add_argument("--kl-budget", type=float, default=10.0, help="nats")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("outputs/peak_search"))
    parser.add_argument("--keep", type=Path, default=None, help="folder for points and the summary")
    options = parser.parse_args()
    out = options.out.resolve()
    common = ["--tracking-uri", f"sqlite:///{out}/mlflow.db", "--workers", options.workers]
    betas = np.geomspace(min(Recipe().betas), max(Recipe().betas), options.betas)
    grid = ["--objectives", "dpo", "--betas", *(f"{beta:.3g}" for beta in betas), "--sizes", options.size]
    run_script("beta_grid.py", *grid, "--seeds", *options.seeds, "--name", "peak_grid", "--out", out / "grid", *common)
    lines, reached, tables = [], 0, []
    for seed in options.seeds:
        folder = out / f"search{seed}"
        search = ["--seed", seed, "--size", options.size, "--runs", options.runs, "--kl-budget", options.kl_budget]
        run_script("find_peak.py", *search, "--name", f"find_peak{seed}", "--out", folder, *common)
        sides = {}
        for side, place in (("grid", out / "grid"), ("search", folder)):
            points = pd.read_csv(place / "report" / "points.csv")
            points = points[points.seed == seed]
            tables.append(points.assign(side=side).drop(columns="run_id"))
            sides[side] = choice(place, points, options.kl_budget)
        grid_choice, search_choice = sides["grid"], sides["search"]
        run = grid_choice.checkpoint.parents[1]
        reference, prompts, data = fresh_prompts(out / "grid", run, options.size, seed)
        gold = out / "grid" / "gold" / "checkpoints" / "last.ckpt"
        results = {side: score(chosen.checkpoint, reference, gold, prompts, data) for side, chosen in sides.items()}
        wins = {side: probabilities for side, (_, probabilities) in results.items()}
        lost = wins["grid"] - wins["search"]
        standard_error = lost.std(ddof=1) / len(lost) ** 0.5
        within = lost.mean() <= MARGIN and search_choice.runs <= options.runs
        reached += within
        lines.append(
            f"seed {seed}: {grid_choice.runs} betas choose {grid_choice} (win rate {wins['grid'].mean():.3f}, "
            f"KL {results['grid'][0]:.1f} nats); {search_choice.runs} runs choose {search_choice} "
            f"({wins['search'].mean():.3f}, {results['search'][0]:.1f}) with "
            f"{search_choice.pairs / grid_choice.pairs:.0%} of the training; lost by searching "
            f"{lost.mean():+.4f} +- {standard_error:.4f} on {len(lost)} fresh prompts"
        )
    lines.append(
        f"a search of at most {options.runs} runs comes within {MARGIN} of a grid of {options.betas} betas in "
        f"{reached} of {len(options.seeds)} seeds"
    )
    if options.keep is not None:
        keep_summary(options.keep, lines)
        pd.concat(tables).to_csv(options.keep / "points.csv", index=False)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
