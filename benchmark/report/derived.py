"""Columns of a table that are computed from its other figures: scaled to (0, 1], or the harmonic mean of several columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from overpaint.report import statistics
from overpaint.report.statistics import Estimate
from overpaint.report.views import Column

#: SPQR adds this to a quality of 0, so that a harmonic mean with it is not 0 (arXiv 2511.19558).
LEAST = 1e-3


def scaled(entries: Mapping, column: Column, originals: Mapping[str, float | None]) -> dict:
    """The entries of a column, scaled relative to the unedited model's value, or between the best and the worst row.

    ``relative`` is value / original, at most 1. ``inverted`` is 1 − (value − least) / (largest − least) + `LEAST`, at
    most 1, over the rows of the table; it is 1 if all are equal.
    """
    known = [entry.value for entry in entries.values() if entry.value is not None]
    low, reach = (min(known), max(known) - min(known)) if known else (0.0, 0.0)

    def inverted(value: float) -> float:
        return min(1.0, 1 - (value - low) / reach + LEAST) if reach else 1.0

    found = {}
    for name, entry in entries.items():
        original = originals.get(name)
        if entry.value is None:
            found[name] = entry
        elif column.scale == "inverted":
            found[name] = _changed(entry, inverted(entry.value))
        elif original:
            found[name] = _changed(entry, min(1.0, entry.value / original))
        else:
            missing = (
                "the unedited model has no such figure" if original is None else "the unedited model's figure is 0"
            )
            found[name] = replace(entry, value=None, low=None, high=None, why=missing)
    return found


def _changed(entry, value: float):
    """The entry with a scaled value. Its interval is left out: it would be that of other rows too."""
    return replace(entry, value=value, low=None, high=None, unit="fraction", bound=False)


def harmonic(entries: Sequence, titles: Sequence[str], empty):
    """The harmonic mean of a row's entries of these columns; ``empty`` is an entry without a value."""
    missing = [title for title, entry in zip(titles, entries, strict=True) if entry is None or entry.value is None]
    if missing:
        return replace(empty, why=f"no figure of {', '.join(missing)}")
    found = statistics.harmonic_of_estimates(
        [Estimate(e.value, e.low, e.high, n=e.n, failed=e.failed) for e in entries]
    )
    return replace(empty, value=found.value, low=found.low, high=found.high, n=found.n, failed=found.failed)
