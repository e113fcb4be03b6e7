"""What gold and proxy reward did in each run of the kept results of RLHF, seed by seed.

    make gold-gains

Reads ``points.csv`` of results/methods and results/methods_far, where runs are told by method, beta and seed. Rewards
are gains over the run's own reference; the best of a run's noisy checkpoints is partly luck. The last line says how
many of the far runs end below their reference.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    for name in ("methods", "methods_far"):
        print(f"{name}:")
        ends = []
        for run, rows in runs(pd.read_csv(RESULTS / name / "points.csv")):
            best, last = rows.loc[rows["gold"].idxmax()], rows.iloc[-1]
            ends.append(last["gold"])
            print(
                f"  {run}: gold {rows['gold'].min():+.2f} to {best['gold']:+.2f} (at KL {best['kl_nats']:.1f}), "
                f"in the end {last['gold']:+.2f} (at {last['kl_nats']:.1f}); proxy {best['proxy']:+.2f} there, "
                f"{last['proxy']:+.2f} in the end"
            )
        print(f"{sum(end < 0 for end in ends)} of {len(ends)} runs of {name} end below their reference")


def runs(points: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """RLHF's runs with their trained checkpoints, in order."""
    for (method, beta, seed), rows in points[points["objective"].str.startswith("rloo")].groupby(
        ["objective", "beta", "seed"]
    ):
        [reference] = rows[rows["examples_seen"] == 0].to_dict("records")
        trained = rows[rows["examples_seen"] > 0].sort_values("examples_seen")
        gains = {name: trained[f"{name}_reward"] - reference[f"{name}_reward"] for name in ("gold", "proxy")}
        yield f"{method}, beta {beta:g}, seed {seed}", trained.assign(**gains)


if __name__ == "__main__":
    main()
