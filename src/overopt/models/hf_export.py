"""Checkpoint -> Hugging Face folder: what stock transformers, vLLM and the like load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from overopt.checkpoints.format import POLICY_PREFIX, REWARD_PREFIX, ModelCheckpoint
from overopt.checkpoints.whole_folder import whole_folder
from overopt.models.pretrained import without_dropout

#: Says that a folder is ours, and what we wrote into it.
MANIFEST = "overopt.json"


def stock_model(checkpoint: ModelCheckpoint) -> PreTrainedModel:
    """The model in a checkpoint as a class of transformers, float32, with nothing of ours in it.

    A policy is the causal LM that it is here. A reward model is a sequence classifier with one label, whose logit is
    the reward of a prompt with its response.

    Args:
        checkpoint: with all its weights, names and prefixes included.

    Raises:
        ValueError: transformers has no such classifier, or one that would compute another reward.
    """
    if checkpoint.training["stage"] == "reward":
        return _sequence_classifier(checkpoint)
    config = without_dropout(checkpoint.description.config())
    causal_lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    causal_lm.load_state_dict(_part(checkpoint.weights, POLICY_PREFIX))
    causal_lm.generation_config = whole_distribution(checkpoint.description.tokenizer())
    causal_lm.config.eos_token_id = causal_lm.generation_config.eos_token_id
    return causal_lm


def _sequence_classifier(checkpoint: ModelCheckpoint) -> PreTrainedModel:
    config = without_dropout(checkpoint.description.config())
    config.num_labels = 1
    config.pad_token_id = _padding_that_ends_nothing(checkpoint.description.tokenizer())
    try:
        classifier = AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    except ValueError as error:
        raise ValueError(
            f"transformers has no sequence classifier on {config.model_type}, so a reward model of this kind can't be "
            "exported; policies can"
        ) from error
    weights = _part(checkpoint.weights, REWARD_PREFIX)
    classifier.base_model.load_state_dict(_part(weights, "backbone."))
    heads = [p for n, p in classifier.named_parameters() if not n.startswith(classifier.base_model_prefix + ".")]
    if [tuple(head.shape) for head in heads] != [tuple(weights["head.weight"].shape)]:
        raise ValueError(
            f"{type(classifier).__name__} has another head than one row of weights, and would compute another reward "
            "than this model: it can't be exported; policies can"
        )
    with torch.no_grad():
        heads[0].copy_(weights["head.weight"])
    return classifier


def _padding_that_ends_nothing(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """A pad token that is not the end of text, where there is a special token for it.

    A sequence classifier of transformers reads the last token that is no padding, by its id: where the two are one, the
    token before a response's end. Without a pad token it takes one sequence at a time.
    """
    others = [tokenizer.pad_token_id, *tokenizer.all_special_ids]
    return next((int(other) for other in others if other not in (None, tokenizer.eos_token_id)), None)


def whole_distribution(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """Settings under which ``generate`` samples from the model's own distribution, as evaluation does.

    Each is written out: left open, temperature, top_p and top_k are whatever the reader's default is, and
    transformers has known top_k 50 for one.
    """
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def require_ours(folder: Path) -> None:
    """Refuse to write over what no earlier export wrote.

    Raises:
        ValueError: a file, or a folder that holds anything but an earlier export.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        ours = {MANIFEST, *json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    others = sorted(path.name for path in folder.iterdir() if path.name not in ours) if folder.is_dir() else []
    if others or not ours:
        holds = f"holds {others[0]}, which no export wrote" if others else "is no folder"
        raise ValueError(f"{folder} {holds}: nothing was written; give a new folder")


def write_hf_folder(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    dtype: Literal["float32", "bfloat16"],
    card: str,
    provenance: Mapping[str, Any],
) -> None:
    """Write a model as safetensors, with its tokenizer, model card and provenance; the folder is whole or as before.

    Args:
        folder: to write; see :func:`require_ours`.
        model: as :func:`stock_model` gave it; it is cast in place.
        tokenizer: the model's.
        dtype: of the weights.
        card: content of README.md.
        provenance: kept in the manifest; plain values.

    Raises:
        ValueError: the folder holds what is not ours, or can't be written, as on a full disk.
    """
    require_ours(folder)
    try:
        with whole_folder(folder) as unfinished:
            model.to(getattr(torch, dtype)).save_pretrained(unfinished)
            if model.config.num_labels == 1:  # a reward model: what is padded with must be what it takes for padding
                tokenizer.pad_token_id = model.config.pad_token_id
            tokenizer.save_pretrained(unfinished)
            (unfinished / "README.md").write_text(card, encoding="utf-8")
            files = sorted(path.name for path in unfinished.iterdir())
            # safetensors makes files that their owner alone can read; whoever serves them may be another user.
            for name in files:
                (unfinished / name).chmod((unfinished / "README.md").stat().st_mode)
            manifest = json.dumps({"files": files, **provenance}, indent=2, ensure_ascii=False)
            (unfinished / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"{folder} could not be written ({reason}); what was there before is untouched") from error


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
