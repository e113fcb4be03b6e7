"""The paper's grid on the embedded default: 63 cells, and how long they took.

    make beta-grid

Runs ``sweeps/beta_grid.py`` (or goes on with it) and says what its cells took, one after another. ``--keep`` copies
points, fits and figures.
"""

import pandas as pd
from kept import keep_report, keep_summary
from sweep_scripts import run_script, sweep_arguments, sweep_record

HOURS = 2.5


def main() -> None:
    arguments = sweep_arguments(__doc__, "beta_grid")
    run_script("beta_grid.py", "--out", arguments.out, *arguments.sweep)

    done, hours, commit, _ = sweep_record(arguments.out, "beta_grid", with_shared=False)
    points = pd.read_csv(arguments.out / "report" / "points.csv")
    trained = points[points.examples_seen > 0]
    by_size = trained.loc[trained.groupby(["model", "objective"]).win_rate.idxmax()]
    reference = points[points.examples_seen == 0].groupby("model").win_rate.mean()
    lines = [
        f"{row.model} {row.objective}: best win rate {row.win_rate:.3f} +- {row.win_rate_se:.3f}, at beta {row.beta:g} "
        f"after {row.epoch_fraction:.1f} epochs, KL {row.kl_nats:.1f} nats; reference {reference[row.model]:.3f}"
        for row in by_size.itertuples()
    ]
    seeds = ", ".join(str(seed) for seed in sorted(points.seed.unique()))
    lines.append(f"seed {seeds}; cells computed by commit {commit}")
    verdict = "under" if hours < HOURS else "over"
    lines.append(f"{done} cells in {hours:.2f} hours of summed cell time, {verdict} {HOURS}")
    if arguments.keep is not None:
        keep_report(arguments.keep, arguments.out / "report")
        keep_summary(arguments.keep, lines)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
