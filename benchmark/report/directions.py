"""Arrows of directions (`overpaint.grid.directions`), and figures turned so that lower is better."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from overpaint.report.statistics import Estimate

#: How heads of columns show a direction. Columns without one have no arrow.
ARROWS = {"up": "↑", "down": "↓", "zero": "→ 0", "": ""}


def loss(values: ArrayLike, direction: str) -> NDArray:
    """The values turned so that lower is better."""
    found = np.asarray(values, float)
    return {"up": -found, "down": found, "zero": np.abs(found)}[direction]


def folded(estimate: Estimate, direction: str) -> Estimate:
    """The estimate, or its distance from 0 if this is what counts. The distance has no test of its own."""
    value, low, high = estimate.value, estimate.low, estimate.high
    if direction != "zero" or value is None:
        return estimate
    found = estimate._replace(value=abs(value), p_value=None, p_equivalence=None)
    if low is None or high is None:
        return found
    return found._replace(low=max(low, -high, 0.0), high=max(-low, high))
