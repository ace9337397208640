"""Filters: ``key=value`` overrides that select records."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from overpaint.errors import UserError, nearest, unknown
from overpaint.grid.typed import bare, given_twice
from overpaint.report.records import CELL, plain_name


def narrowed(
    records: pd.DataFrame, overrides: Sequence[str], where: str, own_keys: Collection[str] = ()
) -> pd.DataFrame:
    """The records that ``key=value,value`` overrides select: labels of a cell, ``metric`` or ``facet``.

    A method or attack also selects records with that component's name, with any values that were set by hand; on other axes, a
    name does so if no record has it as its label: ``budget=lite`` is the plain budget where there is one. Values are separated by
    commas, unless the whole text is one label, such as ``uce attributes=[man, woman]``. ``own_keys`` are those of the
    command, which the error for an unknown filter lists as well.
    """
    allowed, given = [*CELL, "metric", "facet"], dict[str, str]()
    for override in overrides:
        key, equals, values = override.partition("=")
        if key not in allowed and not equals:
            of = next((name for name in allowed if key in {*records[name].astype(str), *_names(records, name)}), None)
            hint = f": give {of}={bare(key)}" if of else f", such as method=uce{nearest(key, allowed)}"
            raise UserError(f"{bare(key)} in {where}: filters are key=value{hint}")
        if key not in allowed:
            raise unknown("filter", key, [*allowed, *own_keys], where)
        if not equals:
            raise UserError(
                f"{key} in {where}: a filter takes = and values, such as {key}={records.get(f'{key}_name', records[key]).iloc[0]}"
            )
        if key in given:
            raise given_twice(key, given[key], values)
        given[key] = values
        column, names = records[key].astype(str), _names(records, key)
        known = {*column, *names}
        wanted = [value.strip() for value in ([values] if values.strip() in known else values.split(","))]
        for value in wanted:
            if value not in known:
                raise unknown(key, value, known, where)
        by_name = wanted if f"{key}_name" in records else {*wanted} - {*column}
        records = records[column.isin(wanted) | names.isin(by_name)]
    if records.empty:
        raise UserError(f"no record in {where} has {' '.join(overrides)}")
    return records.reset_index(drop=True)


def _names(records: pd.DataFrame, key: str) -> pd.Series:
    """The names of the components that a column's labels stand for, without values that were set by hand."""
    if f"{key}_name" in records:
        return records[f"{key}_name"]
    if key not in CELL or key in ("kind", "seed") or "given" not in records:
        return records[key].astype(str)
    pairs = list(zip(records[key].astype(str), records["given"], strict=True))
    names = {pair: plain_name({key: pair[0], "given": pair[1]}, key) for pair in dict.fromkeys(pairs)}
    return pd.Series([names[pair] for pair in pairs], index=records.index, dtype=object)
