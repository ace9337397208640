"""The settings of a record that are not those of the method, base and attack that a paper prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from overpaint.grid.choices import preset_for
from overpaint.grid.labels import said
from overpaint.grid.registry import component, components
from overpaint.report.ledger.published import Names
from overpaint.report.records import Record, erased_of, given_in, given_of, plain_name

#: Keys set by hand that change no figure, or that are compared on their own: as concept, detector, prompts or n.
ELSEWHERE = (
    "concepts.erase concepts.name concepts.kind concepts.detector concepts.catalogue concepts.prompts model.detector budget "
    "metrics.metrics metrics.attacks metrics.failure_limit attack.file seed"
).split()
#: The preset with the settings of the paper's code.
PAPER = "paper"


def differing(figure: Record, record: Record, known: Names) -> list[str]:
    """Settings of the record that are not those of a published figure, as overrides: ``method.steps=10``.

    A published figure has the values of our YAML and preset for its concept, or the ones that its printed method states
    (``settings`` and ``stated`` in ``names.yaml``). For an attack, the preset `PAPER` counts as well. ``compat=official`` never
    differs.
    """
    given = given_of(record)
    stated = dict(known["settings"].get(figure["method"], {}))
    for further in known["stated"]:
        if all(figure[name] == further[name] for name in ("paper", "method", "concept")):
            stated |= further["settings"]
    found = [*_of_component("method", record, stated), *_of_component("attack", record, {})]
    compared = (*ELSEWHERE, "method", "attack")
    found += [
        f"{key}={said(value)}"
        for key, value in sorted(given.items())
        if not any(key == name or key.startswith(f"{name}.") for name in compared)
    ]
    budget = plain_name(record, "budget")
    limit = component("budget", budget).config.get("max_steps") if budget in components("budget") else None
    limit = given.get("budget.max_steps", limit)
    return found if limit is None else [*found, f"budget.max_steps={limit}"]


def _of_component(kind: str, record: Record, stated: Mapping[str, Any]) -> Iterator[str]:
    """The differing hyper-parameters of the record's method or attack; a preset stands for all values that it sets."""
    by_hand = given_in(record, kind)
    if record[f"{kind}_name"] not in components(kind):  # of a package that is no longer installed
        yield from (f"{kind}.{key}={said(value)}" for key, value in sorted(by_hand.items()))
        return
    ours = _values(kind, record, by_hand)
    printed = [_values(kind, record, stated)]
    if kind == "attack" and PAPER in component(kind, record["attack_name"]).presets:
        printed.append(_values(kind, record, {"preset": PAPER}))
    apart = min(
        ([key for key in ours if _differs(f"{kind}.{key}", ours[key], other[key])] for other in printed), key=len
    )
    if "preset" in by_hand and not {*apart}.issubset(by_hand):
        yield f"{kind}.preset={said(by_hand['preset'])}"
        apart = [key for key in apart if key in by_hand]
    yield from (f"{kind}.{key}={said(ours[key])}" for key in apart)


def _differs(key: str, ours: Any, printed: Any) -> bool:
    official = key.endswith(".compat") and ours == "official"
    return key not in ELSEWHERE and not official and ours != printed


def _values(kind: str, record: Record, values: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of the record's component with these values, which may name a preset."""
    chosen = component(kind, record[f"{kind}_name"])
    model = plain_name(record, "model")
    family = component("model", model).config.get("preset") if model in components("model") else None
    preset = preset_for(chosen, values.get("preset", "auto"), family, record["kind"], erased_of(record))
    further = {key: value for key, value in values.items() if key in chosen.defaults}
    return chosen.defaults | dict(chosen.presets.get(preset or "") or {}) | further
