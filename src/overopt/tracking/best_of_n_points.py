"""Tracking store -> best-of-n as tidy rows: one a run and n, with the metrics of points.csv.

They stand apart from :func:`overopt.tracking.tables.read_points`: a point of best-of-n has an n instead of a beta and
examples seen, and advice about checkpoints must not take it for one. In metrics and distance the two compare.
"""

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from overopt.tracking.runs import PARENT_TAG, PROXY_TAG, STAGE_TAG
from overopt.tracking.store import open_store
from overopt.tracking.tables import METRICS

STAGE = "best_of_n"
RUN_COLUMNS = ("run_id", "objective", "model", "num_parameters", "seed", "n")
#: Beside those of points.csv.
OWN_METRICS = ("kl_bound_nats", "proxy_reward_se", "gold_reward_se")
_NEEDED = {"model", "num_parameters", "seed", "combine", "reward_models"}
COLUMNS = (*RUN_COLUMNS, *METRICS, *OWN_METRICS)


def read_best_of_n(
    tracking_uri: str | None, *, experiment: str | None = None, parent_run_id: str | None = None
) -> pd.DataFrame:
    """Finished runs of stage best_of_n, one row an n, with :data:`COLUMNS`; NaN where a metric was not logged.

    Of several runs of one cell (name, model, seed and data) the newest counts. A run that does not say of which model
    and seed it is, or chosen by what, is left out.

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
        return pd.DataFrame(columns=list(COLUMNS))
    found = client.search_runs(
        experiments,
        f"{query} and attributes.status = 'FINISHED'",
        max_results=1000,
        order_by=["attributes.start_time ASC"],
    )
    newest = {}
    for run in found:
        if (identity := _identity(run)) is not None:
            cell = *(identity[name] for name in ("objective", "model", "seed")), run.data.params.get("data_fingerprint")
            newest[cell] = run, identity
    rows = [row for run, identity in newest.values() for row in _rows(client, run, identity)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(["model", "run_id", "n"], ignore_index=True)


def _identity(run: Run) -> dict[str, object] | None:
    params, proxy = run.data.params, run.data.tags.get(PROXY_TAG)
    if not params.keys() >= _NEEDED or not params["reward_models"].isdigit():
        return None
    if proxy is None:
        several = int(params["reward_models"]) > 1
        proxy = f"{params['combine']} of {params['reward_models']} reward models" if several else ""
    return {
        "run_id": run.info.run_id,
        "objective": ", ".join(filter(None, ["best of n", proxy])),
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
