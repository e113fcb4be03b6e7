"""Runs: one per trained policy, none left RUNNING."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from overopt.tracking.provenance import provenance
from overopt.tracking.store import EXPERIMENT, experiment_id

STAGE_TAG = "overopt.stage"
PARENT_TAG = "mlflow.parentRunId"
PROXY_TAG = "overopt.proxy"
"""Of runs of a study that compares reward models: what they were optimised against, in words."""
FAILURE_TAG = "overopt.failure"
"""Why a run has failed for good."""
NAME_TAG = "mlflow.runName"
CHECKPOINTS_TAG = "overopt.checkpoints"
"""Folder of a run's checkpoints, on the machine that trained it."""


def start_run(
    client: MlflowClient,
    name: str,
    stage: str,
    *,
    tags: Mapping[str, str] | None = None,
    experiment: str = EXPERIMENT,
) -> str:
    """Open a run and give its id.

    Args:
        client: of the store.
        name: what the UI shows.
        stage: sft, reward, align, rl, best_of_n, judge or study.
        tags: more tags; ``PARENT_TAG`` names the study it belongs to.
        experiment: name of the experiment.
    """
    all_tags = {NAME_TAG: name, STAGE_TAG: stage, **(tags or {})}
    run = client.create_run(experiment_id(client, experiment), tags=all_tags)
    run_id: str = run.info.run_id
    try:
        log_params(client, run_id, provenance())
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    return run_id


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Log parameters that the run does not have yet; MLflow refuses to change one."""
    known = client.get_run(run_id).data.params
    new = [Param(key, str(value)) for key, value in params.items() if key not in known]
    for first in range(0, len(new), 100):
        client.log_batch(run_id, params=new[first : first + 100])


def log_metrics(client: MlflowClient, run_id: str, metrics: Mapping[str, float], *, step: int) -> None:
    """Log metrics at a step [examples seen]; logged again, the later values count."""
    now = time.time_ns() // 1_000_000
    client.log_batch(
        run_id,
        metrics=[Metric(name, float(value), now, step) for name, value in metrics.items()],
        synchronous=True,
    )


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags; unlike parameters, they may change."""
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def require_run(client: MlflowClient, run_id: str) -> None:
    """Raise a ValueError where the store has no such run."""
    try:
        client.get_run(run_id)
    except MlflowException as error:
        raise ValueError(f"the tracking store does not give run {run_id} ({str(error).splitlines()[0]})") from error


@contextmanager
def finishing(client: MlflowClient, run_id: str) -> Iterator[str]:
    """End a run as FINISHED, FAILED, or KILLED when the process was told to stop."""
    status = "FAILED"
    try:
        client.update_run(run_id, status="RUNNING")
        yield run_id
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run_id, status)


def find_run(client: MlflowClient, tags: Mapping[str, str], *, experiment: str = EXPERIMENT) -> str | None:
    """Id of the newest run that bears all the tags; ``None`` without one."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    query = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items())
    runs = client.search_runs(
        [found.experiment_id],
        filter_string=query,
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0].info.run_id if runs else None


def _quoted(value: str) -> str:
    """A filter knows both quotes and no escape; paths may hold an apostrophe."""
    quote = '"' if "'" in value else "'"
    return f"{quote}{value}{quote}"


def log_artifact(client: MlflowClient, run_id: str, path: Path, folder: str) -> None:
    """Copy a file into a run's artifacts."""
    client.log_artifact(run_id, str(path), folder)
