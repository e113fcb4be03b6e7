"""Results as committed tables, with what they were measured on."""

import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "lightning", "trl")


def machine(packages: Sequence[str] = PACKAGES) -> list[str]:
    """Lines that say what ran where and when, and with which versions of the packages."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return [
        f"{device}, {torch.get_num_threads()} threads, {os.cpu_count()} cores",
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in packages),
        date.today().isoformat(),
    ]


def write_table(path: Path, title: str, rows: Sequence[dict[str, str]], notes: Sequence[str]) -> None:
    """A Markdown table with notes under it, printed too."""
    names = list(rows[0])
    lines = [f"# {title}", "", _line(names), _line(["---"] * len(names))]
    lines += [_line([row[name] for name in names]) for row in rows]
    lines += ["", *(f"- {note}" for note in notes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"in {path}")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
