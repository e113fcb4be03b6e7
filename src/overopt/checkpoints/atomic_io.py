"""Writing a checkpoint so that a full disk or a kill costs no earlier one."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from overopt.checkpoints.format import read_checkpoint
from overopt.checkpoints.whole_file import whole_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint is whole or absent, and the one before it stays."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            ValueError: it could not be written, as on a full disk; nothing half-written is left.
        """
        target = Path(path)
        try:
            with whole_file(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as a RuntimeError of its zip writer.
            raise ValueError(
                f"checkpoint {target} could not be written ({_reason(error)}); earlier checkpoints are "
                "untouched: make room or choose another folder, then resume"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing in the file is executed.

        Args:
            path: a checkpoint file of this project.
            map_location: always the CPU: Lightning copies the values to where they belong.
            weights_only: always true.

        Raises:
            ValueError: there is no such file, or it is no readable checkpoint of this project.
        """
        return read_checkpoint(Path(path))


def _reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]
