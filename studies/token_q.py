"""Soft Q-values of real checkpoints (App. D): three betas of DPO on the embedded default, and what their values say.

    make token-q

`overopt quickstart` with three betas, then `overopt token-q` on their checkpoints and training prompts; about ten
minutes on two cores. ``--keep`` copies the tables and pictures. The last lines say what the unseen tokens' share of
the bootstrapping term has come to at each beta.
"""

import argparse
from pathlib import Path

import pandas as pd
from kept import keep_report, keep_summary

from overopt.cli import main as overopt

BETAS = ("0.02", "0.1", "0.5")
SIZE = "0.4M"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/token-q"))
    parser.add_argument("--num-prompts", type=int, default=256)
    parser.add_argument("--keep", type=Path, default=None, help="folder for tables, pictures and the summary")
    arguments = parser.parse_args()
    overopt(["quickstart", "--betas", *BETAS, "--sizes", SIZE, "--out", str(arguments.out)])
    cells = [str(arguments.out / f"dpo-beta{beta}-{SIZE}-seed0" / "checkpoints") for beta in BETAS]
    values = arguments.out / "values"
    overopt(["token-q", *cells, "--num-prompts", str(arguments.num_prompts), "--out", str(values)])
    lines = summary(pd.read_csv(values / "summary.csv"))
    if arguments.keep is not None:
        keep_report(arguments.keep, values)
        keep_summary(arguments.keep, lines)
    print("\n".join(lines))


def summary(table: pd.DataFrame) -> list[str]:
    """A line a beta and kind of response, at the last checkpoints."""
    last = table[table["examples_seen"] == table.groupby("run")["examples_seen"].transform("max")]
    return [
        f"DPO at beta {row['beta']:g}, {row['response']}: unseen share {row['unseen_share']:.3f}, beside the "
        f"reference's {row['unseen_share_change']:+.3f} +- {row['unseen_share_change_se']:.3f}; V - E_ref R "
        f"{row['optimism']:.4f} +- {row['optimism_se']:.4f}, of its range {row['optimism_share']:.3f} +- "
        f"{row['optimism_share_se']:.3f}"
        for row in last.sort_values(["response", "beta"]).to_dict("records")
    ]


if __name__ == "__main__":
    main()
