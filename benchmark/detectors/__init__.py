"""Detectors score images for concepts. Each detector is one module and one YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from overpaint.grid.registry import component


def detector_identity(
    name: str, classes: Mapping[str, str] | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that decides a detector's scores: its settings, its version and the hashes of its files.

    ``classes`` are a concept set's own words, by label. A detector with the setting ``classes: null`` gets them.
    ``settings`` replace others of its YAML.
    """
    own = component("detector", name).told(classes) | dict(settings or {})
    return dict(_identity(name, json.dumps(own)))


def detector_labels(name: str, classes: Mapping[str, str] | None = None) -> Sequence[str] | None:
    """The labels that a detector with the settings of its YAML scores; ``None`` if it does not list them.

    ``classes`` as for `detector_identity`.
    """
    chosen = component("detector", name)
    return getattr(chosen.build(chosen.told(classes)), "labels", None)


@cache
def _identity(name: str, settings: str) -> dict[str, Any]:
    chosen, own = component("detector", name), json.loads(settings)
    detector = chosen.build(own)
    detector.check()
    return {**chosen.defaults, **own, "version": detector.version, "assets": detector.assets()}
