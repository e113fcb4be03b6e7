"""Minimisation by Newton's method that tells a minimum from an infimum which is only approached at infinity."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Derivatives = tuple[float, Float[np.ndarray, " variable"], Float[np.ndarray, "variable variable"]]

# Relative to the largest curvature; below it a direction counts as flat to rounding.
_FLAT = 1e-13
_GRADIENT_AT_INFINITY = 1e-11
_STEP_AT_INFINITY = 1e-2
# Of a step, tried before it counts as stalled: smooth functions take longer ones.
_SHORTEST = 1e-4
_STEP_AT_MINIMUM = 1e-8


class Minimum(NamedTuple):
    """Where the descent ended.

    Attributes:
        point: the last point.
        value: of the function there.
        gradient_norm: there.
        step_norm: of the Newton step that would come next.
        status: ``minimum``: gradient and step have vanished. ``infinity``: the gradient has vanished but the steps,
            away from the origin, have not, as on exp(-x), whose every Newton step is 1: what is reached is the infimum
            to rounding, the minimum does not exist. ``stalled``: neither, as at a kink, or on a plateau whose minimum
            lies back.
    """

    point: Float[np.ndarray, " variable"]
    value: float
    gradient_norm: float
    step_norm: float
    status: Literal["minimum", "infinity", "stalled"]


def newton_minimum(
    function: Callable[[Float[np.ndarray, " variable"]], Derivatives],
    start: Float[np.ndarray, " variable"],
    *,
    origin: Float[np.ndarray, " variable"] | None = None,
    longest_step: float = np.inf,
    max_steps: int = 200,
) -> Minimum:
    """Descend from ``start`` to a local minimum; negative curvature is taken by its size, so that a step goes down.

    Args:
        function: value, gradient and Hessian at a point.
        start: first point.
        origin: that infinity is away from; 0 by default.
        longest_step: a bound on the norm of steps.
        max_steps: before it counts as stalled.

    >>> newton_minimum(lambda x: (float(x[0] ** 2), 2 * x, np.array([[2.0]])), np.array([3.0])).status
    'minimum'
    >>> newton_minimum(lambda x: (float(np.exp(-x[0])), -np.exp(-x), np.diag(np.exp(-x))), np.array([3.0])).status
    'infinity'
    """
    point = start
    value, gradient, hessian = function(point)
    gradient_norm = step_norm = float(np.linalg.norm(gradient))
    origin = np.zeros_like(start) if origin is None else origin
    for _ in range(max_steps):
        curvatures, directions = np.linalg.eigh(hessian) if len(point) else (np.ones(1), np.zeros((0, 1)))
        sizes = np.maximum(np.abs(curvatures), _FLAT * np.abs(curvatures).max())
        along = directions.T @ gradient
        step = -directions @ np.divide(along, sizes, out=np.zeros_like(along), where=sizes > 0)
        gradient_norm, step_norm = float(np.linalg.norm(gradient)), float(np.linalg.norm(step))
        if gradient_norm == 0 or (step_norm <= _STEP_AT_MINIMUM * (1 + np.linalg.norm(point)) and gradient_norm < 1e-8):
            return Minimum(point, value, gradient_norm, step_norm, "minimum")
        if gradient_norm < _GRADIENT_AT_INFINITY and step_norm > _STEP_AT_INFINITY:
            outwards = float(step @ (point - origin)) > 0
            return Minimum(point, value, gradient_norm, step_norm, "infinity" if outwards else "stalled")
        # Without curvature, as on a hinge's slope, the gradient says where to go.
        if not step_norm:
            step = -gradient / gradient_norm
        step = step * min(1.0, longest_step / float(np.linalg.norm(step)))
        size, slope = 1.0, float(gradient @ step)
        slack = 64 * np.finfo(float).eps * max(1.0, abs(value))
        while True:
            candidate = function(point + size * step)
            if candidate[0] <= value + 1e-4 * size * slope + slack:
                break
            size /= 2
            if size < _SHORTEST:
                return Minimum(point, value, gradient_norm, step_norm, "stalled")
        point = point + size * step
        value, gradient, hessian = candidate
    return Minimum(point, value, gradient_norm, step_norm, "stalled")
