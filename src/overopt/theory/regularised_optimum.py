"""The exact optimum of a direct alignment loss with a regulariser, over all policies of a finite response set."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import null_space
from scipy.optimize import lsq_linear
from torch import Tensor

from overopt.objectives.preference import preference_logit, preference_loss
from overopt.theory.newton import Derivatives, Minimum, newton_minimum
from overopt.theory.preference_draws import mass_range
from overopt.theory.rank_deficiency import log_ratio_margins, query_matrix, row_space_basis
from overopt.theory.regularisers import REGULARISERS, Regulariser
from overopt.theory.response_set import ResponseSet, normalised

# The logit where an objective's slope jumps; elsewhere all of them have a derivative.
KINKS = {"slic": 1.0}
_RANDOM_STARTS = 8
# Of a logit, far enough that a loss which falls for ever has nothing left to fall.
_FAR = 25.0
# Of a logit: a descent that has stalled so near a kink is put onto it, from where it may leave again.
_NEAR_KINK = 0.1
# Of a descent, in about the unit of logits: no leap from where a loss is steep to where it has no slope left.
_LONGEST_STEP = 3.0


@dataclass(frozen=True)
class RegularisedLoss:
    """Mean loss over preferences plus ``strength`` times a regulariser.

    Attributes:
        objective: name of a preference loss.
        beta: price of divergence in the loss, > 0 [reward / nat].
        regulariser: name of a term in :data:`REGULARISERS`.
        strength: its weight, >= 0.

    Raises:
        ValueError: a name is unknown or a number out of range.
    """

    objective: str
    beta: float
    regulariser: str = "none"
    strength: float = 0.0

    def __post_init__(self) -> None:
        preference_loss(self.objective)
        if self.regulariser not in REGULARISERS:
            raise ValueError(f"no regulariser {self.regulariser!r}; there are {', '.join(REGULARISERS)}")
        if not (0 < self.beta < np.inf and 0 <= self.strength < np.inf):
            raise ValueError(f"need finite beta > 0 and strength >= 0, got beta={self.beta}, strength={self.strength}")

    @property
    def term(self) -> Regulariser:
        """The regulariser; that which is nothing where its strength is 0."""
        return REGULARISERS[self.regulariser if self.strength else "none"]

    def of_logits(self, responses: ResponseSet, logits: Float[Tensor, "*policy response"]) -> Float[Tensor, "*policy"]:
        """The whole loss of policies with these logits, softmax over each prompt; for autograd, in float64."""
        prompt_of = torch.as_tensor(responses.prompt_of)
        totals = [logits[..., prompt_of == prompt].logsumexp(-1) for prompt in range(responses.num_prompts)]
        log_policy = logits - torch.stack(totals, -1)[..., prompt_of]
        log_ratio = log_policy - torch.as_tensor(responses.log_reference)
        margins = (
            log_ratio[..., torch.as_tensor(responses.chosen)] - log_ratio[..., torch.as_tensor(responses.rejected)]
        )
        # A loss takes one row of pairs.
        row = margins.reshape(-1)
        logit = preference_logit(row, torch.zeros(len(row), dtype=torch.int64), beta=self.beta)
        losses = preference_loss(self.objective)(logit, beta=self.beta).reshape(margins.shape).mean(-1)
        return losses + self.strength * self.term.of_policy(responses, log_policy)


@dataclass(frozen=True)
class Optimum:
    """The policy that minimises a regularised loss, or the limit of those that come nearest.

    Attributes:
        log_policy: log probabilities [nats]; -inf where they vanish in the limit. Where nothing fixes the shares of
            components, they are the reference's.
        loss: the minimum or infimum.
        attained: whether a policy with all probabilities above 0 has this loss; if not, it is only approached.
        margins: of the preferences [nats]; where the loss is not attained some of them have no bound, and these are
            how far the descent went.
        ood_low: smallest OOD mass of the optima [fraction].
        ood_high: largest; the same where the optimum is one.
        num_local: different values at which descents from several starts have ended; above 1 the problem isn't convex.
        gradient_norm: at the end of the descent, in what the loss sees.
    """

    log_policy: Float[np.ndarray, " response"]
    loss: float
    attained: bool
    margins: Float[np.ndarray, " pair"]
    ood_low: float
    ood_high: float
    num_local: int
    gradient_norm: float


def regularised_optimum(responses: ResponseSet, loss: RegularisedLoss, *, seed: int = 0) -> Optimum:
    """Newton's method on what the loss sees, the rest by the regulariser's best shares in closed form.

    With the KL or chi-squared term the problem is convex in neither probabilities nor logits: the best of several
    descents is taken (from the reference, from margins beyond reach, and from random ones).

    Args:
        responses: the set.
        loss: what is minimised.
        seed: of the random starts.

    Raises:
        ValueError: no descent has ended at a minimum or at infinity.
    """
    problem = _Problem(responses, loss)
    ends = [problem.descend(start) for start in problem.starts(np.random.default_rng(seed))]
    ended = [end for end in ends if end.status != "stalled"]
    if not ended:
        gradient = min(end.gradient_norm for end in ends)
        raise ValueError(
            f"{loss.objective} at beta {loss.beta:g} with {loss.strength:g} x {loss.regulariser}: no descent has "
            f"converged (smallest gradient {gradient:.1e})"
        )
    best = min(ended, key=lambda end: end.value)
    # Of values equal to rounding, a minimum rather than a limit, and not one far out on the plateau that ends there.
    best = min(
        (end for end in ended if end.value <= best.value + 1e-10),
        key=lambda end: (end.status != "minimum", float(np.linalg.norm(end.point))),
    )
    values = np.sort([end.value for end in ended])
    num_local = 1 + int((np.diff(values) > 1e-7 * max(1.0, abs(values[0]))).sum())
    return problem.optimum(best, num_local)


class _Problem:
    """The loss as a function of coordinates in the row space of the query matrix."""

    def __init__(self, responses: ResponseSet, loss: RegularisedLoss) -> None:
        self.responses, self.loss = responses, loss
        self.basis = row_space_basis(responses)
        self.to_logits = loss.beta * query_matrix(responses) @ self.basis

    def starts(self, generator: np.random.Generator) -> list[np.ndarray]:
        number, size = self.basis.shape[1], 3 / self.loss.beta
        far = np.linalg.lstsq(self.to_logits, np.full(len(self.to_logits), _FAR))[0]
        starts = [np.zeros(number), far, *generator.normal(0, size, (_RANDOM_STARTS, number))]
        if (kink := KINKS.get(self.loss.objective)) is not None:
            starts.insert(1, far * kink / _FAR)
        return starts

    def derivatives(self, point: np.ndarray, pinned: np.ndarray) -> Derivatives:
        logits = self.to_logits @ point
        values, slopes, curvatures = loss_derivatives(self.loss.objective, logits, beta=self.loss.beta)
        number = len(logits)
        slopes, curvatures = np.where(pinned, 0.0, slopes), np.where(pinned, 0.0, curvatures)
        profile = self.loss.term.profile(self.responses, self.basis @ point)
        return (
            float(values.mean()) + self.loss.strength * profile.value,
            self.to_logits.T @ slopes / number + self.loss.strength * self.basis.T @ profile.gradient,
            (self.to_logits.T * curvatures) @ self.to_logits / number
            + self.loss.strength * self.basis.T @ profile.hessian @ self.basis,
        )

    def descend(self, start: np.ndarray) -> Minimum:
        """To a minimum; where preferences come to rest at a kink, they are held there while the others move."""
        kink = KINKS.get(self.loss.objective)
        point = start
        pinned = np.zeros(len(self.to_logits), dtype=bool)
        if kink is not None:
            pinned = np.abs(self.to_logits @ start - kink) < 1e-9
        for _ in range(10 + 4 * len(pinned)):
            face = null_space(self.to_logits[pinned]) if pinned.any() else np.eye(len(point))
            end = newton_minimum(
                self._on_face(point, face, pinned),
                np.zeros(face.shape[1]),
                origin=-face.T @ point,
                longest_step=_LONGEST_STEP / self.loss.beta,
            )
            point = point + face @ end.point
            end = end._replace(point=point)
            if kink is None or end.status == "infinity":
                return end
            logits = self.to_logits @ point
            if end.status == "stalled":
                distances = np.where(pinned, np.inf, np.abs(logits - kink))
                if distances.min() > _NEAR_KINK:
                    return end
                pinned[np.argmin(distances)] = True
            elif not pinned.any():
                return end
            else:
                held = self.to_logits[pinned] / len(pinned)
                rest = self.derivatives(point, pinned)[1]
                # A pair at the kink pulls with any slope between those on its two sides.
                below, above = _slopes_at(self.loss, kink)
                pull = lsq_linear(held.T, -rest, bounds=(below, above + 1e-300))
                residual = float(np.linalg.norm(held.T @ pull.x + rest))
                if residual < 1e-8:
                    return end._replace(gradient_norm=residual)
                free = np.linalg.lstsq(held.T, -rest)[0]
                outside = np.maximum(below - free, free - above)
                worst = int(np.argmax(outside))
                released = np.flatnonzero(pinned)[worst]
                pinned[released] = False
                away = np.zeros(len(logits))
                # More slope than there is above the kink: go below it, and the other way round.
                away[released] = 1e-3 if free[worst] < below else -1e-3
                point = point + np.linalg.lstsq(self.to_logits, away)[0]
                continue
            # Stalled: put the nearest onto the kink.
            point = point + np.linalg.lstsq(self.to_logits[pinned], kink - logits[pinned])[0]
        return end._replace(status="stalled")

    def _on_face(self, origin: np.ndarray, face: np.ndarray, pinned: np.ndarray) -> Callable[[np.ndarray], Derivatives]:
        def derivatives(along: np.ndarray) -> Derivatives:
            value, gradient, hessian = self.derivatives(origin + face @ along, pinned)
            return value, face.T @ gradient, face.T @ hessian @ face

        return derivatives

    def optimum(self, end: Minimum, num_local: int) -> Optimum:
        responses, label = self.responses, self.responses.components.label
        number = responses.components.number
        log_ratio = self.basis @ end.point
        within = normalised(responses.log_reference + log_ratio, label, number)
        log_shares = self.loss.term.profile(responses, log_ratio).log_shares
        free = np.isnan(log_shares)
        shares = np.exp(responses.log_reference - normalised(responses.log_reference, label, number))
        log_policy = within + np.where(free[label], np.log(shares), log_shares[label])
        ood = responses.ood_mass(log_policy)
        low, high = mass_range(responses, within, label) if free.all() else (ood, ood)
        return Optimum(
            log_policy,
            end.value,
            end.status == "minimum" and bool(np.isfinite(log_policy).all()),
            self.to_logits @ end.point / self.loss.beta,
            low,
            high,
            num_local,
            end.gradient_norm,
        )


def loss_derivatives(
    objective: str, logits: Float[np.ndarray, " pair"], *, beta: float
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """Value, slope and curvature of a named preference loss at each logit."""
    logit = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    values = preference_loss(objective)(logit, beta=beta)
    [slopes] = torch.autograd.grad(values.sum(), logit, create_graph=True)
    if not slopes.requires_grad:
        return values.detach().numpy(), slopes.numpy(), np.zeros(len(logits))
    [curvatures] = torch.autograd.grad(slopes.sum(), logit, materialize_grads=True)
    return values.detach().numpy(), slopes.detach().numpy(), curvatures.numpy()


def _slopes_at(loss: RegularisedLoss, kink: float) -> tuple[float, float]:
    below, above = loss_derivatives(loss.objective, np.array([kink - 1e-6, kink + 1e-6]), beta=loss.beta)[1]
    return float(below), float(above)


def smallest_curvature(
    responses: ResponseSet, loss: RegularisedLoss, log_policy: Float[np.ndarray, " response"]
) -> float:
    """Smallest eigenvalue of the Hessian by the logits, in the directions that change the policy.

    Those that don't, a constant on each prompt, are left out; so are those that move a preference off a kink, where
    the curvature is infinite. 0 where the loss leaves freedom.
    """
    logits = torch.as_tensor(log_policy, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda values: loss.of_logits(responses, values), logits).numpy()
    gauge = np.equal.outer(np.arange(responses.num_prompts), responses.prompt_of).astype(float)
    if (kink := KINKS.get(loss.objective)) is not None:
        distances = np.abs(loss.beta * log_ratio_margins(responses, log_policy) - kink)
        gauge = np.concatenate([gauge, query_matrix(responses)[distances < 1e-6]])
    tangent = null_space(gauge)
    return float(np.linalg.eigvalsh(tangent.T @ hessian @ tangent)[0])


def descend_over_logits(
    responses: ResponseSet,
    loss: RegularisedLoss,
    starts: Float[np.ndarray, "policy response"],
    *,
    num_steps: int = 1000,
    learning_rate: float = 0.1,
) -> Float[np.ndarray, "policy response"]:
    """Log probabilities where descents over all logits end up: Adam with derivatives by autograd, as training has it.

    It knows nothing of null spaces and shares. Where the optimum isn't attained it is still on its way there.

    Args:
        responses: the set.
        loss: what is minimised.
        starts: logits of each policy [nats].
        num_steps: of each.
        learning_rate: of the first step, falling to 0 by a cosine [nats].
    """
    logits = torch.tensor(starts, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss.of_logits(responses, logits).sum().backward()
        optimizer.step()
        schedule.step()
    ends = logits.detach().numpy()
    return np.stack([normalised(end, responses.prompt_of, responses.num_prompts) for end in ends])
