"""Where a curve peaks, how high, and how sure that is: by the law that misses the points least."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from overopt.analysis.laws.curves import Curve
from overopt.analysis.laws.fit_tables import REACH, peak_places
from overopt.analysis.laws.fitting import ManyFits
from overopt.analysis.laws.intervals import Estimate, percentiles
from overopt.analysis.laws.laws import COMPARED
from overopt.analysis.laws.model_comparison import CANDIDATES, as_measured, fit_all, least_error
from overopt.analysis.laws.resampling import RESAMPLES, Resamples, resample


@dataclass(frozen=True)
class PredictedPeak:
    """The top of a curve.

    Intervals come from other prompts and other runs, and in each the law is chosen anew: they count that another law
    might be the right one.

    Attributes:
        law: the name of the one that misses the points least.
        support: share of resamples in which it does.
        kl_nats: where it peaks [nats]: infinity where it rises on, or peaks out of reach of the points; 0 where it only
            falls. An infinite end says that no fall, or no rise, is ruled out.
        win_rate: how high; NaN without a peak, without an interval where its place has an open end.
        places: distances of the resamples' peaks [sqrt(nats)], infinite or 0 likewise.
    """

    law: str
    support: float
    kl_nats: Estimate
    win_rate: Estimate
    places: Float[np.ndarray, " resample"]

    @property
    def exists(self) -> bool:
        """Whether the law has a top within reach."""
        return math.isfinite(self.kl_nats.value) and self.kl_nats.value > 0

    def chance_before(self, d: float) -> float:
        """Share of resamples that peak before a distance [sqrt(nats)]."""
        return float(np.mean(self.places < d))


def predict_peak(curve: Curve, resamples: int = RESAMPLES) -> PredictedPeak:
    """Predict the peak of a curve that has a reference and betas enough."""
    reach = REACH * float(curve.d.max())
    [law], [place], [height] = _tops(fit_all(as_measured(curve), "measured"), reach)
    chosen, places, heights = _tops(fit_all(resample(curve, resamples)["prompts and runs"], "measured"), reach)
    _, low, high = percentiles(float(place), places)
    return PredictedPeak(
        law=law,
        support=float(np.mean([name == law for name in chosen])),
        kl_nats=Estimate(float(place**2), low**2, high**2),
        win_rate=percentiles(float(height), heights[np.isfinite(heights)])
        if math.isfinite(height) and low > 0 and math.isfinite(high)
        else Estimate(float(height)),
        places=places,
    )


def _tops(
    fits: dict[str, ManyFits], reach: float
) -> tuple[list[str], Float[np.ndarray, " resample"], Float[np.ndarray, " resample"]]:
    """Of each resample: the law that misses it least, where that peaks and how high."""
    chosen = least_error({name: many.rss for name, many in fits.items()})
    places = np.full(len(chosen), math.inf)
    heights = np.full(len(chosen), math.nan)
    for name, law in COMPARED.items():
        mine = np.array([one == name for one in chosen])
        found = peak_places(law, fits[name].coefficients)
        places[mine] = np.where(found > reach, math.inf, found)[mine]
        mine &= (places > 0) & np.isfinite(places)
        gains = np.einsum("fc,fc->f", law.basis(places[mine]), fits[name].coefficients[mine])
        heights[mine] = fits[name].r0[mine] + gains
    return chosen, places, heights


def fitted_levels(drawn: Resamples) -> Float[np.ndarray, "resample point"]:
    """The curve that misses each resample least, at its points [win rate]."""
    fits = fit_all(drawn, "measured")
    levels = np.empty_like(drawn.win_rate)
    for row, name in enumerate(least_error({name: many.rss for name, many in fits.items()})):
        many = fits[name]
        levels[row] = many.r0[row] + CANDIDATES[name].gain(drawn.d[row], many.coefficients[row])
    return levels
