"""Direct alignment, its mitigations, RLHF and best-of-n on the same axes, over three seeds of the embedded default.

    make methods

Runs ``sweeps/methods.py`` (or goes on with it) and says, with intervals over seeds, whether RLHF's proxy rises while
its gold reward falls, what ensembles do to the peak, and what each mitigation does to peak and fall of DPO. ``--keep``
copies points, tables and figures. The last line says what all tasks took, what cells share included.
"""

from collections.abc import Iterator

import pandas as pd
from kept import keep_report, keep_summary
from sweep_scripts import run_script, sweep_arguments, sweep_record

HOURS = 3.0
WORKERS = 2  # one a core


def main() -> None:
    arguments = sweep_arguments(__doc__, "methods")
    run_script("methods.py", "--out", arguments.out, "--workers", WORKERS, *arguments.sweep)

    report = arguments.out / "report"
    methods, effects = (pd.read_csv(report / f"{name}.csv") for name in ("methods", "method_effects"))
    methods["goodhart"] = methods["goodhart"].fillna("")
    done, hours, commit = sweep_record(arguments.out, "methods", with_shared=True)
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
        keep_report(arguments.keep, report, "methods")
        keep_summary(arguments.keep, lines)
    print("\n" + "\n".join(lines))


def peaks(methods: pd.DataFrame) -> Iterator[str]:
    for row in methods.to_dict("records"):
        yield (
            f"{row['method']}: peak {interval(row, 'peak')} at KL {row['kl_at_peak_nats']:.1f}, {row['peak_is']}; fall "
            f"{interval(row, 'fall')} to KL {row['furthest_kl_nats']:.1f}; proxy meanwhile "
            f"{interval(row, 'proxy_rise')}; proxy up while gold falls: {row['goodhart'] or 'unknown'}"
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
