"""TRL's DPOTrainer on the same weights, pairs, order and optimiser."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders.measured import Measured
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class InOrder(DPOTrainer):
    """Takes the pairs in the order given, so that both sides train on the same steps."""

    def _get_train_sampler(self, *_: Any) -> Sampler:
        return SequentialSampler(self.train_dataset)


class StepTimes(TrainerCallback):
    """Measures each optimiser step, gathering its data included."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._measured.begin_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Stop it; TRL logs right after each update."""
        if "loss" in logs:
            self._measured.end_step(logs["loss"])

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Keep the figures."""
        self._measured.write()


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", type=json.loads, default={}, help="more of DPOConfig, as JSON")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()

    rows = [json.loads(line) for line in arguments.pairs.read_text().splitlines()]
    # overopt's order of the first epoch.
    order = np.random.default_rng([arguments.seed, 0]).permutation(len(rows))
    dataset = Dataset.from_list([{k: rows[i][k] for k in ("prompt", "chosen", "rejected")} for i in order])
    dataset = dataset.map(lambda row: {"chosen": " " + row["chosen"], "rejected": " " + row["rejected"]})
    config = DPOConfig(
        output_dir=str(arguments.out.parent / "trl"),
        per_device_train_batch_size=arguments.batch_size,
        num_train_epochs=1,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="constant",
        optim="rmsprop",
        optim_args="alpha=0.99,eps=1e-8",
        max_grad_norm=10.0,
        beta=0.1,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        report_to=[],
        bf16=arguments.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        **arguments.options,
    )
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    trainer = InOrder(
        model=model,
        args=config,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
        callbacks=[StepTimes(Measured(arguments.out))],
    )
    trainer.train()


if __name__ == "__main__":
    main()
