"""The DataModule that SFT, reward modelling and alignment share."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from transformers import PreTrainedTokenizerFast

from overopt.checkpoints.format import ModelCheckpoint, load_tokenizer
from overopt.data.example_sets import DemonstrationSet, PreferenceSet
from overopt.data.packing import Packing
from overopt.data.schema import Demonstration, PreferenceExample
from overopt.data.sources import make_source
from overopt.data.sources.base import SourceRead
from overopt.data.splits import (
    HashSplits,
    Part,
    SplitFractions,
    Splits,
    fingerprint,
    post_position,
    published_splits,
)
from overopt.data.step_loader import EvaluationLoader, StepLoader
from overopt.data.tokenization import (
    padding_id,
    tokenize_demonstrations,
    tokenize_preferences,
    train_bpe,
)

ExampleT = TypeVar("ExampleT", bound=Demonstration | PreferenceExample)


class PreferenceDataModule(LightningDataModule):
    """Prompts with responses, or with labelled pairs of them, from any source; split by post.

    Args:
        source: ``docstrings`` (the embedded default), ``tldr_openai``, ``hub`` or ``jsonl``.
        path: file or folder of the source, or for ``hub`` a dataset's name; the embedded default needs none.
        examples: ``demonstrations`` (SFT) or ``preferences`` (reward modelling, alignment); on the command
            line the model decides.
        part: which posts are trained on: ``train``, or ``gold``, which is kept for the gold reward model.
        tokenizer: a policy (checkpoint, Hugging Face folder or hub name) whose tokenizer is used.
            By default a byte-level BPE is trained on the training texts; on
            the command line a model that starts from a policy brings that policy's.
        vocab_size: of a tokenizer trained here.
        max_prompt_tokens: longer prompts have their post cut; the source's own limit by default.
        max_response_tokens: longer responses are cut, the end of text counted; the source's own by default.
        batch_size: examples per optimiser step, over all processes.
        micro_batch_tokens: of a forward pass of a process, at most; bounds memory, changes no result.
        shared_prompts: both responses of a pair in one row with their prompt, which cannot see each other; else
            the prompt goes through the model once for each. Changes no result.
        packed: rows without padding; else one row an example, padded. Changes no result.
        max_examples: train on so many at most, chosen by the hash of their posts; all by default.
        max_evaluation_examples: measure on so many held-out ones at most, chosen alike; all by default. Prompts that
            checkpoints are sampled on are chosen from all.
        splits: ``hash`` splits by the post id, in the fractions below; ``published`` trains on the split ``train`` that
            the data was published with and holds out posts of its other splits that are not in ``train`` too. Post
            ids differ between copies of a dataset that give them and copies that don't: stages that read different
            copies should use ``published``.
        evaluation_fraction: share of posts held out; the source's own by default.
        gold_fraction: share of posts kept for the gold reward model; the source's own by default.
        seed: fixes the order of training examples.
        cache_dir: what was read, tokenizers trained here and reference log-probabilities are kept here.
    """

    def __init__(
        self,
        source: str = "docstrings",
        path: str | None = None,
        examples: Literal["demonstrations", "preferences"] = "demonstrations",
        part: Literal["train", "gold"] = "train",
        tokenizer: str | None = None,
        vocab_size: int = 2048,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
        batch_size: int = 64,
        micro_batch_tokens: int = 2048,
        shared_prompts: bool = True,
        packed: bool = True,
        max_examples: int | None = None,
        max_evaluation_examples: int | None = None,
        splits: Literal["hash", "published"] = "hash",
        evaluation_fraction: float | None = None,
        gold_fraction: float | None = None,
        seed: int = 0,
        cache_dir: str = "outputs/cache",
    ) -> None:
        super().__init__()
        if min(batch_size, 1 if max_examples is None else max_examples) < 1:
            raise ValueError(f"batch_size and max_examples must be at least 1, got {batch_size=}, {max_examples=}")
        if max_evaluation_examples is not None and max_evaluation_examples < 1:
            raise ValueError(f"max_evaluation_examples must be at least 1, got {max_evaluation_examples}")
        if splits == "published" and evaluation_fraction is not None:
            raise ValueError(
                f"published splits say what is held out, got {evaluation_fraction=} too: leave one of them out"
            )
        self.save_hyperparameters()
        self.source = make_source(source, None if path is None else Path(path), Path(cache_dir))
        own = self.source.split_fractions
        self.fractions = SplitFractions(
            evaluation=own.evaluation if evaluation_fraction is None else evaluation_fraction,
            gold=own.gold if gold_fraction is None else gold_fraction,
        )
        # Known once the source is read, where the source decides.
        self._splits: Splits | None = HashSplits(self.fractions) if splits == "hash" else None
        self.batch_size = batch_size
        self.packing = Packing(shared_prompts, packed, micro_batch_tokens)
        limits = self.source.token_limits
        self.max_prompt_tokens = limits.prompt if max_prompt_tokens is None else max_prompt_tokens
        self.max_response_tokens = limits.response if max_response_tokens is None else max_response_tokens
        self.max_tokens = self.max_prompt_tokens + self.max_response_tokens
        self.reference_cache_dir = Path(cache_dir) / "reference_log_probs"
        self._examples: Literal["demonstrations", "preferences"] = examples
        self._part: Literal["train", "gold"] = part
        self._tokenizer_location = tokenizer
        self._vocab_size = vocab_size
        self._max_examples = max_examples
        self._max_evaluation_examples = max_evaluation_examples
        self._seed = seed
        self._read: SourceRead | None = None
        self._training: Sequence[Demonstration | PreferenceExample] = []
        self._held_out: Sequence[Demonstration | PreferenceExample] = []
        self._train_loader: StepLoader | None = None
        self._resume_from: dict[str, Any] | None = None

    def prepare_data(self) -> None:
        """Read the source and train the tokenizer on one process, so that the others find them."""
        self.setup("fit")

    def setup(self, stage: str) -> None:
        """Read and split; tokenise for ``fit``, and otherwise when asked. Idempotent.

        Raises:
            ValueError: no examples of the wanted kind in a split, or what the source or tokeniser refuse.
        """
        if self._read is None:
            read = self.source.read()
            if self._splits is None:
                self._splits = published_splits(read.examples, self.fractions.gold, self.source.name)
            examples = read.demonstrations if self._examples == "demonstrations" else read.preferences
            self._training, self._held_out = self._split(examples)
            if self._tokenizer_location is not None:
                _ = self.tokenizer  # one that can't be read is refused here
            self._read = read
        if stage == "fit":
            self._train_loader = self._resume_from = None  # of an earlier training
            _ = self.train_set, self.evaluation_set

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The policy's, or one trained on the training texts; this module has been set up."""
        if self._tokenizer_location is not None:
            return load_tokenizer(self._tokenizer_location)
        # Deterministic and a matter of seconds: each process trains its own rather than passing files.
        texts = (part for e in self._training for part in (e.prompt.text, *_responses(e)))
        return train_bpe(texts, self._vocab_size)

    @cached_property
    def train_set(self) -> DemonstrationSet | PreferenceSet:
        """Examples to train on."""
        return self._tokenized(self._training)

    @cached_property
    def evaluation_set(self) -> DemonstrationSet | PreferenceSet:
        """Held-out examples."""
        return self._tokenized(self._held_out)

    @property
    def read(self) -> SourceRead:
        """Everything the source held."""
        self.setup("predict")
        assert self._read is not None
        return self._read

    @property
    def splits(self) -> Splits:
        """What decides which part an example belongs to; reads the source where that decides."""
        if self._splits is None:
            self.setup("predict")
        assert self._splits is not None
        return self._splits

    @property
    def split_statement(self) -> str:
        """How posts were split, for the run's record."""
        return f"{self.splits.statement}; trained on {self._part}"

    def held_out_demonstrations(self) -> DemonstrationSet:
        """Prompts of the evaluation part with the responses people wrote, whatever this module trains on."""
        return self.tokenize_demonstrations(self.part_of(self.read.demonstrations, "evaluation"))

    def held_out_preferences(self) -> PreferenceSet:
        """Labelled pairs of the evaluation part, whatever this module trains on."""
        return self.tokenize_preferences(self.part_of(self.read.preferences, "evaluation"))

    def tokenize_demonstrations(self, examples: Sequence[Demonstration]) -> DemonstrationSet:
        """Demonstrations under this module's tokenizer and limits."""
        tokenized, counts = tokenize_demonstrations(examples, self.tokenizer, **self._limits)
        lengths = self.packing.lengths(tokenized)
        return DemonstrationSet(examples, tokenized, counts, self.packing, lengths, padding_id(self.tokenizer))

    def tokenize_preferences(self, examples: Sequence[PreferenceExample]) -> PreferenceSet:
        """Pairs under this module's tokenizer and limits."""
        tokenized, counts = tokenize_preferences(examples, self.tokenizer, **self._limits)
        lengths = self.packing.lengths(tokenized)
        return PreferenceSet(examples, tokenized, counts, self.packing, lengths, padding_id(self.tokenizer))

    def train_dataloader(self) -> StepLoader:
        """Optimiser steps of this process."""
        rank, world_size = self._place()
        self._train_loader = StepLoader(
            self.train_set.lengths,
            self.train_set.collate,
            batch_size=self.batch_size,
            packing=self.packing,
            seed=self._seed,
            rank=rank,
            world_size=world_size,
        )
        if self._resume_from is not None:
            self._train_loader.load_state_dict(self._resume_from)
            self._resume_from = None
        return self._train_loader

    def val_dataloader(self) -> EvaluationLoader:
        """Held-out examples, each on exactly one process."""
        rank, world_size = self._place()
        return EvaluationLoader(
            self.evaluation_set.lengths,
            self.evaluation_set.collate,
            packing=self.packing,
            rank=rank,
            world_size=world_size,
        )

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def state_dict(self) -> dict[str, Any]:
        """Where in the epoch the training examples stand.

        Lightning keeps a loader's own state, but restores it only into a loader that it makes after the restore:
        asking for the number of steps, as learning-rate schedules do, makes one before.
        """
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, where training is resumed.

        A sharding strategy restores late, when this training's loader is there; others before it is made.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING or "train_loader" not in state_dict:
            return
        if self._train_loader is None:
            self._resume_from = state_dict["train_loader"]
        else:
            self._train_loader.load_state_dict(state_dict["train_loader"])

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _tokenized(self, examples: Sequence[Demonstration | PreferenceExample]) -> DemonstrationSet | PreferenceSet:
        if self._examples == "demonstrations":
            return self.tokenize_demonstrations([e for e in examples if isinstance(e, Demonstration)])
        return self.tokenize_preferences([e for e in examples if isinstance(e, PreferenceExample)])

    def _split(self, examples: Sequence[ExampleT]) -> tuple[list[ExampleT], list[ExampleT]]:
        """The examples to train on and those held out; settles the fingerprint, which follows from them."""
        if not examples:
            raise ValueError(_no_examples(self.source.name, self._examples))
        training = _limited(self.part_of(examples, self._part), self._max_examples)
        held_out = _limited(self.part_of(examples, "evaluation"), self._max_evaluation_examples)
        if not training:
            raise ValueError(
                f"none of the {len(examples)} {self._examples} of source {self.source.name} falls into part "
                f"{self._part!r} ({self.split_statement}): more data, or other fractions"
            )
        self.fingerprint = fingerprint([*training, *held_out])
        return training, held_out

    @property
    def _limits(self) -> dict[str, int]:
        return {
            "max_prompt_tokens": self.max_prompt_tokens,
            "max_response_tokens": self.max_response_tokens,
        }

    def part_of(self, examples: Sequence[ExampleT], part: Part) -> list[ExampleT]:
        """The examples that belong to a part."""
        splits = self.splits
        return [example for example in examples if splits.part_of(example) == part]


def _limited(examples: list[ExampleT], limit: int | None) -> list[ExampleT]:
    if limit is None or len(examples) <= limit:
        return examples
    kept = sorted(examples, key=lambda e: (post_position("limit " + e.post_id), e.example_id))[:limit]
    chosen = {e.example_id for e in kept}
    return [e for e in examples if e.example_id in chosen]


def _responses(example: Demonstration | PreferenceExample) -> tuple[str, ...]:
    return (example.response,) if isinstance(example, Demonstration) else (example.chosen, example.rejected)


def _no_examples(source: str, kind: str) -> str:
    if source == "docstrings" and kind == "preferences":
        return (
            "the docstrings hold no preferences: make pairs with `overopt sample-pairs` and `overopt label-pairs` "
            "and give their folder with source jsonl, or run `overopt quickstart`"
        )
    return f"source {source} holds no {kind}"


def data_of_checkpoint(checkpoint: ModelCheckpoint, path: str | Path, /, **changes: Any) -> PreferenceDataModule:
    """The DataModule that a checkpoint was trained with, under its tokenizer.

    Args:
        checkpoint: the checkpoint's content.
        path: its file, which brings the tokenizer.
        changes: settings to change.
    """
    return PreferenceDataModule(**{**checkpoint.data, "tokenizer": str(path), **changes})
