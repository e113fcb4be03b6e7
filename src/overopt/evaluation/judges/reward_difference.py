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
            # In a call of their own: what shares a forward pass moves the last digits of a reward, and a sample's must
            # not depend on what this judge has seen before, as after an interruption.
            if unknown:
                of_unknown = rewards([prompt for prompt, _ in unknown], [response for _, response in unknown])
                self._opponent_rewards.update(zip(unknown, of_unknown.tolist(), strict=True))
            opponents = np.array([self._opponent_rewards[c.prompt, c.opponent] for c in some])
            samples = rewards([c.prompt for c in some], [c.sample for c in some])
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
