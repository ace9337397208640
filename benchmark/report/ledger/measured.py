"""Published figures beside our records: a verdict where all that decides a figure is the same, and orders of methods."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from overpaint.errors import UserError
from overpaint.grid.labels import few
from overpaint.grid.registry import component, components
from overpaint.report import statistics
from overpaint.report.claims import published
from overpaint.report.directions import loss
from overpaint.report.ledger.agreement import ORDER, agreement, columns, erasers
from overpaint.report.ledger.published import Names
from overpaint.report.ledger.settings import differing
from overpaint.report.records import NUMBERS, REQUIRED, check_mappings, erased_of, given_of, plain_name
from overpaint.report.tables import SETTINGS, several_of, under

#: What `beside` tells of a record: its value and interval, its labels, and its detector.
SHOWN = "value low high n method attack model concepts budget detector".split()
#: Columns that `beside` adds to published figures.
OURS = ["ours", *(f"ours_{name}" for name in SHOWN[1:]), "records", "verdict", "reasons", "sign"]
#: Numbers of images count as the same up to this share: published lists have empty and repeated prompts.
SAME_N = 0.01
#: Scales of figures that a detector decides, also where a paper does not name it.
DETECTED = ("fraction", "detections", "images")
AGREES, DIFFERS, NOT_COMPARABLE = "agrees", "differs", "not comparable"


def read_records(place: Path) -> pd.DataFrame:
    """Records of a folder of result files (`overpaint publish`), or of a file in the long form of ``table --format csv``."""
    if place.is_dir():
        return published(place)[0]
    try:
        frame = pd.read_csv(place, low_memory=False)
    except FileNotFoundError:
        raise UserError(
            f"--from {place} does not exist; it takes a folder of result files, or a file of overpaint table --format csv"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"{place} is not CSV: {str(error).splitlines()[0]}") from None
    missing = [name for name in REQUIRED if name not in frame]
    if missing:
        raise UserError(f"{place} has no column {missing[0]!r}; --from takes a file of overpaint table --format csv")
    for name in NUMBERS:
        if name in frame and not pd.api.types.is_numeric_dtype(frame[name]):
            raise UserError(f"{place} has text in column {name!r}, which takes numbers")
    try:
        for name in frame.columns.intersection(["given", "versions"]):
            check_mappings(frame[name].dropna().unique(), name, str(place))
    except ValueError as error:
        raise UserError(str(error)) from None
    return frame


def prepared(records: pd.DataFrame, known: Names) -> pd.DataFrame:
    """Records with a value, and names of methods and attacks also where older files have only labels.

    Prompts of an attack that were published and are replayed have that attack's name.
    """
    found = records.reindex(columns=list(dict.fromkeys([*records.columns, *_USED])))
    for name in ("method", "attack"):
        found[f"{name}_name"] = found[f"{name}_name"].fillna(found[name])
    attacks = {given: _replayed(given, known) for given in found["given"].unique()}
    found["attack_name"] = found["given"].map(attacks).fillna(found["attack_name"])
    return found[found["value"].notna()]


def _replayed(given: Any, known: Names) -> str | None:
    """The attack whose published prompts the values set by hand replay; ``None`` if they replay no such prompts."""
    file = str(given_of({"given": given}).get("attack.file", ""))
    return next((attack for asset, attack in known["replayed"].items() if file.startswith(f"asset:{asset}/")), None)


#: Optional columns of records that are read here.
_USED = "method_name attack_name low high detector threshold given difference_low difference_high against".split()


def beside(found: pd.DataFrame, records: pd.DataFrame, known: Names) -> pd.DataFrame:
    """The published figures with the columns `OURS`: the record that is nearest to each figure, and a verdict.

    The nearest record has the fewest reasons against a comparison. ``records`` counts those of the same method, metric and
    attack.
    """
    by_place: dict[tuple, list[dict[Hashable, Any]]] = {}
    for record in prepared(records, known).to_dict("records"):
        by_place.setdefault((record["method_name"], record["metric"], record["attack_name"]), []).append(record)
    originals = _originals(found)
    rows = [_beside(figure, by_place, originals, known) for figure in found.to_dict("records")]
    return found.join(pd.DataFrame(rows, columns=OURS, index=found.index, dtype=object))


def _originals(found: pd.DataFrame) -> dict[tuple, float]:
    """The unedited model's figure of each quantity that a table prints."""
    place = ["paper", "table", "base", "erased", "prompts", "attack", "metric", "detector"]
    own = found[found["method"] == "original"]
    return dict(zip(own[place].itertuples(index=False, name=None), own["scaled"], strict=True))


def _beside(
    figure: Mapping[Hashable, Any],
    by_place: Mapping[tuple, list[dict[Hashable, Any]]],
    originals: Mapping[tuple, float],
    known: Names,
) -> list[Any]:
    """The values of `OURS` for one published figure."""
    listed = [
        record
        for metric in (figure["metric_name"], *known["recorded"].get(figure["metric_name"], ()))
        for record in by_place.get((figure["method_name"], metric, figure["attack_name"] or "none"), ())
    ]
    if not listed:
        return [None] * len(OURS)
    judged = [(against(figure, record, known), record) for record in listed]
    reasons, record = min(judged, key=lambda pair: len(pair[0]))
    verdict = NOT_COMPARABLE if reasons else AGREES if _overlap(figure, record) else DIFFERS
    place = tuple(figure[n] for n in ("paper", "table", "base", "erased", "prompts", "attack", "metric", "detector"))
    sign = _sign(figure["scaled"], originals.get(place), record) if figure["method"] != "original" else None
    return [*(record[name] for name in SHOWN), len(listed), verdict, ", ".join(reasons), sign]


def against(figure: Mapping[Hashable, Any], record: Mapping[Hashable, Any], known: Names) -> list[str]:
    """What keeps a record from being compared with a published figure: base, concept, detector, prompts, n, settings.

    What a paper does not state counts as different, except for settings (`overpaint.report.ledger.settings`).
    """
    found = []
    if plain_name(record, "model") != figure["base_name"]:
        found.append("base")
    if figure["concept"].casefold() not in _concepts(record):
        found.append("concept")
    detected = figure["scale"] in DETECTED or figure["detector"]
    if detected and _detector(record) not in known["detectors"].get(figure["detector"], ()):
        found.append("detector")
    if not _same_prompts(record, figure["prompts"] or figure["attack_name"], known):
        found.append("prompts")
    if pd.isna(figure["images"]) or abs(figure["images"] - record["n"]) > SAME_N * figure["images"]:
        found.append("n")
    if settings := differing(figure, record, known):
        found.append(f"settings {few(settings, between=' ')}")
    return found


def _detector(record: Mapping[Hashable, Any]) -> str:
    """The name of a record's detector, without version and hash."""
    return "" if pd.isna(record["detector"]) else str(record["detector"]).split(" ")[0]


def _same_prompts(record: Mapping[Hashable, Any], prompts: str, known: Names) -> bool:
    """Whether a value that was set by hand, or else the concept set, names an asset with these printed prompts."""
    given = given_of(record)
    places = tuple(f"asset:{name}/" for name in known["prompts"].get(prompts, ()))
    by_hand = [str(value) for key, value in given.items() if key.startswith("concepts.prompts") or key == "attack.file"]
    return any(value.startswith(places) for value in by_hand or _prompt_files(plain_name(record, "concepts")))


@cache
def _concept_set(name: str) -> Mapping[str, Any]:
    """The YAML of a concept set; empty if there is none of this name."""
    return component("concepts", name).config if name in components("concepts") else {}


def _concepts(record: Mapping[Hashable, Any]) -> set[str]:
    """The name of a record's concept set, and the concept if it erases only one, in small letters."""
    erased = erased_of(record)
    return {plain_name(record, "concepts").casefold(), *(one.casefold() for one in erased if len(erased) == 1)}


def _prompt_files(name: str) -> list[str]:
    """The prompt files of a concept set."""
    files = (_concept_set(name).get("prompts") or {}).values()
    return [str(file["file"] if isinstance(file, dict) else file) for file in files if file]


def _overlap(figure: Mapping[Hashable, Any], record: Mapping[Hashable, Any]) -> bool:
    """Whether the 95 % intervals of both overlap. A published figure without its own interval is a point."""
    low = high = figure["scaled"]
    if figure["scale"] == "fraction":
        hits = np.arange(int(figure["images"])) < round(low * figure["images"])
        _, low, high, *_ = statistics.proportion(hits)
    ours = record["low"], record["high"]
    if pd.isna(ours[0]) and pd.isna(ours[1]):
        ours = record["value"], record["value"]
    first, last = (-math.inf if pd.isna(ours[0]) else ours[0]), (math.inf if pd.isna(ours[1]) else ours[1])
    (_, end), (start, _) = sorted([(low, high), (first, last)])
    return start <= end


def _sign(value: float, original: float | None, record: Mapping[Hashable, Any]) -> str | None:
    """Whether the record's difference to the unedited model has the sign of the paper's: same, opposite, or open.

    It is open if the record's interval contains 0, and undefined without a figure of the unedited model on both sides.
    """
    low, high = record["difference_low"], record["difference_high"]
    if original is None or pd.isna(low) or pd.isna(high) or record["against"] != "original" or value == original:
        return None
    if low <= 0 <= high:
        return "open"
    return "same" if (low > 0) == (value > original) else "opposite"


def orders_with_ours(found: pd.DataFrame, records: pd.DataFrame, known: Names) -> pd.DataFrame:
    """Rows like those of `overpaint.report.ledger.agreement.orders`, with our records as the other side.

    Our order is by means over concept sets that were measured for all shared methods: the paper's concept if it was measured,
    else all. Detectors, protocols, budgets and other settings with several values have a row each. A method that a paper prints
    in several variants is left out, and so are records with other settings.
    """
    kept = prepared(records, known)
    rows = []
    for key, group in erasers(found, known).groupby(ORDER, sort=False):
        concept, prompts, attack, ranked = map(str, key)
        metrics = {
            name for metric in group["metric_name"].unique() for name in (metric, *known["recorded"].get(metric, ()))
        }
        ours = kept[kept["metric"].isin(metrics) & (kept["attack_name"] == (attack or "none"))]
        if prompts and ranked in known["ranked"].values():  # other prompts ask for something else
            same = [_same_prompts(record, prompts, known) for record in ours.to_dict("records")]
            ours = ours[pd.Series(same, index=ours.index, dtype=bool)]
        several = several_of(ours, [name for name in SETTINGS if name != "seed"])
        for (model, metric, *values), part in ours.groupby(["model", "metric", *several], sort=False, dropna=False):
            for one, figures in columns(group):
                side, printed = _by_name(figures, known)
                means, said = _means(_with_settings_of(printed, one[0], concept, part, known), set(side), concept)
                measured = f"{metric}, {said}{under(several, values)}"
                row = agreement(key, one, side, ("overpaint", measured, str(model)), means)
                rows += [row] if row else []
    return pd.DataFrame(rows)


def _by_name(figures: Mapping[str, float], known: Names) -> tuple[dict[str, float], dict[str, str]]:
    """A paper's figures, and its printed names, by our names of the methods, without names that stand for several of them."""
    named = [(known["methods"][method], method) for method in figures if method in known["methods"]]
    once = [name for name, _ in named]
    printed = {name: method for name, method in named if once.count(name) == 1}
    return {name: figures[method] for name, method in printed.items()}, printed


def _with_settings_of(
    printed: Mapping[str, str], paper: str, concept: str, part: pd.DataFrame, known: Names
) -> pd.DataFrame:
    """The records of a paper's printed methods with the settings that their names mean."""
    part = part[part["method_name"].isin(printed)]
    columns = ["model", "concepts", "kind", "budget", "method_name", "attack_name", "given"]
    points = [*part.assign(given=part["given"].fillna("{}"))[columns].itertuples(index=False, name=None)]
    fits = {}
    for point in dict.fromkeys(points):
        record: dict[Hashable, Any] = dict(zip(columns, point, strict=True))
        figure: dict[Hashable, Any] = {"method": printed[record["method_name"]], "paper": paper, "concept": concept}
        fits[point] = not differing(figure, record, known)
    return part[pd.Series([fits[point] for point in points], index=part.index, dtype=bool)]


def _means(part: pd.DataFrame, methods: set[str], concept: str) -> tuple[dict[str, float], str]:
    """Our figure of each of these methods, turned so that higher is better, and the concept sets that it is a mean of."""
    part = part[part["method_name"].isin(methods)]
    own = part[part["concepts"].astype(str).str.casefold() == concept.casefold()]
    table = (part if own.empty else own).pivot_table("value", "method_name", "concepts", "mean")
    table = table.loc[:, table.notna().sum() == table.notna().sum().max()] if len(table.columns) else table
    table = table.dropna()
    if table.empty:
        return {}, ""
    direction = part["direction"].iloc[0]
    turned = {str(method): -float(loss(mean, direction)) for method, mean in table.mean(axis=1).items()}
    many = len(table.columns) > 1
    return turned, f"mean over {len(table.columns)} concept sets" if many else str(table.columns[0])
