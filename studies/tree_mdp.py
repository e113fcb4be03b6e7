"""The tree MDP over 50 seeds, and what its outcome depends on that the paper leaves open.

    make tree-mdp

`overopt tree-mdp` with everything varied that it can vary; some 20 minutes on two cores. ``--keep`` copies tables and
pictures. The last line, which is the command's own, says how long the paper's nine settings took and how far
probabilities are from summing to 1.
"""

import argparse
from pathlib import Path

from kept import keep_report, keep_summary

from overopt.cli import main as overopt
from overopt.theory_stages.tree_mdp import VARIATIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/tree-mdp"))
    parser.add_argument("--keep", type=Path, default=None, help="folder for tables, pictures and the summary")
    parser.add_argument("options", nargs="*", help="more options of overopt tree-mdp, after --")
    arguments = parser.parse_args()
    command = ["tree-mdp", "--vary", *VARIATIONS, "--out", str(arguments.out), *arguments.options]
    overopt(command)
    if arguments.keep is not None:
        keep_report(arguments.keep, arguments.out)
        keep_summary(arguments.keep, (arguments.out / "summary.txt").read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    main()
