"""Points tables with a hump that is known."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

R0, ALPHA, BETA_FIT = 0.42, 0.165, 0.085
BETAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
EXAMPLES = 15_360

MakePoints = Callable[..., pd.DataFrame]


def hump(d: np.ndarray) -> np.ndarray:
    """The log law that the tables below follow."""
    return R0 + np.array([x * (ALPHA - BETA_FIT * np.log(x)) if x > 0 else 0.0 for x in d])


def make_points(
    objectives: tuple[str, ...] = ("dpo",),
    models: tuple[str, ...] = ("gpt_neox-0.5M",),
    *,
    betas: tuple[float, ...] = BETAS,
    num_seeds: int = 1,
    noise: float = 0.02,
) -> pd.DataFrame:
    """One run per objective, model, beta and seed: the reference and five checkpoints at fifths."""
    generator = np.random.default_rng(7)
    rows = []
    for objective in objectives:
        for model in models:
            for beta in betas:
                for seed in range(num_seeds):
                    for fifth in range(6):
                        kl = 0.0 if fifth == 0 else (0.5 + 0.25 / beta) * fifth / 5 * generator.uniform(0.9, 1.1)
                        win_rate = float(hump(np.array([kl**0.5]))[0])
                        rows.append(
                            {
                                "run_id": f"{objective}-{model}-{beta:g}-{seed}",
                                "objective": objective,
                                "model": model,
                                "num_parameters": 529_920,
                                "beta": beta,
                                "seed": seed,
                                "examples_seen": EXAMPLES * fifth // 5,
                                "epoch_fraction": 4 * fifth / 5,
                                "kl_nats": kl,
                                "kl_se": 0.05 * kl,
                                "forward_kl_nats": 1.3 * kl,
                                "win_rate": win_rate + (noise * generator.normal() if fifth else 0.0),
                                "win_rate_se": 0.022,
                            }
                        )
    return pd.DataFrame(rows)


@pytest.fixture(name="make_points", scope="session")
def _make_points() -> MakePoints:
    return make_points


METHODS = {
    "dpo": (0.16, 0.09),
    "ipo": (0.13, 0.075),
    "dpo, NLL 0.1 per token": (0.17, 0.075),
    "dpo, chi_squared link": (0.18, 0.08),
    "rloo, proxy 0.4M on 256 pairs": (0.20, 0.11),
    "rloo, worst of 4 proxies 0.4M on 256 pairs": (0.21, 0.095),
}
"""Log laws of the win rate of methods: gain at d is d (first - second ln d)."""
BEST_OF_N = {"best of n, proxy 0.4M on 256 pairs": (0.22, 0.12)}
LOGITS = 6.0
"""Gold reward a win rate."""


def method_gain(law: tuple[float, float], d: np.ndarray) -> np.ndarray:
    return d * (law[0] - law[1] * np.log(np.maximum(d, 1e-9)))


def make_methods(
    methods: dict[str, tuple[float, float]] = METHODS,
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    betas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.3),
    checkpoints: int = 5,
    furthest: float = 7.0,
    noise: float = 0.012,
    between: float = 0.1,
    rng: int = 3,
) -> pd.DataFrame:
    """Runs of several methods, whose gold reward is a multiple of the win rate's gain and whose proxy always rises.

    Args:
        methods: laws by method.
        seeds: of training.
        betas: the smallest goes furthest.
        checkpoints: of each run, after the reference.
        furthest: distance of the last checkpoint at the smallest beta [sqrt(nats)].
        noise: of each win rate.
        between: what seeds scale a method's gain by, standard deviation about 1.
        rng: of all noise.
    """
    generator = np.random.default_rng(rng)
    rows = []
    for method, law in methods.items():
        for seed in seeds:
            scale = generator.normal(1.0, between)
            for beta in betas:
                far = furthest * (betas[0] / beta) ** 0.45
                for step in range(checkpoints + 1):
                    d = far * (step / checkpoints) ** 0.5 * (generator.uniform(0.95, 1.05) if step < checkpoints else 1)
                    gain = float(scale * method_gain(law, np.array([d]))[0]) + (
                        noise * generator.normal() if step else 0
                    )
                    rows.append(
                        {
                            "run_id": f"{method}-{beta:g}-{seed}",
                            "objective": method,
                            "model": "tiny",
                            "num_parameters": 400_000,
                            "beta": beta,
                            "seed": seed,
                            "examples_seen": 1_000 * step,
                            "kl_nats": d**2,
                            "kl_se": 0.03 * d,
                            "win_rate": 0.42 + gain,
                            "win_rate_se": 0.014,
                            # Constants differ from run to run, and mean nothing.
                            "gold_reward": 5 * beta + LOGITS * gain,
                            "proxy_reward": -beta + 0.7 * d + (4 * noise * generator.normal() if step else 0.0),
                            "cost_tokens": 2e5 * step + 1e5 * seed,
                            "cost_seconds": 10.0 * step,
                        }
                    )
    return pd.DataFrame(rows)


def make_best_of_n(
    methods: dict[str, tuple[float, float]] = BEST_OF_N, *, seeds: tuple[int, ...] = (0, 1, 2), noise: float = 0.01
) -> pd.DataFrame:
    """Best-of-n rows with an n of powers of two up to 256, at the bound's KL."""
    generator = np.random.default_rng(5)
    rows = []
    for method, law in methods.items():
        for seed in seeds:
            for n in (2**power for power in range(9)):
                kl = float(np.log(n) - (n - 1) / n)
                gain = float(method_gain(law, np.array([kl**0.5]))[0]) + (noise * generator.normal() if n > 1 else 0)
                rows.append(
                    {
                        "run_id": f"{method}-{seed}",
                        "objective": method,
                        "model": "tiny",
                        "num_parameters": 400_000,
                        "seed": seed,
                        "combine": "mean",
                        "reward_models": 1,
                        "n": n,
                        "kl_nats": kl,
                        "win_rate": 0.42 + gain,
                        "gold_reward": 1.0 + LOGITS * gain,
                        "proxy_reward": 2.0 + kl**0.5,
                    }
                )
    return pd.DataFrame(rows)


@pytest.fixture(name="make_methods", scope="session")
def _make_methods() -> MakePoints:
    return make_methods


@pytest.fixture(name="make_best_of_n", scope="session")
def _make_best_of_n() -> MakePoints:
    return make_best_of_n
