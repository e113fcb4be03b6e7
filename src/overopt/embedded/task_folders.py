"""Where tasks are kept: each in a folder of its own and, where it trains, in a run; done once, and found done after."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning import seed_everything
from mlflow import MlflowClient

from overopt.checkpoints.cost import Cost
from overopt.checkpoints.format import read_model_checkpoint
from overopt.checkpoints.stage_folder import StageFolder, read_record
from overopt.data.datamodule import PreferenceDataModule
from overopt.modules.step import StepModule
from overopt.tracking.runs import PARENT_TAG, find_run, finishing, log_params, start_run
from overopt.tracking.store import open_store
from overopt.trainers import fit

TRAINING_SECONDS = "training_seconds"
"""How long a task trained, waits for evaluations included."""


@dataclass
class TaskFolders:
    """The tasks of one study.

    Attributes:
        out: folder that has a folder of each task.
        tracking_uri: MLflow store.
        study: id of the parent run.
    """

    out: Path
    tracking_uri: str
    study: str

    @cached_property
    def client(self) -> MlflowClient:
        """Of the tracking store."""
        return open_store(self.tracking_uri, create=True)

    def checkpoint(self, name: str) -> Path:
        """What a training ended with."""
        return self.out / name / "checkpoints" / "last.ckpt"

    def key(self, name: str) -> str:
        """Of a task that is done: what it was made from."""
        return str(read_record(self.out / name)["key"])

    def keys(self, names: Iterable[str]) -> dict[str, str]:
        """Of tasks that a result depends on, and its data do not tell of."""
        return {f"key of {name}": self.key(name) for name in names}

    def train(
        self,
        name: str,
        module: StepModule,
        data: PreferenceDataModule,
        max_steps: int,
        seed: int,
        then: Callable[[str], Mapping[str, float]] | None = None,
        past_peak: Callable[[], bool] | None = None,
        tags: Mapping[str, str] | None = None,
        also: Mapping[str, Any] | None = None,
    ) -> Mapping[str, float]:
        """Train a module in a run of its own, or find it trained.

        Args:
            name: of folder and run.
            module: what to train.
            data: what on.
            max_steps: optimiser steps.
            seed: of weights and data order.
            then: what to do after training with the run while it is open.
            past_peak: asked after each checkpoint whether to end there, and before a training is resumed.
            tags: of the run.
            also: what else its result depends on.
        """
        settings = {
            "name": name,
            **module.parameters_to_log(),
            "optimizer": asdict(module.optimizer_settings),
            "data": {k: v for k, v in data.hparams.items() if k != "cache_dir"},
            "fingerprint": data.fingerprint,
            "max_steps": max_steps,
            "seed": seed,
            **(also or {}),
        }
        with StageFolder(self.out / name, settings, self.out) as stage:
            # Of this study: another one in the same store may have a run with equal settings.
            own = {"overopt.stage_key": stage.key, PARENT_TAG: self.study}
            run_id = find_run(self.client, own)
            if stage.done and run_id is not None:
                return stage.result
            run_id = run_id or start_run(self.client, name, module.stage_name, tags={**(tags or {}), **own})
            print(f"\n{name}")
            seed_everything(seed, verbose=False)
            with finishing(self.client, run_id):
                log_params(self.client, run_id, {"seed": seed, "max_steps": max_steps})
                took = 0.0
                if past_peak is None or not past_peak():
                    took = fit(
                        module,
                        data,
                        stage.folder / "checkpoints",
                        tracking_uri=self.tracking_uri,
                        run_id=run_id,
                        max_steps=max_steps,
                        on_saved=past_peak,
                    )
                self.client.update_run(run_id, status="RUNNING")  # the trainer's logger has ended it
                cost = Cost.of(read_model_checkpoint(self.checkpoint(name)).training) or Cost()
            stage.finish({TRAINING_SECONDS: took, **cost.record(), **({} if then is None else then(run_id))})
            return stage.result

    def make(
        self, name: str, settings: dict[str, Any], work: Callable[[Path], Mapping[str, float] | None]
    ) -> Mapping[str, float]:
        """A stage without training: files in a folder, made once, and what is worth telling of them."""
        with StageFolder(self.out / name, settings, self.out) as stage:
            if not stage.done:
                print(f"\n{name}")
                stage.finish(work(stage.folder))
            return stage.result

    def cost(self, names: Iterable[str]) -> Cost:
        """Of tasks that are done, each counted once."""
        total = Cost()
        for name in dict.fromkeys(names):
            if (cost := Cost.of(read_record(self.out / name).get("result", {}))) is None:
                raise ValueError(f"{self.out / name} does not say what it took: it is not done, or by other code")
            total += cost
        return total
