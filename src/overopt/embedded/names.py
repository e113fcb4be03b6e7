"""Names of tasks that cells share: of their folders, and of their runs where they have one."""

from overopt.embedded.cells import Cell

GOLD, GOLD_PAIRS = "gold", "gold-pairs"


def sft_name(size: str, seed: int) -> str:
    """Of an SFT policy."""
    return f"sft-{size}-seed{seed}"


def pairs_name(size: str, seed: int) -> str:
    """Of a policy's labelled pairs."""
    return f"pairs-{size}-seed{seed}"


def reference_name(size: str, seed: int) -> str:
    """Of the evaluation of an SFT policy, the first row of all its cells."""
    return f"reference-{size}-seed{seed}"


def round_pairs_name(cell: Cell) -> str:
    """Of the pairs that a cell's last round trains on, where that is not the only one."""
    return f"pairs-{cell.round_before.name}" + ("" if cell.round_labels == "gold" else f"-by-{cell.round_labels}")
