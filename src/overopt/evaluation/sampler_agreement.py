"""Whether a server sampled from the policy that its samples are rescored under."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: Largest KL(server || policy) a token that rounding explains [nats]. A server in bfloat16 is at about 0.001, and a
#: policy that has learned anything since, well above.
TOLERANCE = 0.02


class SamplerAgreement(NamedTuple):
    """A server's log-probabilities of the tokens it drew, beside ours of the same tokens.

    The mean difference estimates KL(server || policy): zero in expectation for the same model at infinite precision,
    positive for any other, and what the server's rounding adds to a measured KL is of its order.

    Attributes:
        kl_per_token: mean of theirs minus ours over all tokens [nats / token].
        standard_error: its standard error [nats / token].
        kl_per_response: the same sum over each response's tokens, averaged over responses [nats].
        largest_difference: at any token, without sign [nats].
    """

    kl_per_token: float
    standard_error: float
    kl_per_response: float
    largest_difference: float

    def require_same_model(self) -> None:
        """Refuse samples of another model.

        Raises:
            ValueError: the log-probabilities differ by more than rounding and chance explain.
        """
        # Written so that NaN is refused, too.
        if not self.kl_per_token - 2 * self.standard_error <= TOLERANCE:
            raise ValueError(
                f"the server samples from another model than this checkpoint's policy: its log-probabilities of what "
                f"it sampled are {self.kl_per_token:.3g} +- {self.standard_error:.1g} nats a token above ours (at most "
                f"{TOLERANCE} is rounding), up to {self.largest_difference:.3g} at one token: export this very "
                "checkpoint, serve that folder without quantisation, and check --sampler-model"
            )

    def metrics(self) -> dict[str, float]:
        """What a run keeps of it."""
        return {
            "eval/sampler_kl_nats": self.kl_per_response,
            "eval/sampler_largest_difference_nats": self.largest_difference,
        }


def sampler_agreement(
    theirs: Sequence[Sequence[float] | None], ours: Sequence[Sequence[float]]
) -> SamplerAgreement | None:
    """Compare log-probabilities of the same tokens; ``None`` where a response has none of theirs.

    Args:
        theirs: of each response's tokens by the server that drew them [nats].
        ours: of the same tokens [nats].

    >>> agreement = sampler_agreement([[-1.0, -2.0], [-3.0]], [[-1.5, -2.0], [-4.0]])
    >>> agreement.kl_per_token, agreement.kl_per_response, agreement.largest_difference
    (0.5, 0.75, 1.0)
    """
    differences = []
    for of_server, of_policy in zip(theirs, ours, strict=True):
        if of_server is None:
            return None
        differences.append(np.array(of_server, dtype=np.float64) - np.array(of_policy, dtype=np.float64))
    if not differences:
        return None
    of_tokens = np.concatenate(differences)
    # Differences of successive tokens are uncorrelated: given what came before, each has its own KL for a mean.
    spread = float(of_tokens.std(ddof=1)) if len(of_tokens) > 1 else math.inf
    return SamplerAgreement(
        kl_per_token=float(of_tokens.mean()),
        standard_error=spread / math.sqrt(len(of_tokens)),
        kl_per_response=float(np.mean([d.sum() for d in differences])),
        largest_difference=float(np.abs(of_tokens).max()),
    )
