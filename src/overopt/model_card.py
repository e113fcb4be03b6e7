"""The model card of an exported checkpoint: what it is, what made it, how to load it."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from overopt.checkpoints.format import ModelCheckpoint
from overopt.tracking.checkpoint_record import CheckpointRecord

# By the stage that wrote the checkpoint.
_WHAT = {
    "sft": "A policy after supervised fine-tuning on demonstrations.",
    "align": "A policy aligned to preference pairs by a direct alignment objective.",
    "rl": "A policy trained by policy gradient against a reward model.",
    "reward": "A reward model: one logit, the reward of a prompt with its response. Only differences have meaning.",
}

_LOAD_POLICY = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

policy = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
prompt = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
sample = policy.generate(**prompt, max_new_tokens={max_tokens})
```

`generation_config.json` samples from the whole distribution: temperature 1, top_p 1, no top_k. A server may have
defaults of its own; with vLLM, `vllm serve FOLDER --generation-config vllm` has none.
"""

_LOAD_REWARD_MODEL = """\
```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

reward_model = AutoModelForSequenceClassification.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
prompt, response = (tokenizer(text, add_special_tokens=False).input_ids for text in (PROMPT, RESPONSE))
reward = reward_model(torch.tensor([[*prompt, *response, tokenizer.eos_token_id]])).logits[0, 0]
```

Prompt and response are tokenised apart, and the reward is read at the end of text.
"""


def model_card(checkpoint: ModelCheckpoint, record: CheckpointRecord | None, *, dtype: str) -> str:
    """The text of README.md.

    Args:
        checkpoint: its description, training and data settings.
        record: what the tracking store knows of it; ``None`` where there is no such store or run.
        dtype: of the exported weights.
    """
    training = checkpoint.training
    stage = str(training["stage"])
    is_reward_model = stage == "reward"
    objective = training.get("objective")
    front_matter = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification" if is_reward_model else "text-generation",
        tags=["overopt", stage, *([str(objective)] if objective else [])],
    )
    title = f"{objective}, beta {training['beta']:g}" if "beta" in training else stage
    max_tokens = checkpoint.data.get("max_response_tokens") or 64  # unset, it is the source's own
    fingerprint = "not known without the run's record" if record is None else record.params.get("data_fingerprint")
    made_by = {**training, "architecture": checkpoint.description.shape, "data_fingerprint": fingerprint}
    sections = [
        f"---\n{front_matter.to_yaml()}\n---",
        f"# {title}, {training['examples_seen']:,} examples seen",
        f"{_WHAT.get(stage, 'A policy.')} Exported in {dtype} by `overopt export`; `overopt.json` has the same facts "
        "for machines.",
        "## Made by\n" + _table(made_by),
        "## Trained on\n" + _table(checkpoint.data),
        "## Load it\n" + (_LOAD_REWARD_MODEL if is_reward_model else _LOAD_POLICY.format(max_tokens=max_tokens)),
    ]
    if record is None:
        sections.append(
            "## The run's record\n"
            "The tracking store with the run's parameters and metrics was not at hand for the export."
        )
    else:
        metrics = {name: f"{value:.6g}" for name, value in record.metrics.items()}
        none = f"None was logged at {training['examples_seen']} examples; `overopt evaluate` measures them."
        sections += [
            "## Metrics at this checkpoint\n" + (_table(metrics) if metrics else none),
            "## Parameters of the run\n" + _table(dict(sorted(record.params.items()))),
        ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _table(values: Mapping[str, Any]) -> str:
    # A store keeps parameters as text.
    rows = [f"| {name} | {_cell(value)} |" for name, value in values.items() if value not in (None, "None")]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _cell(value: Any) -> str:
    """One line, whatever the value: a table ends at a line break, and a cell at a bar."""
    return " ".join(str(value).split()).replace("|", "\\|")
