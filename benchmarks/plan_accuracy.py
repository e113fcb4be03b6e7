"""Peak memory of ``fit`` as ``plan`` predicts it, against the peak of the real training, at several model sizes.

    python benchmarks/plan_accuracy.py
    python benchmarks/plan_accuracy.py --device cuda --sizes 160m 410m 1b

Both are given the same options, and a process of their own. On a CPU the peak is that of the process's resident memory,
libraries and data included; on a GPU that of its tensors. The last line prints the largest relative error.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tables import machine, write_table
from training_runs import Training, fit_options, run_python
from workload import SHAPES, write_model, write_pairs

HERE = Path(__file__).parent
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "passing")
# The heap's holes come with the second step, when the optimiser's states are there.
START = Training(steps=4)


def compare(training: Training) -> tuple[dict[str, Any], float]:
    """What the plan says, and the measured peak [bytes]."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", SHAPES[training.size], training.vocabulary)
        write_pairs(folder / "pairs.jsonl", training.pairs())
        options = fit_options(folder, training)
        out = folder / "plan.json"
        plan = run_python(["-m", "overopt", "plan", *options, "--out", str(out)], folder, out)
        measured = run_python(["-m", "contenders.ours", "fit", *options], folder, folder / "figures.json")
    return plan, measured["peak_bytes"]


def main() -> None:
    """Predict and measure each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["70m", "160m", "410m"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()

    rows, errors = [], []
    for size in arguments.sizes:
        print(f"Pythia-{size}", flush=True)
        plan, measured = compare(replace(START, size=size, device=arguments.device))
        memory = plan["memory_bytes"]
        on_cpu = arguments.device == "cpu"
        predicted = memory["total"] if on_cpu else memory["tensors"]
        errors.append(predicted / measured - 1)
        parts = memory["phases"][memory["peak_phase"]]
        rows.append(
            {
                "model": f"Pythia-{size} shape",
                **{part: _gb(parts[part]) for part in PARTS},
                **({"process": _gb(memory["runtime"])} if on_cpu else {}),
                "predicted GB": _gb(predicted),
                "measured GB": _gb(measured),
                "error": f"{errors[-1]:+.1%}",
                "at": memory["peak_phase"],
            }
        )
    precision = "float32" if arguments.device == "cpu" else "bf16-mixed"
    notes = [
        f"DPO, {START.batch_size} pairs a step, {START.steps} steps, TL;DR-shaped lengths, passes of at most 2,048 "
        f"tokens, {precision}, RMSprop",
        "parts as `overopt plan` gives them, at the phase of the step that needs most",
        "process: what the planning process itself holds, which has loaded the same libraries and data"
        if arguments.device == "cpu"
        else "peak of the tensors; the GPU's context is not among them",
    ]
    title = "Peak memory: predicted against measured"
    write_table(arguments.out / f"plan_accuracy_{arguments.device}.md", title, rows, [*notes, *machine()])
    print(f"largest relative error {max(map(abs, errors)):.1%}")


def _gb(number: float) -> str:
    return f"{number / 1e9:.2f}"


if __name__ == "__main__":
    main()
