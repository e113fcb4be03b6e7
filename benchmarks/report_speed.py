"""How long a report of the paper's grid takes, from the tracking store to the page.

    python benchmarks/report_speed.py

Builds a store of 63 runs with six evaluated checkpoints each and every completion, of laws that are known, and times
``overopt report`` on it in a process of its own.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
from rich.progress import track
from tables import machine, write_table

from overopt.analysis.laws.laws import LAWS
from overopt.analysis.store_report import COMPLETIONS
from overopt.evaluation.records import Completion, write_completions
from overopt.experiment import completions_path
from overopt.tracking.runs import PARENT_TAG, log_artifact, log_metrics, log_params, start_run
from overopt.tracking.store import open_store

LIMIT = 60.0
OBJECTIVES, SIZES = ("dpo", "ipo", "slic"), (360_000, 730_000, 1_600_000)
BETAS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
TEXT = "Return the evenly spaced samples over an interval that the caller gives. " * 4


def fill(uri: str, folder: Path, prompts: int) -> str:
    """Log the grid; gives the study's run."""
    client = open_store(uri, create=True)
    study = start_run(client, "grid", "study")
    generator = np.random.default_rng(0)
    for objective, size, beta in track(list(product(OBJECTIVES, SIZES, BETAS)), description="filling a store"):
        run_id = start_run(client, f"{objective}-beta{beta:g}-{size}", "align", tags={PARENT_TAG: study})
        identity = {"objective": objective, "model": f"model-{size}", "num_parameters": size, "beta": beta, "seed": 0}
        log_params(client, run_id, {**identity, "examples_per_epoch": 2048})
        for fifth in range(6):
            kl = 0.0 if fifth == 0 else (0.5 + 0.4 / beta) * fifth / 5
            truth = 0.42 + float(LAWS["log_law"].gain(np.array([kl**0.5]), np.array([0.15, 0.08]))[0])
            wins = np.clip(truth + 0.3 * generator.standard_normal(prompts), 0, 1)
            log_metrics(client, run_id, metrics_of(wins, kl), step=1638 * fifth)
            path = completions_path(folder / run_id, 1638 * fifth)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_completions(
                path,
                [
                    Completion(
                        f"post-{prompt}", TEXT, TEXT[:80], [1] * 20, True, -20.0 + kl, -20.0, kl, TEXT[:60], float(win)
                    )
                    for prompt, win in enumerate(wins)
                ],
            )
            log_artifact(client, run_id, path, COMPLETIONS)
        client.set_terminated(run_id, "FINISHED")
    client.set_terminated(study, "FINISHED")
    return study


def metrics_of(wins: np.ndarray, kl: float) -> dict[str, float]:
    """What an evaluation logs."""
    return {
        "eval/kl_nats": kl,
        "eval/kl_se": 0.05 * kl,
        "eval/forward_kl_nats": 1.2 * kl,
        "eval/forward_kl_se": 0.05 * kl,
        "eval/win_rate": float(wins.mean()),
        "eval/win_rate_se": float(wins.std(ddof=1) / len(wins) ** 0.5),
        "eval/loss": 0.69 - 0.01 * kl,
        "eval/implicit_reward_accuracy": 0.55,
        "eval/chosen_log_ratio": -1.2 * kl,
        "eval/rejected_log_ratio": -1.4 * kl,
        "eval/response_tokens": 20.0,
        "eval/length_r2": 0.1,
        "eval/length_r2_uncentred": 0.5,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "report_speed.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        study = fill(uri, folder / "completions", options.prompts)
        command = ["report", "--tracking-uri", uri, "--study", study, "--out", str(folder / "report")]
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "overopt", *command], check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - began
        size = (folder / "report" / "report.html").stat().st_size / 1e6
    rows = [{"runs": "63", "prompts": f"{options.prompts}", "seconds": f"{took:.0f}", "page": f"{size:.1f} MB"}]
    write_table(options.out, "overopt report on the paper's grid", rows, machine(("numpy", "pandas", "mlflow")))
    print(f"a report of 63 runs takes {took:.0f} s ({'under' if took < LIMIT else 'not under'} {LIMIT:.0f})")


if __name__ == "__main__":
    main()
