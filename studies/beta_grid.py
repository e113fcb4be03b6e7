"""The paper's grid on the embedded default: 63 cells, and how long they took.

    make beta-grid

Runs ``sweeps/beta_grid.py`` (or goes on with it) and says what its cells took, one after another. ``--keep`` copies
points, fits and figures.
"""

import argparse
import math
from pathlib import Path

import optuna
import pandas as pd
from kept import keep_report, keep_summary
from sweep_scripts import run_script

from overopt.sweep.queue import SECONDS
from overopt.sweep.run import PARENT_ATTRIBUTE
from overopt.tracking.store import open_store

HOURS = 2.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/sweeps/beta_grid"))
    parser.add_argument("--keep", type=Path, default=None, help="folder for points, fits, figures and the summary")
    parser.add_argument("sweep", nargs="*", help="more options of sweeps/beta_grid.py, after --")
    arguments = parser.parse_args()
    run_script("beta_grid.py", "--out", arguments.out, *arguments.sweep)

    storage = f"sqlite:///{arguments.out.resolve()}/sweep.db"
    study = optuna.load_study(study_name="beta_grid", storage=storage)
    trials = study.trials
    done = sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)
    hours = math.fsum(trial.user_attrs.get(SECONDS, 0.0) for trial in trials) / 3600
    points = pd.read_csv(arguments.out / "report" / "points.csv")
    trained = points[points.examples_seen > 0]
    by_size = trained.loc[trained.groupby(["model", "objective"]).win_rate.idxmax()]
    reference = points[points.examples_seen == 0].groupby("model").win_rate.mean()
    lines = [
        f"{row.model} {row.objective}: best win rate {row.win_rate:.3f} +- {row.win_rate_se:.3f}, at beta {row.beta:g} "
        f"after {row.epoch_fraction:.1f} epochs, KL {row.kl_nats:.1f} nats; reference {reference[row.model]:.3f}"
        for row in by_size.itertuples()
    ]
    # A grid takes sittings; the code it was begun with is the code that all its cells ran.
    parent = open_store(None, create=False).get_run(study.user_attrs[PARENT_ATTRIBUTE])
    seeds = ", ".join(str(seed) for seed in sorted(points.seed.unique()))
    lines.append(f"seed {seeds}; cells computed by commit {parent.data.params['git_commit']}")
    verdict = "under" if hours < HOURS else "over"
    lines.append(f"{done} cells in {hours:.2f} hours of summed cell time, {verdict} {HOURS}")
    if arguments.keep is not None:
        keep_report(arguments.keep, arguments.out / "report")
        keep_summary(arguments.keep, lines)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
