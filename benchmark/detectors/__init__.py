"""Detectors score images for concepts. Each detector is one module and one YAML."""

from __future__ import annotations

from functools import cache
from typing import Any

from overpaint.grid.registry import component


@cache
def detector_identity(name: str) -> dict[str, Any]:
    """Everything that decides a detector's scores: its settings, its version and the hashes of its files."""
    chosen = component("detector", name)
    detector = chosen.build()
    return {**chosen.defaults, "version": detector.version, "assets": detector.assets()}
