"""The tracker of a training run: Lightning's MLflow logger on the project's store, with its record."""

from dataclasses import asdict
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from overopt.data.data_report import DataReport, data_report
from overopt.models.policy import model_name
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.step import StepModule
from overopt.tracking.provenance import provenance
from overopt.tracking.runs import CHECKPOINTS_TAG, STAGE_TAG, log_params
from overopt.tracking.store import EXPERIMENT, experiment_id, open_store, resolve_tracking_uri


class MLflowTracker(MLFlowLogger):
    """Lightning's MLflow logger with this project's defaults.

    Args:
        tracking_uri: any MLflow store; ``MLFLOW_TRACKING_URI``, or else SQLite in ``mlruns/``, by default.
        experiment: name of the experiment.
        run_name: what the UI shows; MLflow invents one by default.
        run_id: go on with an existing run.

    Raises:
        ValueError: the store can't be reached.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = EXPERIMENT,
        run_name: str | None = None,
        run_id: str | None = None,
    ) -> None:
        _make_experiment(tracking_uri, experiment)
        super().__init__(
            experiment_name=experiment,
            run_name=run_name,
            run_id=run_id,
            tracking_uri=resolve_tracking_uri(tracking_uri),
        )
        self.interrupted = False

    def finalize(self, status: str = "success") -> None:
        """End the run: FINISHED, FAILED, or KILLED where somebody stopped it."""
        super().finalize("KILLED" if self.interrupted and status == "failed" else status)


@rank_zero_only
def _make_experiment(tracking_uri: str | None, experiment: str) -> None:
    """Lightning builds loggers on every rank; a store is opened, and if need be made, by one."""
    experiment_id(open_store(tracking_uri, create=True), experiment)


class RunRecord(Callback):
    """Logs what tells one run from another: stage, objective, model, data, seed, code, versions.

    The data's report is kept as the artifact ``data_report.json``, the folder of the checkpoints as a tag.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the tracker a stop from a failure."""
        if isinstance(trainer.logger, MLflowTracker):
            trainer.logger.interrupted = isinstance(exception, (KeyboardInterrupt, SystemExit, SIGTERMException))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write parameters and the stage tag, once a run."""
        assert isinstance(pl_module, StepModule)
        if not isinstance(trainer.logger, MLFlowLogger) or not trainer.is_global_zero:
            return
        client, run_id = trainer.logger.experiment, trainer.logger.run_id
        assert run_id is not None  # on the process that owns the run
        data = pl_module.data
        report = data_report(data, {"trained on": data.train_set, "held out": data.evaluation_set})
        log_params(client, run_id, run_parameters(trainer, pl_module) | data_parameters(report))
        client.log_dict(run_id, asdict(report), "data_report.json")
        client.set_tag(run_id, STAGE_TAG, pl_module.stage_name)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, CheckpointSchedule):
                client.set_tag(run_id, CHECKPOINTS_TAG, str(callback.folder.resolve()))


def run_parameters(trainer: Trainer, module: StepModule) -> dict[str, Any]:
    """The parameters of a training run, as the contract between the parts names them."""
    data = module.data
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    return {
        **module.parameters_to_log(),
        "model": model_name(module.describe_model().config(), num_parameters),
        "num_parameters": num_parameters,
        "data_fingerprint": data.fingerprint,
        "examples_per_epoch": len(data.train_set),
        "split": data.split_statement,
        **provenance(),
    }


def data_parameters(report: DataReport) -> dict[str, Any]:
    """What of the data report is worth a column in a table of runs; the report has the rest."""
    trained_on = report.tokens["trained on"]
    return {
        "data_origin": report.origin,
        "data_rows": report.rows,
        "data_left_out": sum(report.left_out.values()),
        "train_cut_prompt_share": trained_on.cut_prompt_share,
        "train_truncated_response_share": trained_on.truncated_response_share,
    }
