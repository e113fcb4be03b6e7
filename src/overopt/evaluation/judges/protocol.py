"""The interface that every judge keeps."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.records import Comparison, Verdict

#: Told of each verdict as it comes: the comparison's place, and what was found.
OnVerdict = Callable[[int, Verdict], None]


def ignore(place: int, verdict: Verdict) -> None:
    """Nobody wants to know."""


class Estimate(NamedTuple):
    """What judging is expected to take, before any of it is asked.

    Attributes:
        calls: questions that go to somebody else's endpoint.
        input_tokens: of all of them, by the length of their text.
        output_tokens: of all answers.
        cost: in the currency of the price table; ``None`` where no price is known.
        currency: of the price table.
    """

    calls: int = 0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    cost: float | None = None
    currency: str = ""


@runtime_checkable
class Judge(Protocol):
    """Says how often a sample beats the dataset's response.

    A judge that reads both texts side by side (:attr:`reads_both`) reads the sample first. The wrappers of
    :mod:`overopt.evaluation.judges.orders` swap the two.
    """

    @property
    def reads_both(self) -> bool:
        """Whether one text's verdict depends on the other's place: such a judge is asked in random order or in both."""
        return False

    @property
    @abstractmethod
    def settings(self) -> dict[str, str]:
        """Everything besides the texts that can change a verdict, by name; known answers are found again by it."""

    @abstractmethod
    def judge(
        self, comparisons: Sequence[Comparison], on_verdict: OnVerdict = ignore, budget: Budget | None = None
    ) -> list[Verdict]:
        """One verdict per comparison, in their order; what can't be read is said so, never guessed.

        Args:
            comparisons: what to judge.
            on_verdict: told of each verdict as soon as it is there, in any order.
            budget: what may be spent; only judges that cost something heed it.
        """

    def estimate(self, comparisons: Sequence[Comparison]) -> Estimate:
        """What :meth:`judge` would ask and cost. Offline judges ask nobody."""
        return Estimate()

    def require(self, comparisons: Sequence[Comparison], max_cost: float | None = None) -> None:
        """Whatever is known to be missing is said here, before anything is made or asked; nothing is, by default.

        Args:
            comparisons: what is to be judged, as far as it is there already.
            max_cost: limit of its cost.

        Raises:
            ValueError: something is missing.
        """
        return
