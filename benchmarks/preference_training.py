"""DPO side by side: overopt's ``fit`` against TRL's ``DPOTrainer``, same weights, pairs, order and optimiser.

    python benchmarks/preference_training.py --size 70m --steps 20

Each contender trains in a process of its own, one after the other. No time counts before the losses of all agree
to 1e-4 relative over all steps, at a learning rate at which the loss leaves log 2 visibly. The table goes to
``benchmarks/results/``; the last line prints the ratios.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tables import machine, write_table
from workload import SHAPES, Lengths, draw_pairs, needed_flops, write_model, write_pairs

HERE = Path(__file__).parent
TRL = {
    "TRL as it comes": {},
    "TRL, precomputed references": {"precompute_ref_log_probs": True},
    "TRL at its best": {"precompute_ref_log_probs": True, "gradient_checkpointing": False},
}
OURS: dict[str, list[str]] = {
    "overopt": [],
    "overopt without shared prompts": ["--data.shared_prompts", "false"],
    "overopt without packing": ["--data.packed", "false"],
    "overopt, all logits at once": ["--model.compute.logits_mib", ".inf"],
    "overopt, none of them": [
        *("--data.shared_prompts", "false", "--data.packed", "false", "--model.compute.logits_mib", ".inf")
    ],
}


class Result(NamedTuple):
    """Of one contender; the first step, which warms up, is left out of the time."""

    seconds_a_pair: float
    peak_gb: float
    losses: list[float]


def run(command: list[str], out: Path, batch_size: int) -> Result:
    """A contender in its own process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "MLFLOW_TRACKING_URI": f"sqlite:///{out.parent}/mlflow.db",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=out.parent, capture_output=True, text=True, check=False
    )
    if done.returncode or not out.is_file():
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    figures = json.loads(out.read_text())
    seconds = float(np.median(figures["seconds"][1:])) / batch_size
    return Result(seconds, figures["peak_bytes"] / 1e9, figures["losses"])


def main() -> None:
    """Run the contenders and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="70m")
    parser.add_argument("--vocabulary", type=int, default=50_304)
    parser.add_argument("--prompt-tokens", type=float, default=320, help="mean; the spread scales along")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=[*OURS, *TRL],
        default=["overopt", "TRL as it comes", "TRL at its best"],
        metavar="NAME",
        help=f"overopt and any others of: {', '.join([*OURS, *TRL])}",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--micro-batch-tokens", type=int, default=None)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    if "overopt" not in arguments.contenders:
        parser.error("--contenders must name overopt, which the others are measured by")
    if set(arguments.contenders) & set(TRL) and find_spec("trl") is None:
        parser.error("TRL is not installed: pip install -c constraints.txt -e '.[bench]'")

    scale = arguments.prompt_tokens / 320
    lengths = Lengths(320 * scale, 90 * scale, max(1, int(60 * scale)), int(500 * scale))
    shape = SHAPES[arguments.size]
    pairs = draw_pairs(arguments.batch_size * arguments.steps, lengths, arguments.vocabulary)
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", shape, arguments.vocabulary)
        write_pairs(folder / "pairs.jsonl", pairs)
        for contender in arguments.contenders:
            out = folder / f"{len(results)}.json"
            results[contender] = run(_command(contender, folder, out, arguments, lengths), out, arguments.batch_size)
            print(
                f"{contender:<32} {results[contender].seconds_a_pair:8.3f} s/pair {results[contender].peak_gb:6.2f} GB"
            )

    first = next(iter(results.values()))
    moved = max(abs(loss - math.log(2)) for loss in first.losses)
    apart = max(abs(a - b) / abs(b) for r in results.values() for a, b in zip(r.losses, first.losses, strict=True))
    print(f"losses of {len(first.losses)} steps: apart by {apart:.1e} relative, away from log 2 by {moved:.2f}")
    if apart > 1e-4 or moved < 0.01:
        for name, result in results.items():
            print(f"{name:<32} {' '.join(f'{loss:.6f}' for loss in result.losses)}")
        raise SystemExit("the losses do not agree, or do not move: no time counts")
    flops = needed_flops(pairs, shape, arguments.vocabulary) / len(pairs)
    rows = [
        {
            "contender": name,
            "s/pair": f"{r.seconds_a_pair:.3f}",
            "times overopt's": f"{r.seconds_a_pair / results['overopt'].seconds_a_pair:.2f}",
            "peak GB": f"{r.peak_gb:.2f}",
            "needed GFLOP/s": f"{flops / r.seconds_a_pair / 1e9:.0f}",
        }
        for name, r in results.items()
    ]
    about = f"{arguments.batch_size} pairs a step, prompts of about {arguments.prompt_tokens:g} tokens"
    title = f"DPO, Pythia-{arguments.size} shape, {about}"
    name = f"preference_training_{arguments.device}_{arguments.size}_prompt{arguments.prompt_tokens:g}"
    note = f"losses of {len(first.losses)} steps agree to {apart:.1e} relative and move by {moved:.2f}"
    write_table(arguments.out / f"{name}.md", title, rows, [note, *machine()])
    others = [name for name in results if name in TRL]
    ours = results["overopt"]
    print(
        "; ".join(
            f"{name}: {results[name].seconds_a_pair / ours.seconds_a_pair:.1f}x the time, "
            f"overopt has {ours.peak_gb / results[name].peak_gb:.2f}x its memory"
            for name in others
        )
    )


def _command(contender: str, folder: Path, out: Path, arguments: argparse.Namespace, lengths: Lengths) -> list[str]:
    if contender in TRL:
        return [
            "-m", "contenders.trl_dpo", "--model", str(folder / "model"), "--pairs", str(folder / "pairs.jsonl"),
            "--out", str(out), "--batch-size", str(arguments.batch_size), "--learning-rate",
            str(arguments.learning_rate), "--options", json.dumps(TRL[contender]),
            "--dtype", "float32" if arguments.device == "cpu" else "bfloat16",
        ]  # fmt: skip
    settings: dict[str, Any] = {
        "model": "overopt.modules.direct_alignment.DirectAlignmentModule",
        "model.reference": folder / "model",
        "model.optimizer": f"{{name: rmsprop, learning_rate: {arguments.learning_rate}, warmup_steps: 0}}",
        "data.source": "jsonl",
        "data.path": folder / "pairs.jsonl",
        "data.batch_size": arguments.batch_size,
        "data.evaluation_fraction": 0,
        "data.gold_fraction": 0,
        "data.max_prompt_tokens": lengths.longest,
        "data.max_response_tokens": lengths.longest_response + 1,
        "data.cache_dir": folder / "cache",
        "trainer.max_epochs": 1,
        "trainer.accelerator": arguments.device if arguments.device == "cpu" else "gpu",
        "trainer.devices": 1,
        "trainer.precision": "32-true" if arguments.device == "cpu" else "bf16-mixed",
        "trainer.limit_val_batches": 0,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks": f"[{{class_path: contenders.ours.StepTimes, init_args: {{out: {out}}}}}]",
        "checkpoints.fractions": "[]",
    }
    if arguments.micro_batch_tokens is not None:
        settings["data.micro_batch_tokens"] = arguments.micro_batch_tokens
    options = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return ["-m", "contenders.ours", "fit", *options, *OURS[contender]]


if __name__ == "__main__":
    main()
