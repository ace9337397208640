"""Detectors score images for concepts. Each detector is one module and one YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from overpaint.grid.registry import component


def detector_identity(name: str, classes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Everything that decides a detector's scores: its settings, its version and the hashes of its files.

    ``classes`` are a concept set's own words, by label. A detector with the setting ``classes: null`` gets them.
    """
    return dict(_identity(name, json.dumps(classes or None)))


@cache
def _identity(name: str, words: str) -> dict[str, Any]:
    chosen, classes = component("detector", name), json.loads(words)
    own = chosen.told(classes)
    detector = chosen.build(own)
    detector.check()
    return {**chosen.defaults, **own, "version": detector.version, "assets": detector.assets()}
