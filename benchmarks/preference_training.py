"""DPO side by side: overopt's ``fit`` against TRL's ``DPOTrainer``, same weights, pairs, order and optimiser.

    python benchmarks/preference_training.py --size 70m --steps 20
    python benchmarks/preference_training.py --ablation

No time counts before the losses of all agree to 1e-4 relative over all steps, at a learning rate at which the loss
leaves log 2 visibly. The table goes to ``benchmarks/results/``; the last line prints the ratios.
"""

import argparse
import math
from pathlib import Path

from matrix_product import matrix_product_rate
from tables import machine, write_table
from training_runs import OURS, TRL, Training, check_contenders, train
from workload import SHAPES, TLDR, needed_flops

HERE = Path(__file__).parent


def main() -> None:
    """Run the contenders and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="70m")
    parser.add_argument("--prompt-tokens", type=float, default=320, help="mean; the spread scales along")
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
    parser.add_argument("--ablation", action="store_true", help="overopt with each technique off in turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--micro-batch-tokens", type=int, default=None)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    contenders = list(OURS) if arguments.ablation else arguments.contenders
    if "overopt" not in contenders:
        parser.error("--contenders must name overopt, which the others are measured by")
    check_contenders(contenders)

    training = Training(
        size=arguments.size,
        lengths=TLDR.scaled(arguments.prompt_tokens / 320),
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        device=arguments.device,
        micro_batch_tokens=arguments.micro_batch_tokens,
    )
    shape = SHAPES[training.size]
    limits = [matrix_product_rate(shape, training.vocabulary, training.device)]
    results = train(contenders, training)
    # Before and after: a machine that others share may have changed its pace.
    limits.append(matrix_product_rate(shape, training.vocabulary, training.device))
    limit = sum(limits) / 2

    first, *_ = results.values()
    moved = max(abs(loss - math.log(2)) for loss in first.losses)
    apart = max(abs(a - b) / abs(b) for r in results.values() for a, b in zip(r.losses, first.losses, strict=True))
    print(f"losses of {training.steps} steps: apart by {apart:.1e} relative, away from log 2 by {moved:.2f}")
    if apart > 1e-4 or moved < 0.01:
        for name, result in results.items():
            print(f"{name:<34} {' '.join(f'{loss:.6f}' for loss in result.losses)}")
        raise SystemExit("the losses do not agree, or do not move: no time counts")
    pairs = training.pairs()
    flops = needed_flops(pairs, shape, training.vocabulary) / len(pairs)
    ours = results["overopt"]
    rows = [
        {
            "contender": name,
            "s/pair": f"{r.seconds_a_pair:.3f}",
            "times overopt's": f"{r.seconds_a_pair / ours.seconds_a_pair:.2f}",
            "peak GB": f"{r.peak_gb:.2f}",
            "needed GFLOP/s": f"{flops / r.seconds_a_pair / 1e9:.0f}",
            "utilisation": f"{flops / r.seconds_a_pair / limit:.0%}",
        }
        for name, r in results.items()
    ]
    about = f"{training.batch_size} pairs a step, prompts of about {arguments.prompt_tokens:g} tokens"
    title = f"DPO, Pythia-{training.size} shape, {about}"
    kind = "ablation" if arguments.ablation else "preference_training"
    name = f"{kind}_{training.device}_{training.size}_prompt{arguments.prompt_tokens:g}"
    notes = [
        f"losses of {training.steps} steps agree to {apart:.1e} relative and move by {moved:.2f}",
        "times are medians over steps; memory is the peak of the process, or of the GPU",
        f"utilisation: FLOPs the mathematics needs, over a matrix product's {limit / 1e9:.0f} GFLOP/s "
        f"(before {limits[0] / 1e9:.0f}, after {limits[1] / 1e9:.0f}), the fastest of the model's widest layers",
    ]
    write_table(arguments.out / f"{name}.md", title, rows, [*notes, *machine()])
    print(
        f"overopt at {flops / ours.seconds_a_pair / limit:.0%} of the matrix product's rate; "
        + "; ".join(
            f"{name}: {r.seconds_a_pair / ours.seconds_a_pair:.2f}x the time, "
            f"overopt has {ours.peak_gb / r.peak_gb:.2f}x its memory"
            for name, r in results.items()
            if name != "overopt"
        )
    )


if __name__ == "__main__":
    main()
