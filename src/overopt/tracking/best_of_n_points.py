"""Tracking store -> best-of-n as tidy rows: one a run and n, with the metrics of points.csv.

They stand apart from :func:`overopt.tracking.tables.read_points`: a point of best-of-n has an n instead of a beta and
examples seen, and advice about checkpoints must not take it for one. In metrics and distance the two compare.
"""

from typing import NamedTuple

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from overopt.tracking.method_labels import BEST_OF_N, ensemble_label
from overopt.tracking.runs import PARENT_TAG, PROXY_TAG, STAGE_TAG
from overopt.tracking.store import open_store
from overopt.tracking.tables import METRICS

STAGE = "best_of_n"
RUN_COLUMNS = ("run_id", "objective", "model", "num_parameters", "seed", "n")
#: Beside those of points.csv.
OWN_METRICS = ("kl_bound_nats", "proxy_reward_se", "gold_reward_se")
_NEEDED = {"model", "num_parameters", "seed", "combine", "reward_models"}
COLUMNS = (*RUN_COLUMNS, *METRICS, *OWN_METRICS)


class BestOfNPoints(NamedTuple):
    """What a store holds of best-of-n.

    Attributes:
        table: one row a run and n, with :data:`COLUMNS`; NaN where a metric was not logged.
        notes: what was left out or stands together, and why, in words.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]


def read_best_of_n(
    tracking_uri: str | None, *, experiment: str | None = None, parent_run_id: str | None = None
) -> BestOfNPoints:
    """Finished runs of stage best_of_n.

    Of several runs of one cell (name, model, seed, data and files of reward models) the newest counts. A run that does
    not say of which model and seed it is, or chosen by what, is left out.

    Args:
        tracking_uri: an MLflow store.
        experiment: name of the one experiment to read; all of them by default.
        parent_run_id: read the children of this run (a study) only.

    Raises:
        ValueError: there is no such store.
    """
    client = open_store(tracking_uri, create=False)
    wanted = {STAGE_TAG: STAGE, **({} if parent_run_id is None else {PARENT_TAG: parent_run_id})}
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
    experiments = [found.experiment_id for found in client.search_experiments() if experiment in (None, found.name)]
    if not experiments:  # which the store would take for all
        return BestOfNPoints(pd.DataFrame(columns=list(COLUMNS)), ())
    found = client.search_runs(
        experiments,
        f"{query} and attributes.status = 'FINISHED'",
        max_results=1000,
        order_by=["attributes.start_time DESC"],
    )
    kept: dict[tuple[object, ...], dict[str | None, tuple[Run, dict[str, object]]]] = {}
    notes = []
    for run in found:
        run_id = run.info.run_id
        if (identity := _identity(run)) is None:
            notes.append(f"best-of-n run {run_id}: left out, it does not say of which model and seed it is")
            continue
        name = f"{identity['objective']}, {identity['model']}, seed {identity['seed']}"
        cell = *(identity[key] for key in ("objective", "model", "seed")), run.data.params.get("data_fingerprint")
        of_cell, reward = kept.setdefault(cell, {}), run.data.params.get("reward")
        if reward in of_cell:
            notes.append(f"{name}: run {run_id} left out, {of_cell[reward][0].info.run_id} is a newer run of the cell")
            continue
        notes += [
            f"{name}: runs {run_id} and {other.info.run_id} choose by different reward models; both are points of one "
            "curve: read one experiment or study at a time"
            for other, _ in of_cell.values()
        ]
        of_cell[reward] = run, identity
    rows = [row for of_cell in kept.values() for one in of_cell.values() for row in _rows(client, *one)]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(["model", "run_id", "n"], ignore_index=True)
    without = table.groupby("run_id")["n"].agg(lambda ns: 1 not in set(ns))
    notes += [
        f"best-of-n run {run_id} has no n = 1, its reference: it can't stand beside other methods"
        for run_id in without.index[without.astype(bool)]
    ]
    return BestOfNPoints(table, tuple(notes))


def _identity(run: Run) -> dict[str, object] | None:
    params, proxy = run.data.params, run.data.tags.get(PROXY_TAG)
    if not params.keys() >= _NEEDED or not params["reward_models"].isdigit():
        return None
    if proxy is None:
        models, price = int(params["reward_models"]), float(params.get("price", 0.0))
        proxy = ensemble_label(params["combine"], price, models) if models > 1 else ""
    return {
        "run_id": run.info.run_id,
        "objective": ", ".join(filter(None, [BEST_OF_N, proxy])),
        "model": params["model"],
        **{name: int(params[name]) for name in ("num_parameters", "seed")},
    }


def _rows(client: MlflowClient, run: Run, identity: dict[str, object]) -> list[dict[str, object]]:
    by_n: dict[int, dict[str, float]] = {}
    for name in (*METRICS, *OWN_METRICS):
        if f"eval/{name}" in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, f"eval/{name}"):
                by_n.setdefault(metric.step, {})[name] = metric.value
    return [{**identity, "n": n, **metrics} for n, metrics in sorted(by_n.items())]
