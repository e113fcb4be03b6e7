"""What a study could as well have measured: its points with other prompts, or other training runs.

Prompts are resampled with replacement, the same ones for every point, as every checkpoint answers the same prompts and
its luck with them is the others' luck too. Runs get weights as the Bayesian bootstrap draws them: with seven betas,
drawing runs with replacement would leave many a curve without its ends.

Sources: Efron and Tibshirani 1993, "An Introduction to the Bootstrap"; Rubin 1981, "The Bayesian Bootstrap".
"""

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from overopt.analysis.laws.curves import Curve, R0Setting
from overopt.analysis.laws.laws import distance

Source = Literal["prompts", "runs", "prompts and runs"]
SOURCES: tuple[Source, ...] = get_args(Source)
RESAMPLES = 1000


class Deviations(NamedTuple):
    """How far resampled means are from the measured ones.

    Attributes:
        divergence: of each point [nats].
        win_rate: of each point.
        reference: of the reference's win rate.
    """

    divergence: Float[np.ndarray, "resample point"]
    win_rate: Float[np.ndarray, "resample point"]
    reference: Float[np.ndarray, " resample"]


@dataclass(frozen=True)
class Resamples:
    """A curve as it could have been measured.

    Attributes:
        d: distances [sqrt(nats)].
        win_rate: of each point.
        reference: the reference's win rate.
        weights: of each point.
    """

    d: Float[np.ndarray, "resample point"]
    win_rate: Float[np.ndarray, "resample point"]
    reference: Float[np.ndarray, " resample"]
    weights: Float[np.ndarray, "resample point"]

    def r0(self, setting: R0Setting) -> Float[np.ndarray, " resample"] | None:
        """The value at d = 0 to hold fixed; ``None`` is to be fitted."""
        return {"measured": self.reference, "fitted": None, "zero": np.zeros(len(self.reference))}[setting]


def prompt_deviations(curve: Curve, num: int = RESAMPLES, seed: int = 0) -> Deviations:
    """Other prompts instead of these.

    Without kept completions each point errs by its own standard error, independently of the others.
    """
    generator = np.random.default_rng(seed)
    if curve.outcomes is None:
        shape = (num, len(curve.win_rate))
        return Deviations(
            curve.divergence_se * generator.standard_normal(shape),
            np.nan_to_num(curve.win_rate_se) * generator.standard_normal(shape),
            curve.reference_se * generator.standard_normal(num),
        )
    prompts = len(curve.outcomes.wins)
    counts = _prompt_counts(prompts, num, seed)
    # A divergence that is no mean over these prompts errs by its own standard error.
    apart = np.isnan(curve.outcomes.log_ratios).all(axis=0)
    divergence = _deviations(counts, curve.outcomes.log_ratios)
    divergence[:, apart] = curve.divergence_se[apart] * generator.standard_normal((num, int(apart.sum())))
    reference = _deviations(counts, curve.outcomes.reference_wins[:, None])[:, 0]
    return Deviations(divergence, _deviations(counts, curve.outcomes.wins), reference)


@lru_cache(maxsize=4)  # all curves of a study have equally many
def _prompt_counts(prompts: int, num: int, seed: int) -> Float[np.ndarray, "resample prompt"]:
    drawn = np.random.default_rng([seed, 2]).integers(prompts, size=(num, prompts))
    drawn += np.arange(num)[:, None] * prompts  # each resample counts in a range of its own
    counts: Float[np.ndarray, "resample prompt"] = np.bincount(drawn.ravel(), minlength=num * prompts).astype(float)
    return counts.reshape(num, prompts)


def _deviations(
    counts: Float[np.ndarray, "resample prompt"], values: Float[np.ndarray, "prompt column"]
) -> Float[np.ndarray, "resample column"]:
    known = np.isfinite(values)
    if not known.any():
        return np.zeros((len(counts), values.shape[1]))
    filled = np.where(known, values, 0.0)
    means = filled.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    moved: Float[np.ndarray, "resample column"] = counts @ np.where(known, filled - means, 0.0)
    # Where few prompts have a verdict, a resample may hold none of them, and then says nothing.
    present = counts @ known if not known.all() else np.full_like(moved, len(values))
    np.divide(moved, present, out=moved, where=present > 0)
    return moved


def resample(curve: Curve, num: int = RESAMPLES, seed: int = 0) -> dict[Source, Resamples]:
    """Draw a curve again and again: other prompts, other runs, or both.

    Args:
        curve: as measured.
        num: how often.
        seed: of the draws; prompts are drawn alike for all curves with equally many.
    """
    moved = prompt_deviations(curve, num, seed)
    shape = moved.win_rate.shape
    same_runs = np.broadcast_to(curve.weights, shape)
    other_runs = same_runs * run_weights(curve, num, seed)
    same = Resamples(
        np.broadcast_to(curve.d, shape),
        np.broadcast_to(curve.win_rate, shape),
        np.full(num, curve.reference_win_rate),
        same_runs,
    )
    others = Resamples(
        distance(curve.divergence + moved.divergence),
        curve.win_rate + moved.win_rate,
        curve.reference_win_rate + moved.reference,
        same_runs,
    )
    return {
        "prompts": others,
        "runs": replace(same, weights=other_runs),
        "prompts and runs": replace(others, weights=other_runs),
    }


def run_weights(curve: Curve, num: int = RESAMPLES, seed: int = 0) -> Float[np.ndarray, "resample point"]:
    """Weights of points, equal within a run, with mean 1 over runs."""
    runs = int(curve.run.max()) + 1
    # Runs of another curve are other runs: their luck is their own.
    own = zlib.crc32(f"{curve.name}, {curve.axis}, {curve.points}".encode())
    drawn = np.random.default_rng([seed, own]).dirichlet(np.ones(runs), size=num) * runs
    weights: Float[np.ndarray, "resample point"] = drawn[:, curve.run]
    return weights
