"""What a tracking store knows of one checkpoint."""

from typing import NamedTuple

from mlflow import MlflowClient

from overopt.tracking.runs import require_run


class CheckpointRecord(NamedTuple):
    """A checkpoint in its run.

    Attributes:
        params: the run's parameters.
        metrics: those logged at the checkpoint's examples seen; of several values, the latest.
    """

    params: dict[str, str]
    metrics: dict[str, float]


def read_checkpoint_record(client: MlflowClient, run_id: str, examples_seen: int) -> CheckpointRecord:
    """Parameters and metrics of a checkpoint.

    Args:
        client: of the store.
        run_id: the run that trained it.
        examples_seen: the checkpoint's place on the axis of the metrics.

    Raises:
        ValueError: the store has no such run.
    """
    require_run(client, run_id)
    run = client.get_run(run_id)
    histories = {name: client.get_metric_history(run_id, name) for name in sorted(run.data.metrics)}
    metrics = {
        name: max(here, key=lambda metric: metric.timestamp).value
        for name, history in histories.items()
        if (here := [metric for metric in history if metric.step == examples_seen])
    }
    return CheckpointRecord(dict(run.data.params), metrics)
