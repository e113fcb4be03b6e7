"""Direct alignment, its mitigations, RLHF and best-of-n on the same axes, over three seeds of the embedded default.

    make methods

Runs ``sweeps/methods.py`` (or goes on with it) and says, with intervals over seeds, whether RLHF's proxy rises while
its gold reward falls, what ensembles do to the peak, and what each mitigation does to peak and fall of DPO. ``--keep``
copies points, tables and figures. The last line says what all tasks took, what cells share included.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
from kept import keep_report, keep_summary
from sweep_scripts import run_script

from overopt.sweep.queue import SECONDS
from overopt.sweep.run import PARENT_ATTRIBUTE, shared_name
from overopt.tracking.store import open_store

HOURS = 3.0
WORKERS = 2  # one a core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/sweeps/methods"))
    parser.add_argument("--keep", type=Path, default=None, help="folder for points, tables, figures and the summary")
    parser.add_argument("sweep", nargs="*", help="more options of sweeps/methods.py, after --")
    arguments = parser.parse_args()
    run_script("methods.py", "--out", arguments.out, "--workers", WORKERS, *arguments.sweep)

    report = arguments.out / "report"
    methods, effects = (pd.read_csv(report / f"{name}.csv") for name in ("methods", "method_effects"))
    storage = f"sqlite:///{arguments.out.resolve()}/sweep.db"
    study, shared = (
        optuna.load_study(study_name=name, storage=storage) for name in ("methods", shared_name("methods"))
    )
    trials = [*study.trials, *shared.trials]
    done = sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)
    hours = math.fsum(trial.user_attrs.get(SECONDS, 0.0) for trial in trials) / 3600
    commit = open_store(None, create=False).get_run(study.user_attrs[PARENT_ATTRIBUTE]).data.params["git_commit"]
    lines = [
        "gains of the gold reward over the reference [logits], with 95% intervals over seeds:",
        *peaks(methods[methods["measure"] == "gold_reward"]),
        "",
        "what differs from the method that each varies, in the gold reward:",
        *differences(effects[effects["measure"] == "gold_reward"]),
        "",
        f"tasks computed by commit {commit}",
        f"{done} tasks in {hours:.2f} hours of summed time, {hours / WORKERS:.2f} on two cores by {WORKERS} workers, "
        f"{'under' if hours / WORKERS < HOURS else 'over'} {HOURS:g}",
    ]
    if arguments.keep is not None:
        keep_report(arguments.keep, report)
        keep_summary(arguments.keep, lines)
    print("\n" + "\n".join(lines))


def peaks(methods: pd.DataFrame) -> Iterator[str]:
    for row in methods.to_dict("records"):
        yield (
            f"{row['method']}: peak {interval(row, 'peak')} at KL {row['kl_at_peak_nats']:.1f}, {row['peak_is']}; fall "
            f"{interval(row, 'fall')} to KL {row['furthest_kl_nats']:.1f}; proxy meanwhile "
            f"{interval(row, 'proxy_rise')}; proxy up while gold falls: {row['goodhart']}"
        )


def differences(effects: pd.DataFrame) -> Iterator[str]:
    names = {"peak": "peak", "d_at_peak": "sqrt KL at the peak", "fall": "fall"}
    for row in effects[effects["quantity"].isin(list(names))].to_dict("records"):
        place = f" to KL {row['kl_nats']:.1f}" if row["quantity"] == "fall" else ""
        yield (
            f"{row['method']} less {row['baseline']}: {names[row['quantity']]}{place} {row['difference']:+.2f} "
            f"[{row['low']:.2f}, {row['high']:.2f}], {row['verdict']}"
        )


def interval(row: dict[str, float], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


if __name__ == "__main__":
    main()
