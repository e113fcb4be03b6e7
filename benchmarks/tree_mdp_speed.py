"""How long the tree MDP's nine settings take for 50 seeds, beside a plain loop over seeds.

    make bench-tree-mdp

Beside it, the same SFT and alignments written plainly: one policy after another, ``torch.nn.RNN`` and ``torch.optim``,
the loss on the margin, every trajectory's probability at every step; a few seeds of it, extrapolated.
"""

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tables import machine, write_table

from overopt.theory.tree_mdp import TreeData, paper_data
from overopt.theory.tree_training import TreeTraining
from overopt.theory_stages.tree_mdp import TreeStudy, train

LIMIT = 180.0
LOSSES = {
    "dpo": lambda logit: -F.logsigmoid(logit),
    "ipo": lambda logit: (logit - 1) ** 2,
    "slic": lambda logit: torch.relu(1 - logit),
}


def in_a_loop(study: TreeStudy, seeds: int) -> float:
    """Seconds for so many seeds, one after another."""
    torch.set_num_threads(1)
    [pair] = study.data.preferences
    began = time.perf_counter()
    for seed in range(seeds):
        torch.manual_seed(seed)
        policy = PlainPolicy(study.data, study.training.architecture.width)
        fit(policy, study.training.sft_steps, lambda log_probs: -log_probs[list(study.data.demonstrations)].mean())
        reference = policy().detach()
        for objective in study.objectives:
            for beta in study.betas:

                def loss(log_probs, objective=objective, beta=beta, reference=reference):
                    ratios = log_probs - reference
                    return LOSSES[objective](beta * (ratios[pair.chosen] - ratios[pair.rejected]))

                fit(copy.deepcopy(policy), study.training.steps, loss)
    return time.perf_counter() - began


class PlainPolicy(torch.nn.Module):
    """Log-probability of every trajectory, by PyTorch's own network."""

    def __init__(self, data: TreeData, width: int) -> None:
        super().__init__()
        tree = data.tree
        seen = np.concatenate([np.full((tree.num_trajectories, 1), tree.branching), tree.actions[:, :-1]], axis=1)
        self.inputs = F.one_hot(torch.from_numpy(seen), tree.branching + 1).double()
        self.actions = torch.from_numpy(tree.actions)[..., None]
        self.network = torch.nn.RNN(tree.branching + 1, width, batch_first=True, dtype=torch.float64)
        self.head = torch.nn.Linear(width, tree.branching, dtype=torch.float64)

    def forward(self) -> torch.Tensor:
        """One number a trajectory [nats]."""
        log_probs = self.head(self.network(self.inputs)[0]).log_softmax(-1)
        return log_probs.gather(-1, self.actions).sum(dim=(1, 2))


def fit(policy: PlainPolicy, steps: int, loss) -> torch.Tensor:
    """Train, and keep every trajectory's log-probability at every step."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        log_probs = policy()
        found.append(log_probs.detach())
        loss(log_probs).backward()
        optimizer.step()
    return torch.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--loop-seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tree_mdp_speed.md")
    options = parser.parse_args()
    study = TreeStudy(paper_data(), TreeTraining(), ("dpo", "ipo", "slic"), (0.01, 0.1, 0.5), options.seeds)
    ours = train(study).seconds
    loop = in_a_loop(study, options.loop_seeds) / options.loop_seeds * options.seeds
    rows = [
        {"what": "all seeds at once, in Lightning", "seconds": f"{ours:.0f}"},
        {"what": "one after another, plain PyTorch (extrapolated)", "seconds": f"{loop:.0f}"},
    ]
    title = f"Tree MDP: {len(study.alignments)} settings x {options.seeds} seeds, {study.num_steps:,} optimiser steps"
    write_table(options.out, title, rows, notes=machine(("torch", "lightning")))
    print(
        f"{len(study.alignments)} settings x {options.seeds} seeds in {ours:.0f} s "
        f"({'under' if ours < LIMIT else 'not under'} {LIMIT:.0f}), {loop / ours:.1f} times as fast as a plain loop"
    )


if __name__ == "__main__":
    main()
