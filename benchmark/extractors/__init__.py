"""Extractors read images and texts with a network for metrics that a detector's scores cannot give. Each is one YAML."""

from __future__ import annotations

from functools import cache
from typing import Any

from overpaint.grid.registry import component


@cache
def extractor_identity(name: str) -> dict[str, Any]:
    """Everything that determines an extractor's output: its settings, its version and the hashes of its files.

    Raises `AssetMissing` if one of its files is missing.
    """
    chosen = component("extractor", name)
    extractor = chosen.build()
    return {**chosen.defaults, "version": extractor.version, "assets": extractor.assets()}
