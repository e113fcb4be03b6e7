"""Rewards -> graded verdicts: win probability sigmoid(reward(sample) - reward(opponent)), Eq. 1."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64
from scipy.special import expit

from overopt.evaluation.judges.protocol import OnVerdict, ignore
from overopt.evaluation.records import Comparison, Verdict

#: The reward of each response to its prompt, given prompts and responses.
Rewards = Callable[[Sequence[str], Sequence[str]], Float64[np.ndarray, " response"]]

# Comparisons whose rewards are asked for at a time: enough to fill forward passes, few enough that progress shows.
_AT_A_TIME = 256


class RewardDifference:
    """What every judge that gives rewards does with them; opponents' are asked for once.

    The opponents are the same for every checkpoint of a sweep.
    """

    def __init__(self) -> None:
        self._opponent_rewards: dict[tuple[str, str], float] = {}

    def verdicts(
        self, comparisons: Sequence[Comparison], rewards: Rewards, on_verdict: OnVerdict = ignore
    ) -> list[Verdict]:
        """Graded verdicts, each with the sample's reward.

        Args:
            comparisons: what to judge.
            rewards: of the judge, the same at every call.
            on_verdict: told of each verdict, some at a time.

        Raises:
            ValueError: a reward is no number.
        """
        verdicts: list[Verdict] = []
        for start in range(0, len(comparisons), _AT_A_TIME):
            some = comparisons[start : start + _AT_A_TIME]
            unknown = sorted({(c.prompt, c.opponent) for c in some} - self._opponent_rewards.keys())
            # In one call: a prompt goes through the model once, with both responses.
            asked = [*unknown, *((c.prompt, c.sample) for c in some)]
            of_asked = rewards([prompt for prompt, _ in asked], [response for _, response in asked])
            self._opponent_rewards.update(zip(unknown, of_asked.tolist(), strict=False))
            opponents = np.array([self._opponent_rewards[c.prompt, c.opponent] for c in some])
            samples = of_asked[len(unknown) :]
            if not np.isfinite([samples, opponents]).all():
                place = int(np.flatnonzero(~np.isfinite(samples - opponents))[0])
                raise ValueError(
                    f"comparison {some[place].prompt_id!r} has rewards {samples[place]:g} and {opponents[place]:g}, "
                    "which can't be compared: the reward model has diverged, or computes in too low a precision"
                )
            wins = expit(samples - opponents)
            for win, reward in zip(wins.tolist(), samples.tolist(), strict=True):
                verdicts.append(Verdict("graded", win, sample_reward=reward))
                on_verdict(len(verdicts) - 1, verdicts[-1])
        return verdicts
