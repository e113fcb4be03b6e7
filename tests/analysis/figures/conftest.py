"""Points tables with everything that an evaluation measures, by formulas that tests can redo."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

SIZES = {"tiny": 400_000, "small": 9_000_000, "large": 10_000_000}


@pytest.fixture(name="measured_points", scope="session")
def _measured_points(make_points) -> Callable[..., pd.DataFrame]:
    def measured_points(
        objectives: tuple[str, ...] = ("dpo",), models: tuple[str, ...] = tuple(SIZES), **settings: object
    ) -> pd.DataFrame:
        points = make_points(objectives, models, **settings)
        kl, trained = points["kl_nats"], points["examples_seen"] > 0
        generator = np.random.default_rng(11)
        return points.assign(
            num_parameters=points["model"].map(SIZES).astype("Int64"),
            forward_kl_se=0.04 * kl,
            win_rate_length_controlled=points["win_rate"] - 0.01 * kl / (1 + kl),
            win_rate_length_controlled_se=0.024,
            loss=np.log(2) + 0.01 * kl + 0.02 * generator.normal(size=len(points)) * trained,
            implicit_reward_accuracy=np.where(trained, 0.55 + 0.02 * generator.normal(size=len(points)), 0.0),
            chosen_log_ratio=-1.3 * kl,
            rejected_log_ratio=-1.5 * kl,
            length_r2=np.where(trained, 0.4 / (1 + kl), np.nan),
            length_r2_uncentred=np.where(trained, 0.8 / (1 + kl), np.nan),
        )

    return measured_points
