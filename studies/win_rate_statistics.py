"""The statistics of verdicts, held against other people's code and against chance itself.

    make judge-statistics

On random data, against statsmodels and scipy:

1. length-controlled win rate: estimate, standard error and interval of a binomial model with HC0 covariance;
2. agreement: share with Wilson's interval, Cohen's kappa with its asymptotic interval;
3. position bias: mean, standard error, and the interval of a bootstrap of scipy's;
4. what n prompts can resolve: power of two proportions, of one by the exact binomial, of pairs by simulation.

How often a 95% interval holds the true value, over simulated evaluations; the nominal share is 0.95, and 0.93 to 0.97
counts as held:

5. win rate, Wilson's interval, over the exact binomial of 256 prompts at true rates from 0.1 to 0.9, on average;
6. win rate, bootstrap over graded verdicts of 256 prompts;
7. length-controlled win rate, 256 prompts, judged by wins and losses;
8. the same, graded by a judge whose grades scatter;
9. kappa of two judges on 438 comparisons.

The last line says how many of the nine hold.
"""

import math
import warnings

import numpy as np
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import binom, bootstrap, norm, sem
from statsmodels.stats.inter_rater import cohens_kappa as statsmodels_kappa
from statsmodels.stats.proportion import power_proportions_2indep, proportion_confint

from overopt.evaluation.agreement import CHOICES, agreement, cohens_kappa
from overopt.evaluation.length_control import length_controlled_win_rate
from overopt.evaluation.position_bias import position_bias
from overopt.evaluation.records import Verdict
from overopt.evaluation.resolution import (
    smallest_difference,
    smallest_distance_from_half,
    smallest_paired_difference,
)
from overopt.evaluation.win_rate import bootstrap_interval, wilson_interval

Z = norm.ppf(0.975)
NUM_PROMPTS = 256


def length_control(num_data_sets: int = 300) -> bool:
    """Bare, graded and tied verdicts on 10 to 400 prompts, lengths in words."""
    draw = np.random.default_rng(0)
    worst, fitted = 0.0, 0
    for place in range(num_data_sets):
        count = int(draw.integers(10, 400))
        differences = np.round(draw.normal(5 * draw.normal(), draw.uniform(3, 20), count))
        shares = expit(draw.normal() + draw.normal() * np.tanh(differences / differences.std()))
        values = [draw.binomial(1, shares), shares, draw.choice([0, 0.5, 1], count)][place % 3].astype(float)
        rate = length_controlled_win_rate(_graded(values), differences.tolist())
        if rate.note:
            continue
        fitted += 1
        design = sm.add_constant(np.tanh(differences / differences.std(ddof=1)))
        model = sm.GLM(values, design, family=sm.families.Binomial()).fit(cov_type="HC0", tol=1e-12)
        at_equal = model.get_prediction(np.array([[1.0, 0.0]])).summary_frame().to_numpy().ravel()
        ours = [*rate[:4], *rate[4:7]]
        theirs = [*at_equal, model.params[1], *model.conf_int()[1]]
        worst = max(worst, *np.abs(np.subtract(ours, theirs)))
    print(f"1. length-controlled win rate against statsmodels, {fitted} data sets: largest difference {worst:.1e}")
    return worst < 1e-8 and fitted > 0.8 * num_data_sets


def agreement_of_judges(num_tables: int = 300) -> bool:
    """Random tables of wins, losses and ties, with unreadable verdicts among them."""
    draw = np.random.default_rng(1)
    worst, compared = 0.0, 0
    verdicts = [Verdict("win", 1.0), Verdict("loss", 0.0), Verdict("tie", 0.5)]
    for _ in range(num_tables):
        table = draw.multinomial(int(draw.integers(30, 500)), draw.dirichlet(np.ones(9))).reshape(3, 3)
        first, second = (np.repeat(axis.ravel(), table.ravel()) for axis in np.indices((3, 3)))
        left_out = [Verdict("unreadable", None)]
        found = agreement([verdicts[i] for i in first] + left_out, [verdicts[j] for j in second] + left_out)
        expected = statsmodels_kappa(table)
        share = proportion_confint(np.trace(table), table.sum(), method="wilson")
        theirs = [
            *(np.trace(table) / table.sum(), *share),
            *(expected.kappa, expected.std_kappa, max(-1.0, expected.kappa_low), min(1.0, expected.kappa_upp)),
        ]
        worst = max(worst, *np.abs(np.subtract(found[:7], theirs)))
        compared += found.num_left_out == 1
    print(f"2. agreement and kappa against statsmodels, {compared} tables: largest difference {worst:.1e}")
    return worst < 1e-10 and compared == num_tables


def position(num_data_sets: int = 20) -> bool:
    """Judges asked in both orders; a bootstrap has noise of its own, of a few hundredths of a standard error."""
    draw = np.random.default_rng(2)
    worst = worst_end = 0.0
    for _ in range(num_data_sets):
        values = draw.choice([0, 0.5, 1], NUM_PROMPTS, p=draw.dirichlet([4, 4, 4]))
        bias = position_bias([Verdict("graded", 0.5, first_preferred=float(value)) for value in values])
        worst = max(worst, abs(bias.bias + 0.5 - values.mean()), abs(bias.standard_error - sem(values)))
        ends = bootstrap((values,), np.mean, method="percentile", rng=draw, vectorized=True).confidence_interval
        difference = np.subtract([bias.low, bias.high], [ends.low - 0.5, ends.high - 0.5])
        worst_end = max(worst_end, np.abs(difference).max() / bias.standard_error)
    print(
        f"3. position bias against scipy: largest difference {worst:.1e}; ends of the interval, "
        f"{worst_end:.2f} standard errors"
    )
    return worst < 1e-12 and worst_end < 0.25


def resolution(num_evaluations: int = 10_000) -> bool:
    """Power at the smallest difference that is said to be found in 80% of cases."""
    draw = np.random.default_rng(3)
    difference = smallest_difference(NUM_PROMPTS)
    unpaired = power_proportions_2indep(difference, 0.5 - difference / 2, NUM_PROMPTS).power
    wins = np.arange(NUM_PROMPTS + 1)
    found = np.abs(wins / NUM_PROMPTS - 0.5) > Z * 0.5 / math.sqrt(NUM_PROMPTS)
    distance = smallest_distance_from_half(NUM_PROMPTS)
    from_half = binom.pmf(wins, NUM_PROMPTS, 0.5 + distance)[found].sum()
    paired = smallest_paired_difference(NUM_PROMPTS, standard_deviation=0.6)
    differ = 0.6**2 + paired**2  # share of prompts that one wins and the other loses
    shares = [(differ - paired) / 2, 1 - differ, (differ + paired) / 2]
    pairs = draw.choice([-1, 0, 1], (num_evaluations, NUM_PROMPTS), p=shares)
    of_pairs = np.mean(np.abs(pairs.mean(axis=1)) > Z * sem(pairs, axis=1))
    print(
        f"4. {NUM_PROMPTS} prompts, power of 0.8 wanted: two policies {difference:.3f} apart {unpaired:.3f}, a rate "
        f"{distance:.3f} from one half {from_half:.3f}, pairs {paired:.3f} apart {of_pairs:.3f}"
    )
    return all(abs(power - 0.8) < 0.03 for power in (unpaired, from_half, of_pairs))


def wilson_coverage() -> bool:
    """No simulation: every number of wins with its probability."""
    wins = np.arange(NUM_PROMPTS + 1)
    intervals = np.array([wilson_interval(won / NUM_PROMPTS, NUM_PROMPTS) for won in wins])
    rates = np.linspace(0.1, 0.9, 161)
    covered = [binom.pmf(wins, NUM_PROMPTS, p)[(intervals[:, 0] <= p) & (p <= intervals[:, 1])].sum() for p in rates]
    print(f"5. win rate, Wilson: holds in {np.mean(covered):.3f} (lowest at any rate {min(covered):.3f})")
    return _near_nominal(float(np.mean(covered)))


def bootstrap_coverage(num_evaluations: int = 1000) -> bool:
    """Grades of a beta distribution with mean 0.4."""
    draw = np.random.default_rng(4)
    covered = 0
    for seed in range(num_evaluations):
        low, high = bootstrap_interval(draw.beta(0.8, 1.2, NUM_PROMPTS), seed=seed)
        covered += low <= 0.4 <= high
    return _print_coverage("6. win rate, bootstrap", covered, num_evaluations)


def bare_length_controlled_coverage(num_evaluations: int = 2000) -> bool:
    """A judge that likes length, and samples that are longer: the plain win rate is 0.57, at equal length 0.5."""
    draw = np.random.default_rng(5)
    covered, plain = 0, 0.0
    for _ in range(num_evaluations):
        differences = draw.normal(6, 12, NUM_PROMPTS)
        wins = draw.binomial(1, expit(np.tanh(differences / 12))).astype(float)
        rate = length_controlled_win_rate(_graded(wins), differences.tolist())
        covered += rate.low <= 0.5 <= rate.high
        plain += wins.mean() / num_evaluations
    return _print_coverage(f"7. win rate at equal length 0.5, plain {plain:.2f}", covered, num_evaluations)


def graded_length_controlled_coverage(num_evaluations: int = 2000) -> bool:
    """Grades that scatter about the model's mean, most where lengths differ most."""
    draw = np.random.default_rng(6)
    covered, true_rate = 0, float(expit(-0.4))
    for _ in range(num_evaluations):
        differences = draw.normal(-3, 12, NUM_PROMPTS)
        shares = expit(-0.4 + np.tanh(differences / 12))
        sharpness = np.where(np.abs(differences) > 12, 0.5, 5.0)
        grades = draw.beta(sharpness * shares, sharpness * (1 - shares))
        rate = length_controlled_win_rate(_graded(grades), differences.tolist())
        covered += rate.low <= true_rate <= rate.high
    return _print_coverage("8. win rate at equal length, graded", covered, num_evaluations)


def kappa_coverage(num_evaluations: int = 5000) -> bool:
    """Two judges with few ties who agree in 72% of comparisons."""
    draw = np.random.default_rng(7)
    shares = np.array([[0.40, 0.10, 0.02], [0.10, 0.30, 0.02], [0.02, 0.02, 0.02]])
    by_chance = float(shares.sum(axis=1) @ shares.sum(axis=0))
    kappa = (np.trace(shares) - by_chance) / (1 - by_chance)
    covered = 0
    for table in draw.multinomial(438, shares.ravel(), num_evaluations).reshape(-1, len(CHOICES), len(CHOICES)):
        estimate, error = cohens_kappa(table)
        covered += abs(estimate - kappa) <= Z * error
    return _print_coverage(f"9. kappa {kappa:.2f} on 438 comparisons", covered, num_evaluations)


def _graded(values: np.ndarray) -> list[Verdict]:
    return [Verdict("graded", value) for value in values.tolist()]


def _print_coverage(what: str, covered: int, num_evaluations: int) -> bool:
    share = covered / num_evaluations
    noise = math.sqrt(share * (1 - share) / num_evaluations)
    print(f"{what}: holds in {share:.3f} of {num_evaluations} evaluations (+- {noise:.3f})")
    return _near_nominal(share)


def _near_nominal(share: float) -> bool:
    return abs(share - 0.95) < 0.02


def main() -> None:
    """Measure and print."""
    # Of statsmodels', about a z-value that nobody asks for.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="statsmodels")
    held = [
        length_control(),
        agreement_of_judges(),
        position(),
        resolution(),
        wilson_coverage(),
        bootstrap_coverage(),
        bare_length_controlled_coverage(),
        graded_length_controlled_coverage(),
        kappa_coverage(),
    ]
    print(f"{sum(held)} of {len(held)} hold")


if __name__ == "__main__":
    main()
