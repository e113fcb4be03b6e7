"""What the paper claims of the tree MDP (App. E), held against many seeds."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float

from overopt.analysis.findings.claim import Claim, above, below, mean_estimate, share_estimate
from overopt.analysis.laws.curves import OBJECTIVE_NAMES
from overopt.analysis.laws.intervals import Estimate, percentiles

SETTING = ["objective", "beta"]
MASSES = ["chosen", "rejected", "demonstrated", "unseen"]
MEASURES = [*MASSES, "unseen_effective", "unseen_top", "unseen_few", "margin_nats", "kl_nats"]
STRONG_SPREAD = 0.1
RESAMPLES = 2000


def settings_summary(masses: pd.DataFrame) -> pd.DataFrame:
    """How seeds are spread at the reference, where unseen mass is largest, and at the end.

    Args:
        masses: ``objective``, ``beta`` and the columns of :func:`overopt.theory.trajectory_mass.mass_table`.

    Returns:
        A row a setting, ``when`` (reference, most unseen, end) and ``measure``: mean over seeds with its 95% interval,
        median, and the quantiles 5% and 95% of single seeds.
    """
    moments = {"reference": _at_reference(masses), "most unseen": _at_most_unseen(masses), "end": _at_end(masses)}
    rows = []
    for when, table in moments.items():
        for (objective, beta), seeds in table.groupby(SETTING, sort=True):
            for measure in MEASURES:
                values = seeds[measure].to_numpy(float)
                mean = mean_estimate(values)
                low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
                rows.append(
                    {"objective": objective, "beta": beta, "when": when, "measure": measure, "seeds": len(values),
                     "mean": mean.value, "mean_low": mean.low, "mean_high": mean.high,
                     "median": median, "quantile_05": low, "quantile_95": high}
                )  # fmt: skip
    return pd.DataFrame(rows)


def tree_claims(masses: pd.DataFrame) -> list[Claim]:
    """The claims of App. E, and of App. D where the tree can tell; see :func:`settings_summary` for the table."""
    return [
        _sft_imitates(masses),
        *_pair_falls(masses),
        *_unseen_rises(masses),
        *_seeds_differ(masses),
        *_unseen_is_concentrated(masses),
        *_smaller_beta_goes_further(masses),
    ]


def both_fell(masses: pd.DataFrame, *, by: float = 0.0) -> pd.Series:
    """Whether, at each row, both trajectories of the pair have less mass than under the reference and the unseen more.

    Args:
        masses: rows from the reference on.
        by: how much more the unseen have at least.
    """
    start = _reference_of_each(masses)
    fell = (masses["chosen"] < start["chosen"]) & (masses["rejected"] < start["rejected"])
    return fell & (masses["unseen"] > start["unseen"] + by)


def _settings(table: pd.DataFrame) -> Iterator[tuple[str, float, pd.DataFrame]]:
    for (objective, beta), seeds in table.groupby(SETTING, sort=True):
        yield str(objective), float(str(beta)), seeds


def _at_reference(masses: pd.DataFrame) -> pd.DataFrame:
    return masses[masses["step"] == 0]


def _at_end(masses: pd.DataFrame) -> pd.DataFrame:
    return masses[masses["step"] == masses.groupby(SETTING)["step"].transform("max")]


def _at_most_unseen(masses: pd.DataFrame) -> pd.DataFrame:
    return masses.loc[masses.groupby([*SETTING, "seed"])["unseen"].idxmax()]


def _reference_of_each(masses: pd.DataFrame) -> pd.DataFrame:
    """For each row, the masses of its own seed at step 0."""
    keys = [*SETTING, "seed"]
    return masses[keys].merge(_at_reference(masses)[[*keys, *MASSES]], on=keys, how="left").set_index(masses.index)


def _name(objective: str, beta: float) -> str:
    return f"{OBJECTIVE_NAMES.get(objective, objective)} at beta {beta:g}"


def _sft_imitates(masses: pd.DataFrame) -> Claim:
    start = _at_reference(masses).drop_duplicates("seed")
    estimate = mean_estimate(1 - start["unseen"].to_numpy(float))
    return Claim(
        source="App. E.1",
        text="SFT puts most mass on the demonstrations.",
        measure="probability of the trajectories in the data under the reference, mean over seeds",
        estimate=estimate,
        rule="holds where it lies above one half, does not where it lies below",
        verdict=above(0.5, estimate),
        basis=f"{len(start)} seeds",
    )


def _pair_falls(masses: pd.DataFrame) -> Iterator[Claim]:
    masses = masses.assign(fell=both_fell(masses))
    for objective, beta, seeds in _settings(masses):
        by_seed = seeds.groupby("seed")["fell"]
        at_end = _at_end(seeds)["fell"]
        estimate = share_estimate(int(at_end.sum()), len(at_end))
        yield Claim(
            source="Fig. 7, App. E",
            text=f"{_name(objective, beta)}: both trajectories of the pair lose mass while unseen ones gain.",
            measure="share of seeds in which it is so at the end",
            estimate=estimate,
            rule="holds where the share lies above one half, does not where it lies below",
            verdict=above(0.5, estimate),
            basis=f"{int(at_end.sum())} of {len(at_end)} seeds at the end, {int(by_seed.any().sum())} at some step",
        )


def _unseen_rises(masses: pd.DataFrame) -> Iterator[Claim]:
    for objective, beta, seeds in _settings(masses):
        start = _at_reference(seeds).set_index("seed")["unseen"]
        rise = _at_end(seeds).set_index("seed")["unseen"] - start
        most = _at_most_unseen(seeds).set_index("seed")["unseen"] - start
        estimate = mean_estimate(rise.to_numpy(float))
        yield Claim(
            source="Fig. 7, App. E",
            text=f"{_name(objective, beta)}: mass moves to trajectories that nobody demonstrated or compared.",
            measure="unseen mass at the end less the reference's, mean over seeds",
            estimate=estimate,
            rule="holds where it lies above 0, does not where it lies below",
            verdict=above(0.0, estimate),
            basis=f"{len(rise)} seeds; at its largest in training it is {most.mean():+.2f} on average",
        )


def _seeds_differ(masses: pd.DataFrame) -> Iterator[Claim]:
    for objective, beta, seeds in _settings(_at_end(masses)):
        chosen = seeds["chosen"].to_numpy(float)
        estimate = _spread(chosen)
        low, high = np.quantile(chosen, [0.05, 0.95])
        yield Claim(
            source="Fig. 18, App. E",
            text=f"{_name(objective, beta)}: runs that differ in their seed alone end far apart.",
            measure="standard deviation over seeds of the chosen trajectory's mass at the end",
            estimate=estimate,
            rule=f"holds where it lies above {STRONG_SPREAD}, does not where it lies below",
            verdict=above(STRONG_SPREAD, estimate),
            basis=f"{len(chosen)} seeds, nine of ten between {low:.2f} and {high:.2f}",
        )


def _spread(values: Float[np.ndarray, " seed"]) -> Estimate:
    """Standard deviation, with the percentiles of seeds drawn again."""
    if len(values) < 3:
        return Estimate(float(values.std(ddof=1)) if len(values) > 1 else np.nan)
    drawn = np.random.default_rng(0).choice(values, size=(RESAMPLES, len(values)))
    return percentiles(float(values.std(ddof=1)), drawn.std(axis=1, ddof=1))


def _unseen_is_concentrated(masses: pd.DataFrame) -> Iterator[Claim]:
    for objective, beta, seeds in _settings(masses):
        start, end = (table(seeds).set_index("seed") for table in (_at_reference, _at_end))
        estimate = mean_estimate((end["unseen_few"] - start["unseen_few"]).to_numpy(float))
        yield Claim(
            source="App. E",
            text=f"{_name(objective, beta)}: the mass outside the data gathers on a select few trajectories.",
            measure="share of the unseen mass on its three likeliest trajectories, end less reference, mean over seeds",
            estimate=estimate,
            rule="holds where it lies above 0, does not where it lies below",
            verdict=above(0.0, estimate),
            basis=f"{len(end)} seeds; their share is {start['unseen_few'].mean():.2f} under the reference and "
            f"{end['unseen_few'].mean():.2f} at the end, as if {start['unseen_effective'].mean():.1f} and "
            f"{end['unseen_effective'].mean():.1f} trajectories had equal mass",
        )


def _smaller_beta_goes_further(masses: pd.DataFrame) -> Iterator[Claim]:
    for objective, seeds in masses.groupby("objective", sort=True):
        for when, table in {"at the end": _at_end(seeds), "at its largest": _at_most_unseen(seeds)}.items():
            wide = table.pivot_table("unseen", "seed", "beta")
            decades = np.log10(wide.columns.to_numpy(float))
            if len(decades) < 2:
                continue
            centred = decades - decades.mean()
            estimate = mean_estimate(wide.to_numpy(float) @ centred / (centred**2).sum())
            means = ", ".join(f"{value:.2f} at {beta:g}" for beta, value in wide.mean().items())
            name = OBJECTIVE_NAMES.get(str(objective), str(objective))
            yield Claim(
                source="App. D, App. E",
                text=f"{name}: a smaller beta puts more mass outside the data.",
                measure=f"change of the unseen mass, {when}, for ten times the beta, mean over seeds",
                estimate=estimate,
                rule="holds where it lies below 0, does not where it lies above",
                verdict=below(0.0, estimate),
                basis=f"{len(wide)} seeds; {means}",
            )
