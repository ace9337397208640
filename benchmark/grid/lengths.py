"""Lengths: the hyper-parameters that set how long a method trains and how long an attack searches or samples.

``budget.max_steps`` limits them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from overpaint.grid.labels import said

if TYPE_CHECKING:
    from overpaint.grid.cells import Cell
    from overpaint.grid.concepts import Request


class Shortenable:
    """Base class of methods and attacks: declares what a budget may shorten.

    - ``lengths`` are the hyper-parameters that count its work: steps of training or search, and images that it generates
      to learn from. They are integers, or lists of step numbers (checkpoints), which are cut off at the limit. It is a
      property here, so that it may depend on other hyper-parameters.
    - ``endless`` are the lengths for which ``None`` means that there is no limit. Any other length that is ``None`` stays so.
    - ``combined`` are lists of ways to make an image. Each combination of their entries is one image a shot; the ends of
      the last lists are left out until there are no more combinations than the limit.
    - ``paced`` maps hyper-parameters that count steps of a length, such as a warm-up, to that length. They shrink in
      proportion to it.
    """

    endless: ClassVar[tuple[str, ...]] = ()
    combined: ClassVar[tuple[str, ...]] = ()
    paced: ClassVar[Mapping[str, str]] = {}

    @property
    def lengths(self) -> tuple[str, ...]:
        return ()

    def least(self, request: Request) -> Mapping[str, int]:
        """Lengths that must not be shortened further for these concepts, such as one image per concept."""
        return {}


def lengths(built: Any) -> dict[str, Any]:
    """The declared lengths of a method or attack with their values."""
    return {key: getattr(built, key) for key in built.lengths} if isinstance(built, Shortenable) else {}


def shortened(built: Any, limit: int, by_hand: Collection[str], request: Request) -> dict[str, tuple[Any, Any]]:
    """The hyper-parameters that a limit on lengths changes, each with its old and new value.

    Values set by hand stay. If a paced value was set by hand, its length stays longer than it.
    """
    if not isinstance(built, Shortenable):
        return {}
    found = dict(_fewer_variants(built, limit, by_hand))
    for key in built.lengths:
        old = getattr(built, key)
        if key in by_hand or (old is None and key not in built.endless):
            continue
        parts = {} if old is None else {part: getattr(built, part) for part, of in built.paced.items() if of == key}
        kept = [value + 1 for part, value in parts.items() if part in by_hand]
        new = _cut(old, max(limit, built.least(request).get(key, 0), *kept))
        if new == old:
            continue
        found[key] = old, new
        for part, value in parts.items():
            scaled = min(value, max(1, value * new // old))
            if part not in by_hand and scaled != value:
                found[part] = value, scaled
    return found


def _cut(value: Any, most: int) -> Any:
    """A number, or increasing step numbers, up to ``most``; ``None`` is a number without limit."""
    if isinstance(value, list):
        return list(dict.fromkeys(min(step, most) for step in value))
    return most if value is None else min(value, most)


def _fewer_variants(built: Shortenable, limit: int, by_hand: Collection[str]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The lists of variants that are cut off, each with its old and new value."""
    counts = {key: len(getattr(built, key)) for key in built.combined}
    for key in reversed(built.combined):
        old, others = getattr(built, key), prod(count for other, count in counts.items() if other != key)
        counts[key] = counts[key] if key in by_hand else min(counts[key], max(1, limit // others))
        if counts[key] < len(old):
            yield key, (old, old[: counts[key]])


def shortenings(cells: Sequence[Cell]) -> list[str]:
    """A sentence for each budget that shortens methods or attacks: what it shortens, from which value to which."""
    found: dict[str, dict[str, None]] = {}
    for cell, choice in [*((cell, cell.method) for cell in cells), *((cell, cell.attack) for cell in cells)]:
        by_hand = "budget.max_steps" in cell.given
        budget = f"budget.max_steps={cell.budget.max_steps}" if by_hand else f"budget={cell.budget.name}"
        for key, (old, new) in choice.shortened.items():
            found.setdefault(budget, {})[f"{choice.name}.{key} from {said(old)} to {said(new)}"] = None
    return [f"{budget} shortens {_listed(list(changes))}" for budget, changes in found.items()]


def _listed(parts: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)
