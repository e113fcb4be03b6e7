"""The over-optimization claims on the embedded default, over three seeds.

    make science

Runs the quickstart for three seeds (each with its own SFT policy, pairs, labels and training order) in
``outputs/science`` and checks, seed by seed:

1. final KL falls with beta: Spearman's rank correlation of beta and final KL at most -0.9;
2. over-optimization: the checkpoint of highest win rate, chosen on one half of the evaluation prompts, beats on
   the other half the final checkpoint of largest KL by at least 0.05, the 95% interval of the paired difference
   (bootstrap over prompts) above 0;
3. the log law (a) fits better than the quadratic in KL (c): lower RMSE on the same points with the same R0.

The last line says how many of the seeds hold all three.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from kept import keep_report, keep_summary
from scipy.stats import spearmanr

from overopt.analysis.laws.fitting import fit_law
from overopt.analysis.laws.laws import LAWS, distance
from overopt.embedded.recipe import Recipe
from overopt.evaluation.records import read_completions
from overopt.quickstart import run_quickstart

RESAMPLES = 10_000


class Claims(NamedTuple):
    """What one seed gave."""

    spearman: float
    best: str
    drop: float
    drop_low: float
    drop_high: float
    rmse_log_law: float
    rmse_quadratic_in_kl: float

    @property
    def hold(self) -> bool:
        """Whether all three claims hold."""
        falls = self.drop >= 0.05 and self.drop_low > 0
        return self.spearman <= -0.9 and falls and self.rmse_log_law < self.rmse_quadratic_in_kl


def win_probabilities(out: Path, row: pd.Series, size: str) -> pd.Series:
    """Graded verdicts of a checkpoint by prompt."""
    run = f"{row.objective}-beta{row.beta:g}-{size}-seed{row.seed}"
    path = out / run / "evaluation" / f"examples-{int(row.examples_seen):08d}.jsonl"
    return pd.Series({completion.prompt_id: completion.win_probability for completion in read_completions(path)})


def check(points: pd.DataFrame, out: Path, size: str) -> Claims:
    """The three claims on the points of one seed."""
    reference = points[points.examples_seen == 0]
    trained = points[points.examples_seen > 0].reset_index(drop=True)
    final = trained[trained.examples_seen == trained.groupby("beta").examples_seen.transform("max")]
    spearman = float(spearmanr(final.beta, final.kl_nats).statistic)

    verdicts = pd.DataFrame({i: win_probabilities(out, row, size) for i, row in trained.iterrows()})
    # Prompts are in the order of a hash of their posts: every other one is a random half.
    choose, measure = verdicts.iloc[::2], verdicts.iloc[1::2]
    best = trained.loc[choose.mean().idxmax()]
    widest = final.loc[final.kl_nats.idxmax()]
    difference = (measure[best.name] - measure[widest.name]).to_numpy()
    generator = np.random.default_rng(0)
    means = generator.choice(difference, (RESAMPLES, len(difference))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])

    d, value = distance(trained.kl_nats.to_numpy()), trained.win_rate.to_numpy()
    r0 = float(reference.win_rate.mean())
    rmse = {name: fit_law(LAWS[name], d, value, r0=r0).rmse for name in ("log_law", "quadratic_in_kl")}
    return Claims(
        spearman,
        f"beta {best.beta:g}, {best.epoch_fraction:.2f} epochs, KL {best.kl_nats:.1f}",
        float(difference.mean()),
        float(low),
        float(high),
        rmse["log_law"],
        rmse["quadratic_in_kl"],
    )


def main() -> None:
    """Run what has not run yet, then check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--objective", default="dpo")
    parser.add_argument("--size", default="0.7M")
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("outputs/science"))
    parser.add_argument("--tracking-uri", default=None)
    parser.add_argument("--keep", type=Path, default=None, help="folder for points, fits, figures and the summary")
    options = parser.parse_args()
    recipe = replace(Recipe(), evaluation_prompts=options.prompts)
    run_quickstart([options.objective], None, options.seeds, [options.size], options.out, options.tracking_uri, recipe)
    report = options.out / "report"
    points = pd.read_csv(report / "points.csv")
    claims = {seed: check(points[points.seed == seed], options.out, options.size) for seed in options.seeds}
    lines = [f"{options.prompts} evaluation prompts, one half to choose on, one to measure on"]
    lines += [
        f"seed {seed}: Spearman(beta, final KL) {c.spearman:.3f}; best point ({c.best}) beats the widest final "
        f"one by {c.drop:.3f} [{c.drop_low:.3f}, {c.drop_high:.3f}]; RMSE log law {c.rmse_log_law:.4f}, "
        f"quadratic in KL {c.rmse_quadratic_in_kl:.4f}: {'holds' if c.hold else 'does not hold'}"
        for seed, c in claims.items()
    ]
    lines.append(f"all three claims hold in {sum(c.hold for c in claims.values())} of {len(claims)} seeds")
    if options.keep is not None:
        keep_report(options.keep, report)
        keep_summary(options.keep, lines)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
