"""Chi-squared preference optimisation: another link between policy and implicit reward, the same query matrix.

In the place of log pi/pi_ref its margin has phi(pi/pi_ref) with phi(z) = z + log z. The loss sees a policy through
Q phi: what is added to phi inside Q's null space leaves every margin where it was, and normalisation takes a
constant per prompt. The freedom is that of the other objectives.

Source: Huang et al. 2024 (arXiv:2407.13399), the mixed chi-squared and KL regularisation.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from scipy.special import wrightomega

from overopt.theory.response_set import ResponseSet

# Of phi: beyond it any probability is 0, or above 1.
_REACH = 1e4


def chi_po_link(log_ratio: Float[np.ndarray, " response"]) -> Float[np.ndarray, " response"]:
    """phi(z) = z + log z at z = exp(log_ratio)."""
    return np.asarray(np.exp(log_ratio) + log_ratio)


def chi_po_margins(responses: ResponseSet, log_policy: Float[np.ndarray, " response"]) -> Float[np.ndarray, " pair"]:
    """Phi of the chosen minus that of the rejected response of each preference, in the place of log-ratio margins."""
    link = chi_po_link(log_policy - responses.log_reference)
    return np.asarray(link[responses.chosen] - link[responses.rejected])


def chi_po_policy_with_ood_mass(
    responses: ResponseSet, log_policy: Float[np.ndarray, " response"], ood_mass: float
) -> Float[np.ndarray, " response"]:
    """Log probabilities of a policy of equal chi-PO margins with a given probability of unseen responses.

    phi moves by one constant on a prompt's seen responses, by another on its unseen ones.

    Raises:
        ValueError: the mass is not strictly between 0 and 1, or a prompt lacks seen or unseen responses.
    """
    if not 0 < ood_mass < 1:
        raise ValueError(f"need 0 < OOD mass < 1, got {ood_mass}")
    link = chi_po_link(log_policy - responses.log_reference)
    moved = np.empty_like(log_policy)
    for prompt in range(responses.num_prompts):
        for side, mass in ((responses.unseen, ood_mass), (~responses.unseen, 1 - ood_mass)):
            these = (responses.prompt_of == prompt) & side
            if not these.any():
                raise ValueError("no prompt may lack seen or unseen responses: their mass can't move")
            values = link[these] + brentq(_excess(responses, link, these, mass), -_REACH, _REACH, xtol=1e-13)
            # The inverse of phi is the Wright omega function; log z = phi - z.
            moved[these] = responses.log_reference[these] + values - wrightomega(values)
    return moved


def _excess(
    responses: ResponseSet, link: Float[np.ndarray, " response"], these: Bool[np.ndarray, " response"], mass: float
) -> Callable[[float], float]:
    def excess(constant: float) -> float:
        return float(responses.reference[these] @ wrightomega(link[these] + constant)) - mass

    return excess
