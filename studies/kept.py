"""Results that a reader sees without running them, with how they were made."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from overopt.tracking.provenance import provenance


def keep_summary(folder: Path, lines: Sequence[str], command: Sequence[str] | None = None) -> None:
    """Write ``summary.txt``: what was found, by which command, versions and date.

    Args:
        folder: of the results.
        lines: what was found.
        command: that made them; this process's own by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    origin = [f"{name}: {value}" for name, value in {"date": f"{date.today()}", **provenance()}.items()]
    words = shlex.join(["python", *(command or sys.argv)])
    (folder / "summary.txt").write_text("\n".join([*lines, "", f"command: {words}", *origin]) + "\n", encoding="utf-8")


def keep_report(folder: Path, report: Path, figures: str = "*") -> None:
    """Copy a report's tables, and figures whose name fits a pattern, these as pictures only."""
    shutil.rmtree(folder / "figures", ignore_errors=True)
    (folder / "figures").mkdir(parents=True)
    for file in sorted(report.glob("*.csv")):
        shutil.copy(file, folder / file.name)
    for file in sorted(report.glob(f"figures/{figures}.png")):
        shutil.copy(file, folder / "figures" / file.name)
