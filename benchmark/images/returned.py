"""Checks of what a detector, an extractor or an attack returns. A wrong return fails its task with one sentence."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd

from overpaint.attacks.attack import COMPARISONS, Assault
from overpaint.detectors.detector import OTHERS
from overpaint.errors import UserError, message
from overpaint.grid.labels import counted
from overpaint.grid.prompts import Shot
from overpaint.grid.typed import bare, shown

#: Amount by which rounding may put a score outside of 0 to 1.
ROUNDING = 1e-4


def checked_scores(frame: object, images: int, who: str, labels: Sequence[str] | None = None) -> pd.DataFrame:
    """What `Detector.score` returned for this many images, as a frame with rows 0, 1, ….

    ``who`` names the detector in errors (``detector=oracle``); ``labels`` are those that it lists before it scores.

    Raises:
        UserError: unless it has one row per image, ``failed``, and scores from 0 to 1 for each label.
    """
    said = f"{who}: score of {counted(images, 'image')} returned"
    table = _rows(frame, images, said)
    for column in ("failed", *(labels or ())):
        if column not in table:
            raise UserError(f"{said} no column {column!r}; columns are one per label and failed (docs/extending.md)")
    kinds = {str(column): kind for column, kind in table.dtypes.items() if column not in OTHERS}
    names = list(kinds)
    for column, kind in kinds.items():
        if not _is_number(kind):
            table[column] = _numbers(table[column], said)
    scores = table[names].to_numpy(float)
    outside = np.argwhere((scores < -ROUNDING) | (scores > 1 + ROUNDING))
    if len(outside):
        row, place = outside[0]
        raise UserError(f"{said} {scores[row, place]:g} in column {names[place]!r}, which takes scores from 0 to 1")
    for column in ("detections", "answers"):
        for value in table[column].dropna() if column in table else ():
            if not isinstance(value, str):
                raise UserError(f"{said} {shown(value)} in column {column!r}, which takes JSON texts")
    for value in table["failed"].tolist():
        if value not in (True, False):
            raise UserError(f"{said} {shown(value)} in column 'failed', which takes true or false")
    table["failed"] = table["failed"].astype(bool)
    return _with_features(table, said)


def checked_readings(frame: object, images: int, who: str) -> pd.DataFrame:
    """What `Extractor.extract` returned for this many images, as a frame with rows 0, 1, ….

    Raises:
        UserError: unless it has one row per image, and ``features`` (lists of numbers) or ``value`` (numbers).
    """
    said = f"{who}: extract of {counted(images, 'image')} returned"
    table = _rows(frame, images, said)
    if "features" not in table and "value" not in table:
        raise UserError(f"{said} no column 'features' or 'value' (docs/extending.md)")
    if "value" in table:
        table["value"] = _numbers(table["value"], said)
    return _with_features(table, said)


def checked_embeddings(rows: object, texts: int, who: str) -> list[list[float]]:
    """What `Extractor.texts` returned for this many texts, as lists. Raises `UserError` unless it is an array (n, d)."""
    try:
        found = np.asarray(rows, float)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.ndim != 2 or len(found) != texts:
        what = f"an array of shape {found.shape}" if isinstance(rows, np.ndarray) else f"a {type(rows).__name__}"
        raise UserError(
            f"{who}: texts returned {what}; it returns an array of one row per text, {texts} here (docs/extending.md)"
        )
    return found.tolist()


def checked_assault(assault: object, who: str) -> Assault:
    """What `Attack.run` returned. Raises `UserError` unless it is an `Assault` of shots; ``who`` names the attack."""
    if not isinstance(assault, Assault):
        raise UserError(f"{who} returned {type(assault).__name__}; run returns an Assault (docs/extending.md)")
    if not isinstance(assault.shots, list | tuple):
        raise UserError(f"{who} returned an Assault whose shots are of type {type(assault.shots).__name__}; {_SHOTS}")
    for shot in assault.shots:
        if not isinstance(shot, Shot):
            raise UserError(f"{who} returned an Assault with {shown(shot)} among its shots; {_SHOTS}")
    return assault


def fewer_shots(found: Sequence[Shot], plain: Sequence[Shot]) -> str:
    """A sentence if an attack returned fewer shots than it got plain ones; empty otherwise."""
    made = sum(shot.prompt.role not in COMPARISONS for shot in found)
    return f"the attack returned {made} of {counted(len(plain), 'shot')}" if made < len(plain) else ""


def where_raised(error: BaseException) -> str:
    """An error of a user's code on one line: its type, its message, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = f"{type(error).__name__}: {bare(message(error))}".removesuffix(": ")
    return f"{said} ({Path(last.filename).name}, line {last.lineno})"


_SHOTS = "shots takes a list of Shot objects (docs/extending.md)"


def _rows(frame: object, images: int, said: str) -> pd.DataFrame:
    """A copy of the frame with one row per image."""
    if not isinstance(frame, pd.DataFrame):
        _refuse(said, f"{type(frame).__name__}, not a DataFrame")
    if len(frame) != images:
        _refuse(said, counted(len(frame), "row"))
    for column, again in zip(frame.columns, frame.columns.duplicated(), strict=True):
        if again or not isinstance(column, str):
            raise UserError(f"{said} a column {column!r}; names of columns are texts, each of them once")
    return frame.reset_index(drop=True)


def _refuse(said: str, what: str) -> NoReturn:
    raise UserError(f"{said} {what}; it returns a DataFrame with one row per image (docs/extending.md)")


def _is_number(dtype: object) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "iufb"


def _numbers(column: pd.Series, said: str) -> pd.Series:
    """The column as numbers; missing ones are NaN."""
    if _is_number(column.dtype):
        return column
    for value in column.dropna():
        if not isinstance(value, Real):
            raise UserError(f"{said} {shown(value)} in column {column.name!r}, which takes numbers")
    return column.astype(float)


def _with_features(table: pd.DataFrame, said: str) -> pd.DataFrame:
    """The table after a check of its column ``features``, if it has one: lists of numbers, all of one length."""
    lengths = set()
    for row in table.get("features", ()):
        if row is None or (isinstance(row, float) and np.isnan(row)):
            continue
        try:
            found = np.asarray(row, float)
        except (TypeError, ValueError):
            found = np.zeros(())
        lengths.add(len(found) if found.ndim == 1 else None)
    if len(lengths) > 1 or None in lengths:
        raise UserError(f"{said} other features than lists of numbers, all of one length (docs/extending.md)")
    return table
