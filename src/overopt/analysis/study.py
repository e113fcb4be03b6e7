"""Everything that is worked out from a study's points: one look, many tables."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from overopt.analysis.advice.advice_text import AdviceSection, advice_section
from overopt.analysis.findings.claim import Claim, claims_table
from overopt.analysis.findings.claims import paper_claims
from overopt.analysis.findings.falls import fall_tests
from overopt.analysis.findings.method_curves import COSTS, MethodPoints, method_points
from overopt.analysis.findings.methods import Methods, compare_methods
from overopt.analysis.findings.over_optimization import OverOptimization, over_optimization
from overopt.analysis.findings.rank_correlation import rank_correlations
from overopt.analysis.laws.curves import Curves, R0Setting, curves_of, require_columns
from overopt.analysis.laws.fit_tables import Fits, fit_curves
from overopt.analysis.laws.model_comparison import Comparison, compare_laws
from overopt.analysis.laws.shared_coefficients import shared_fits, size_trends


@dataclass(frozen=True)
class StudyAnalysis:
    """What the points say.

    Attributes:
        points: as they were given.
        curves: of the points.
        facts: where each curve peaks, and how far it falls.
        fits: every law on every curve.
        falls: tests of the fall on all checkpoints, p-values corrected for the number of curves of one divergence.
        comparison: which law, on all checkpoints against the KL.
        shared: whether curves share coefficients.
        trends: how coefficients move with model size.
        rank_correlations: of accuracy and loss with win rate.
        claims: the paper's.
        advice: what to ship and what to try.
        method_points: what methods are compared by, best-of-n among them.
        methods: every method beside the others.
        best_of_n: as they were given; in nothing but ``method_points``.
    """

    points: pd.DataFrame
    curves: Curves
    facts: list[OverOptimization]
    fits: Fits
    falls: pd.DataFrame
    comparison: Comparison
    shared: pd.DataFrame
    trends: pd.DataFrame
    rank_correlations: pd.DataFrame
    claims: list[Claim]
    advice: AdviceSection
    method_points: MethodPoints
    methods: Methods
    best_of_n: pd.DataFrame | None = None

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """By the name of their file."""
        costs = self.points.reindex(columns=["run_id", "examples_seen", *COSTS])
        return {
            # Seconds, which no seed repeats, have a table of their own.
            "points": self.points.drop(columns="cost_seconds", errors="ignore"),
            **({"costs": costs} if costs[list(COSTS)].notna().any(axis=None) else {}),
            "fits": self.fits.table,
            "intervals": self.fits.intervals,
            "falls": self.falls,
            "law_comparison": self.comparison.laws,
            "law_pairs": self.comparison.pairs,
            "shared_coefficients": self.shared,
            "size_trends": self.trends,
            "rank_correlations": self.rank_correlations,
            "claims": claims_table(self.claims),
            "methods": self.methods.table,
            "method_effects": self.methods.effects,
            **({} if self.best_of_n is None or self.best_of_n.empty else {"best_of_n": self.best_of_n}),
        }


def analyse(
    points: pd.DataFrame,
    completions: pd.DataFrame | None = None,
    *,
    best_of_n: pd.DataFrame | None = None,
    r0: R0Setting = "measured",
    errors_in_d: bool = False,
    notes: Sequence[str] = (),
) -> StudyAnalysis:
    """Work everything out.

    Args:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        completions: as for :func:`overopt.analysis.laws.curves.curves_of`.
        best_of_n: rows as :func:`overopt.tracking.best_of_n_points.read_best_of_n` gives them; they enter the
            comparison of methods alone.
        r0: win rate at d = 0: the reference's own, a fitted one, or 0 (Eq. 5 as printed). Tests of falls and of equal
            coefficients, and claims, take the reference's own.
        errors_in_d: add fits by orthogonal distance regression.
        notes: what was left out before, to be named where nothing can be worked out.

    Raises:
        ValueError: columns are missing, or no trained checkpoint has both a KL and a win rate.
    """
    require_columns(points, ["run_id", "objective", "model", "beta", "seed", "examples_seen", "kl_nats", "win_rate"])
    curves = curves_of(points, completions)
    if not curves.select():
        raise ValueError(
            "no trained checkpoint has both a KL and a win rate, so there is no curve; evaluate checkpoints with a "
            "judge first" + "".join(f" ({note})" for note in notes[:1])
        )
    fits = fit_curves(curves, r0=r0, errors_in_d=errors_in_d)
    falls = pd.concat([fall_tests(curves.select(axis)) for axis in ("kl", "forward_kl")], ignore_index=True)
    fitted = [curve for curve in curves.select() if curve.can_be_fitted(r0)]
    comparison = compare_laws(fitted, r0)
    sizes = (
        {
            str(model): int(number)
            for model, number in points.groupby("model")["num_parameters"].first().dropna().items()
        }
        if "num_parameters" in points
        else {}
    )
    of_methods = method_points(points, best_of_n, curves)
    return StudyAnalysis(
        points=points,
        curves=curves,
        facts=over_optimization(points, fits.table, falls),
        fits=fits,
        falls=falls,
        comparison=comparison,
        shared=shared_fits(fitted),
        trends=size_trends(fitted, sizes, r0),
        rank_correlations=rank_correlations(points),
        claims=paper_claims(points, curves, falls, comparison.laws),
        advice=advice_section(points, completions),
        method_points=of_methods,
        methods=compare_methods(of_methods),
        best_of_n=best_of_n,
    )
