"""How the cost of DPO by overopt's ``fit`` grows with prompts, responses, batch, vocabulary and model.

    python benchmarks/growth.py

One of them is varied at a time. The table and a picture go to ``benchmarks/results/``; the last line tells how memory
besides the model's grows with vocabulary x response length, the size of the logits that are never held at once.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator
from tables import machine, write_table
from training_runs import Result, Training, train
from workload import SHAPES, Lengths, random_model

HERE = Path(__file__).parent
# As many tokens as the longest row has.
START = Training(steps=5, micro_batch_tokens=4096)


class Point(NamedTuple):
    """One training: what was varied, to what."""

    axis: str
    value: str
    training: Training


def fixed(prompt: int, response: int) -> Lengths:
    """Every pair alike."""
    return Lengths(prompt, 0, prompt, prompt, response, response)


def points(start: Training) -> list[Point]:
    """Every axis, the others at their start."""
    prompts = [64, 128, 256, 512, 1024, 2048]
    responses = [16, 64, 256, 1024]
    return [
        *(Point("prompt tokens", f"{n}", replace(start, lengths=fixed(n, 35))) for n in prompts),
        *(Point("response tokens", f"{n}", replace(start, lengths=fixed(320, n))) for n in responses),
        *(Point("batch [pairs]", f"{n}", replace(start, batch_size=n)) for n in (1, 2, 4, 8, 16, 32)),
        *(Point("vocabulary [tokens]", f"{n}", replace(start, vocabulary=n)) for n in (6_288, 50_304, 150_912)),
        *(Point("model", size, replace(start, size=size)) for size in ("70m", "160m", "410m")),
        # Both at once: 20 GB of float32 logits in a plain pass of a step.
        Point("vocabulary, responses", "150912, 1024", replace(start, lengths=fixed(320, 1024), vocabulary=150_912)),
    ]


def weights_gb(training: Training) -> float:
    """Weights, gradients and RMSprop's state, float32."""
    parameters = random_model(SHAPES[training.size], training.vocabulary, meta=True).num_parameters()
    return 3 * 4 * parameters / 1e9


def main() -> None:
    """Train at every point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()

    results: list[tuple[Point, Result, float]] = []
    for point in points(replace(START, device=arguments.device)):
        print(f"{point.axis} {point.value}", flush=True)
        result = train(["overopt"], point.training)["overopt"]
        results.append((point, result, result.peak_gb - weights_gb(point.training)))
    rows = [
        {
            "varied": point.axis,
            "to": point.value,
            "pairs/s": f"{1 / result.seconds_a_pair:.2f}",
            "peak GB": f"{result.peak_gb:.2f}",
            "besides the model's GB": f"{besides:.2f}",
        }
        for point, result, besides in results
    ]
    notes = [
        f"where not varied: Pythia-{START.size} shape, vocabulary {START.vocabulary}, {START.batch_size} pairs a step, "
        f"TL;DR-shaped lengths, forward passes of at most {START.micro_batch_tokens} tokens",
        "the model's: weights, gradients and RMSprop's state in float32",
    ]
    write_table(arguments.out / f"growth_{arguments.device}.md", "DPO: how cost grows", rows, [*notes, *machine()])
    draw(results, arguments.out / f"growth_{arguments.device}.png")
    memory = {(point.axis, point.value): besides for point, _, besides in results}
    least = memory["vocabulary [tokens]", "6288"]
    most = memory["vocabulary, responses", "150912, 1024"]
    print(
        f"from vocabulary 6,288 and responses of 35 tokens to 150,912 and 1,024 (logits {24 * 1024 / 35:.0f}x as "
        f"large), memory besides the model's goes from {least:.2f} to {most:.2f} GB: {most / least:.2f}x"
    )


def draw(results: list[tuple[Point, Result, float]], path: Path) -> None:
    """Pairs per second above, memory below, an axis a column."""
    axes = [axis for axis in dict.fromkeys(point.axis for point, *_ in results) if "," not in axis]
    figure, grid = plt.subplots(2, len(axes), figsize=(3 * len(axes), 5), sharey="row", layout="constrained")
    for column, axis in enumerate(axes):
        there = [(point.value, result, besides) for point, result, besides in results if point.axis == axis]
        values = [value for value, *_ in there]
        speed, memory = grid[0, column], grid[1, column]
        speed.plot(values, [1 / result.seconds_a_pair for _, result, _ in there], "o-", color="black")
        memory.plot(values, [result.peak_gb for _, result, _ in there], "o-", color="black", label="peak")
        memory.plot(values, [besides for *_, besides in there], "s--", color="tab:blue", label="besides the model's")
        memory.set_xlabel(axis)
    grid[0, 0].set_yscale("log")
    grid[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    grid[0, 0].yaxis.set_major_formatter("{x:g}")
    grid[0, 0].yaxis.set_minor_locator(NullLocator())
    grid[1, 0].set_ylim(bottom=0)  # once all is there: the row shares its limits
    grid[0, 0].set_ylabel("pairs / s")
    grid[1, 0].set_ylabel("memory [GB]")
    grid[1, 0].legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
