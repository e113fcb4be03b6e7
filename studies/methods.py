"""Direct alignment, its mitigations, RLHF and best-of-n on the same axes, over three seeds of the embedded default.

    make methods

Runs ``sweeps/methods.py`` (or goes on with it) and says, with intervals over seeds, whether RLHF's proxy rises while
its gold reward falls, what ensembles do to the peak, and what each mitigation does to peak and fall of DPO. A gold
model can be misled too: what policies write in the end is also measured by no model, by how alike responses to
different prompts are and by ROUGE-L with people's summaries. ``--keep`` copies points, tables and the figure. The last
line says what all tasks took, what cells share included.
"""

from collections.abc import Iterator
from statistics import fmean

import pandas as pd
from kept import keep_report, keep_summary
from rich.progress import track
from sweep_scripts import run_script, sweep_arguments, sweep_record

from overopt.analysis.findings.claim import mean_estimate
from overopt.analysis.laws.curves import final_checkpoints
from overopt.analysis.store_report import tracked_completions
from overopt.evaluation.judges.rouge import rouge_l
from overopt.tracking.store import open_store, resolve_tracking_uri
from overopt.tracking.tables import read_points

HOURS = 3.0
WORKERS = 2  # one a core


def main() -> None:
    arguments = sweep_arguments(__doc__, "methods")
    run_script("methods.py", "--out", arguments.out, "--workers", WORKERS, *arguments.sweep)

    report = arguments.out / "report"
    methods, effects = (pd.read_csv(report / f"{name}.csv") for name in ("methods", "method_effects"))
    methods["goodhart"] = methods["goodhart"].fillna("unknown")
    done, hours, commit, run = sweep_record(arguments.out, "methods", with_shared=True)
    texts = last_texts(run)
    lines = [
        "gains of the gold reward over the reference [logits], with 95% intervals over seeds:",
        *peaks(methods[methods["measure"] == "gold_reward"]),
        "",
        "what differs from the method that each varies, in the gold reward:",
        *differences(effects[effects["measure"] == "gold_reward"]),
        "",
        "what policies write at the end of training, by the smallest beta of each method:",
        *text_lines(texts),
        "",
        f"tasks computed by commit {commit}",
        f"{done} tasks in {hours:.2f} hours of summed time, {hours / WORKERS:.2f} on two cores by {WORKERS} workers, "
        f"{'under' if hours / WORKERS < HOURS else 'over'} {HOURS:g}",
    ]
    if arguments.keep is not None:
        keep_report(arguments.keep, report, "methods")
        texts.to_csv(arguments.keep / "last_texts.csv", index=False, float_format="%.6g")
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


def last_texts(run: str) -> pd.DataFrame:
    """A row a run's last checkpoint, and one a seed's reference.

    Columns: objective, beta, seed, kl_nats; mean F-measures of ROUGE-L: alike, of each response with one to another
    prompt, and rouge_l, with the dataset's.
    """
    client = open_store(None, create=False)
    points = read_points(resolve_tracking_uri(None), parent_run_id=run).table
    references = points[points["examples_seen"] == 0].drop_duplicates("seed").assign(objective="reference")
    wanted = pd.concat([references, final_checkpoints(points[points["examples_seen"] > 0])])
    rows = []
    for point in track(wanted.to_dict("records"), "texts"):
        completions = tracked_completions(client, [point["run_id"]])
        mine = completions[completions["examples_seen"] == point["examples_seen"]]
        responses = mine.sort_values("prompt_id")["response"].tolist()
        own = {
            "alike": fmean(map(rouge_l, responses, [*responses[1:], responses[0]])),
            "rouge_l": fmean(map(rouge_l, mine["response"], mine["opponent"])),
        }
        rows.append({name: point[name] for name in ("objective", "beta", "seed", "kl_nats")} | own)
    return pd.DataFrame(rows)


def text_lines(texts: pd.DataFrame) -> Iterator[str]:
    smallest = texts[texts["beta"] == texts.groupby("objective")["beta"].transform("min")]
    for objective, rows in smallest.groupby("objective"):
        alike, rouge = (mean_estimate(rows[name].to_numpy(float)) for name in ("alike", "rouge_l"))
        yield (
            f"{objective}: ROUGE-L of responses to different prompts {alike.value:.2f} [{alike.low:.2f}, "
            f"{alike.high:.2f}], with people's {rouge.value:.3f} [{rouge.low:.3f}, {rouge.high:.3f}]"
        )


def interval(row: dict[str, float], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


if __name__ == "__main__":
    main()
