"""Random response sets, small enough to be worked out by other means."""

import numpy as np
import pytest

from overopt.theory.response_set import ResponseSet, tree_response_set
from overopt.theory.tree_mdp import paper_data


@pytest.fixture(name="random_response_set", scope="session")
def _random_response_set():
    def random_response_set(seed, *, num_prompts=2, sizes=(3, 6), num_preferences=4):
        generator = np.random.default_rng(seed)
        counts = generator.integers(*sizes, num_prompts)
        prompt_of = np.repeat(np.arange(num_prompts), counts)
        pairs = []
        for _ in range(num_preferences):
            entries = np.flatnonzero(prompt_of == generator.integers(num_prompts))
            pairs.append(generator.choice(entries, 2, replace=False))
        chosen, rejected = np.array(pairs).T
        return ResponseSet(
            prompts=tuple(map(str, range(num_prompts))),
            responses=tuple(map(str, range(len(prompt_of)))),
            prompt_of=prompt_of,
            reference=np.concatenate([generator.dirichlet(np.full(count, 2.0)) for count in counts]),
            chosen=chosen,
            rejected=rejected,
            demonstrated=np.zeros(len(prompt_of), dtype=bool),
        )

    return random_response_set


@pytest.fixture(scope="session")
def paper_set():
    return tree_response_set(paper_data(), demonstration_mass=0.9)
