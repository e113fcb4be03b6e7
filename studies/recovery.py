"""Does the analysis find what was put in: simulated sweeps of each law, seven betas and five checkpoints.

    make recovery

Win rates of 256 prompts, which all checkpoints share, as in a real sweep. Counted over the repeats: how often a 95%
interval holds the truth, by what the interval is made from, and how often the true law is chosen, beside how often the
report says that it would be.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from kept import keep_summary
from rich.progress import track

from overopt.analysis.laws.fit_tables import fit_one, fit_resamples, resampled_estimates
from overopt.analysis.laws.laws import COMPARED
from overopt.analysis.laws.model_comparison import compare_laws
from overopt.analysis.laws.resampling import resample
from overopt.analysis.laws.simulation import REFERENCE, TRUTHS, simulated_curve, true_means

LOW, HIGH = 0.93, 0.97


def covered(law_name: str, curve) -> list[dict[str, object]]:
    """Whether each interval of the true law holds the truth."""
    law, truth = COMPARED[law_name], TRUTHS[law_name]
    truths = dict(zip(law.coefficients, truth, strict=True))
    truths |= {"d_star": law.d_star(truth), "peak": REFERENCE + law.peak_gain(truth)}
    fit = fit_one(curve, law)
    values = {**{name: e.value for name, e in fit.estimates().items()}, "d_star": fit.d_star().value}
    values["peak"] = fit.peak().value
    drawn = resample(curve, seed=curve_seed(curve))["prompts"]
    sources = {"prompts": resampled_estimates(law, values, fit_resamples(law, drawn)), "profile": fit.profile()}
    return [
        {
            "truth": law_name,
            "source": source,
            "quantity": name,
            "covered": np.nan if np.isnan(estimate.low) else estimate.low <= truths[name] <= estimate.high,
        }
        for source, estimates in sources.items()
        for name, estimate in estimates.items()
    ]


def curve_seed(curve) -> int:
    """Resamples of their own for each repeat."""
    return int(curve.outcomes.wins.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--shared", type=float, default=0.3, help="part of a prompt's luck that policies share")
    parser.add_argument("--keep", type=Path, default=None, help="folder for tables and the summary")
    options = parser.parse_args()
    coverage: list[dict[str, object]] = []
    choices: list[dict[str, object]] = []
    for name in TRUTHS:
        means = true_means(name)
        for repeat in track(range(options.repeats), description=name):
            curve = simulated_curve(means, num_prompts=options.prompts, shared=options.shared, seed=repeat)
            if name in COMPARED:
                coverage += covered(name, curve)
            laws = compare_laws([curve], resamples=200).laws.set_index("law")
            choices.append(
                {
                    "truth": name,
                    "chosen": laws.index[laws["chosen"]][0],
                    "claimed": laws.loc[name, "chosen_if_true"],
                    "confidence": laws["best_share"].max(),
                    "right": bool(laws.loc[name, "chosen"]),
                }
            )
    covers = pd.DataFrame(coverage).astype({"covered": float})
    covers = covers.groupby(["truth", "source", "quantity"], sort=False)["covered"].agg(["mean", "count"]).reset_index()
    chosen = pd.DataFrame(choices)
    rates = chosen.groupby("truth", sort=False).agg(chosen=("right", "mean"), claimed=("claimed", "mean"))
    lines = [
        f"{options.repeats} repeats a law, {options.prompts} prompts, 35 points; a share of repeats has a standard "
        f"error of at most {0.5 / options.repeats**0.5:.3f}",
        covers.to_string(index=False, float_format="{:.3f}".format),
        rates.to_string(float_format="{:.3f}".format),
    ]
    by_prompts = covers[covers["source"] == "prompts"]
    inside = by_prompts["mean"].between(LOW, HIGH)
    gap = float((rates["chosen"] - rates["claimed"]).abs().max())
    lines.append(
        f"{inside.sum()} of {len(by_prompts)} intervals by resampled prompts hold the truth in {LOW:.0%} to {HIGH:.0%} "
        f"of repeats; the true law is chosen at the claimed rate within {gap:.3f}"
    )
    if options.keep is not None:
        keep_summary(options.keep, lines)
        covers.to_csv(options.keep / "coverage.csv", index=False)
        chosen.to_csv(options.keep / "choices.csv", index=False)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
