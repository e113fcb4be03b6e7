"""How long the statistics of a study take: fits with resampled intervals, comparisons, tests of the fall.

    python benchmarks/analysis_speed.py

63 simulated curves of 35 points and 512 prompts, 1,000 resamples each. Beside it, one curve's intervals the plain way:
scipy's curve_fit on each resample in a loop.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.optimize import curve_fit
from tables import machine, write_table

from overopt.analysis.findings.falls import fall_tests
from overopt.analysis.laws.curves import Curve, Curves
from overopt.analysis.laws.fit_tables import fit_curves
from overopt.analysis.laws.laws import LAWS
from overopt.analysis.laws.model_comparison import compare_laws
from overopt.analysis.laws.resampling import resample
from overopt.analysis.laws.simulation import simulated_curve, true_means

LIMIT = 20.0


def in_a_loop(curve: Curve, resamples: int) -> float:
    """Seconds for the same resamples of one curve and all laws, one curve_fit after another."""
    drawn = resample(curve, resamples)
    began = time.perf_counter()
    for of_source in drawn.values():
        for row in range(resamples):
            start = of_source.reference[row]
            for law in LAWS.values():
                curve_fit(
                    lambda x, first, second, law=law, start=start: start + law.gain(x, np.array([first, second])),
                    of_source.d[row],
                    of_source.win_rate[row],
                    p0=(0.1, 0.01),
                    sigma=of_source.weights[row] ** -0.5,
                )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=63)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "analysis_speed.md")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    means = true_means("log_law")
    curves = [simulated_curve(means, num_prompts=options.prompts, seed=seed) for seed in range(options.curves)]
    seconds: dict[str, float] = {}

    def timed(name: str, work) -> None:
        began = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - began

    timed("fits and intervals", lambda: fit_curves(Curves(curves, ()), resamples=options.resamples))
    timed("comparison of laws", lambda: compare_laws(curves, resamples=options.resamples))
    timed("tests of the fall", lambda: fall_tests(curves))
    few = max(1, options.resamples // 50)
    loop = in_a_loop(curves[0], few) * options.resamples / few * options.curves
    rows = [{"what": name, "seconds": f"{took:.1f}"} for name, took in seconds.items()]
    rows.append({"what": "fits and intervals, scipy in a loop (extrapolated)", "seconds": f"{loop:.0f}"})
    title = f"Statistics of {options.curves} curves, {options.resamples} resamples, {options.prompts} prompts"
    write_table(options.out, title, rows, notes=machine(("numpy", "scipy", "pandas")))
    took = seconds["fits and intervals"]
    print(
        f"{options.curves} curves with {options.resamples} resamples each in {took:.1f} s "
        f"({'under' if took < LIMIT else 'not under'} {LIMIT:.0f}), {loop / took:.0f} times as fast as scipy in a loop"
    )


if __name__ == "__main__":
    main()
