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
