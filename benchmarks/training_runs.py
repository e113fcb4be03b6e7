"""A DPO training by one contender, in a process of its own: what it is given and what came out."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from workload import SHAPES, TLDR, Lengths, Pair, draw_pairs, write_model, write_pairs

HERE = Path(__file__).parent
TRL: dict[str, dict[str, Any]] = {
    "TRL as it comes": {},
    "TRL, precomputed references": {"precompute_ref_log_probs": True},
    "TRL at its best": {"precompute_ref_log_probs": True, "gradient_checkpointing": False},
    "TRL at its best, Liger": {
        "precompute_ref_log_probs": True,
        "gradient_checkpointing": False,
        "use_liger_kernel": True,
    },
}
OURS: dict[str, list[str]] = {
    "overopt": [],
    "overopt without shared prompts": ["--data.shared_prompts", "false"],
    "overopt without packing": ["--data.packed", "false"],
    "overopt, all logits at once": ["--model.compute.logits_mib", ".inf"],
    "overopt, none of them": [
        *("--data.shared_prompts", "false", "--data.packed", "false", "--model.compute.logits_mib", ".inf")
    ],
    "overopt, activation checkpointing": ["--model.compute.activation_checkpointing", "true"],
    "overopt, compiled": ["--model.compute.compile", "true"],
}


@dataclass(frozen=True)
class Training:
    """What contenders are given.

    Attributes:
        size: of :data:`workload.SHAPES`.
        vocabulary: of the model [tokens].
        lengths: of the pairs.
        batch_size: pairs per optimiser step.
        steps: optimiser steps.
        learning_rate: of RMSprop.
        device: ``cpu`` in float32, or ``cuda`` in bfloat16 with float32 weights.
        micro_batch_tokens: of overopt's forward passes; its default where None.
    """

    size: str = "70m"
    vocabulary: int = 50_304
    lengths: Lengths = TLDR
    batch_size: int = 8
    steps: int = 20
    learning_rate: float = 1e-5
    device: str = "cpu"
    micro_batch_tokens: int | None = None

    def pairs(self) -> list[Pair]:
        """Each pair is seen once."""
        return draw_pairs(self.batch_size * self.steps, self.lengths, self.vocabulary)


class Result(NamedTuple):
    """Of one contender; the first steps, which warm up, are left out of the time."""

    seconds_a_pair: float
    peak_gb: float
    losses: list[float]


def check_contenders(names: list[str]) -> None:
    """That they can run here.

    Raises:
        SystemExit: a package is missing.
    """
    if set(names) & set(TRL) and find_spec("trl") is None:
        raise SystemExit("TRL is not installed: pip install -c constraints.txt -e '.[bench]'")
    if any("use_liger_kernel" in TRL.get(name, {}) for name in names) and find_spec("liger_kernel") is None:
        raise SystemExit("Liger is not installed: pip install liger-kernel (it needs a GPU)")


def train(contenders: list[str], training: Training) -> dict[str, Result]:
    """Each contender on the same weights and pairs, one after the other."""
    check_contenders(contenders)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", SHAPES[training.size], training.vocabulary)
        write_pairs(folder / "pairs.jsonl", training.pairs())
        for contender in contenders:
            result = _run(_command(contender, folder, training), folder, training)
            print(f"{contender:<34} {result.seconds_a_pair:8.3f} s/pair {result.peak_gb:6.2f} GB", flush=True)
            results[contender] = result
    return results


def run_python(command: list[str], folder: Path, out: Path) -> Any:
    """What a program run in ``folder`` writes into the JSON file ``out``."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "HF_HUB_OFFLINE": "1",
    }
    out.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode or not out.is_file():
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(out.read_text())


def _run(command: list[str], folder: Path, training: Training) -> Result:
    figures = run_python(command, folder, folder / "figures.json")
    warm_up = min(2, training.steps - 1)
    seconds = float(np.median(figures["seconds"][warm_up:])) / training.batch_size
    return Result(seconds, figures["peak_bytes"] / 1e9, figures["losses"])


def _command(contender: str, folder: Path, training: Training) -> list[str]:
    out, model, pairs = folder / "figures.json", folder / "model", folder / "pairs.jsonl"
    if contender in TRL:
        options = {
            "model": model,
            "pairs": pairs,
            "out": out,
            "batch-size": training.batch_size,
            "learning-rate": training.learning_rate,
            "options": json.dumps(TRL[contender]),
            "dtype": "float32" if training.device == "cpu" else "bfloat16",
        }
        return ["-m", "contenders.trl_dpo", *_options(options)]
    return ["-m", "contenders.ours", "fit", *fit_options(folder, training), *OURS[contender]]


def fit_options(folder: Path, training: Training) -> list[str]:
    """Of overopt, for a training on the model and the pairs in ``folder``."""
    out, model, pairs = folder / "figures.json", folder / "model", folder / "pairs.jsonl"
    settings: dict[str, Any] = {
        "model": "overopt.modules.direct_alignment.DirectAlignmentModule",
        "model.reference": model,
        "model.optimizer": f"{{name: rmsprop, learning_rate: {training.learning_rate}, warmup_steps: 0}}",
        "data.source": "jsonl",
        "data.path": pairs,
        "data.batch_size": training.batch_size,
        "data.evaluation_fraction": 0,
        "data.gold_fraction": 0,
        "data.max_prompt_tokens": training.lengths.longest,
        "data.max_response_tokens": training.lengths.longest_response + 1,
        "data.cache_dir": folder / "cache",
        "trainer.max_epochs": 1,
        "trainer.accelerator": "cpu" if training.device == "cpu" else "gpu",
        "trainer.devices": 1,
        "trainer.precision": "32-true" if training.device == "cpu" else "bf16-mixed",
        "trainer.limit_val_batches": 0,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks": f"[{{class_path: contenders.ours.StepTimes, init_args: {{out: {out}}}}}]",
        "checkpoints.fractions": "[]",
    }
    if training.micro_batch_tokens is not None:
        settings["data.micro_batch_tokens"] = training.micro_batch_tokens
    return _options(settings)


def _options(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]
