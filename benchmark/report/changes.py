"""Two sets of results: the figures that changed beyond noise, and what differs in how the two were made.

Figures correspond if their labels, metric and, where one side has several, detector and settings are the same. Method seeds of
one figure are pooled. The difference is B − A: paired if both sides hold outcomes of the same prompts and seeds, else from the
two intervals. All comparisons are one family of tests (`overpaint.report.families`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from overpaint.errors import unknown
from overpaint.grid.labels import few
from overpaint.report import seeds, statistics
from overpaint.report.claims import hashes
from overpaint.report.directions import ARROWS, loss
from overpaint.report.families import DIFFERS, EQUAL, Compared, is_primary, marks
from overpaint.report.figure_text import Reasons, entry_text
from overpaint.report.gathered import ARTEFACT
from overpaint.report.pooling import Outcomes, Rows, groups_of, pooled, tests_of
from overpaint.report.records import CELL, component_versions, number_of
from overpaint.report.sheets import Sheet
from overpaint.report.standings import MISSING, SAME, aligned
from overpaint.report.statistics import Estimate
from overpaint.report.tables import Entry
from overpaint.report.views import View
from overpaint.run.store import Store

CHANGED, SHOWN_EQUAL, INCONCLUSIVE, IDENTICAL, UNTESTED = "changed", "equal", "inconclusive", "identical", "untested"
ONLY_A, ONLY_B = "only-a", "only-b"
#: Groups of figures, and what they mean.
GROUPS = {
    CHANGED: "the difference is shown: corrected p-value below 5 %, or another value of the same outcomes",
    SHOWN_EQUAL: f"shown to differ by less than {statistics.MARGIN:.2f}",
    INCONCLUSIVE: "neither a difference nor equality is shown",
    IDENTICAL: "the same value, interval and n, and the same outcomes where both are stored; or undefined on both sides",
    UNTESTED: "undefined on one side, without an interval, or aggregated in another way",
    ONLY_A: "A alone has the figure",
    ONLY_B: "B alone has the figure",
}
#: Labels of a figure. Method seeds are pooled.
LABELS = ["experiment", *(name for name in CELL if name != "seed")]
#: Columns that must agree, else two figures are not of one kind.
KIND = ["unit", "direction", "aggregation"]
#: Columns of a record that say how it was made and judged, and what they are called.
MADE = {
    "version": "version of {metric}",
    "statistics": "version of the statistics",
    "detector": "detector",
    "extractor": "extractor",
    "threshold": "threshold",
    "given": "set by hand",
    "seed": "method seeds",
}
#: Why a figure changed whose outcomes are equal: it was computed in another way, or a file was edited.
RECOMPUTED = "the same outcomes, another value"
#: Why a paired difference is not the difference between the two values that are shown.
OPPOSITE = "the shared images differ the other way than A and B as a whole"
#: Differing hash of the settings: every figure has another one.
SETTINGS = "settings (hash)"
NUMBERS = ["value", "low", "high", "n", "failed"]
#: Columns of `compared`.
COLUMNS = (
    [*LABELS, "facet", "metric", "direction", "unit", "group", "better"]
    + [f"{side}{part}" for side in "ab" for part in ("", "_low", "_high", "_n")]
    + "difference low high p_value p_equivalence p_adjusted family n pairing why differs".split()
)


@dataclass(frozen=True)
class Side:
    """One of the two sets of results.

    Attributes:
        name: the name that the user typed.
        records: see `overpaint.report.records`; column ``experiment`` is "" unless experiments are compared one by one.
        outcomes: the outcomes behind them, by column ``artefact``.
        runs: how the records were made (`overpaint.report.claims.Claim`).
    """

    name: str
    records: pd.DataFrame
    outcomes: Outcomes = field(default_factory=Outcomes)
    runs: Sequence[Mapping[str, Any]] = ()


def runs_of(store: Store, keys: Sequence[str]) -> list[dict[str, Any]]:
    """How the measurements with these keys were made, from the manifests of all artefacts that they depend on."""
    places = {key: stage for stage in store.stages() for key in store.listed(stage).keys}
    found: dict[str, dict[str, Any]] = {}
    waiting, seen = [key for key in keys if key in places], set(keys)
    while waiting:
        key = waiting.pop()
        manifest = store.manifest(places[key], key)
        models, assets = hashes([manifest.get("config", {})])
        host = manifest.get("host", {}).get("machine", "")
        run = {"libraries": manifest.get("libraries", {}), "machine": host, "models": models, "assets": assets}
        found[json.dumps(run, sort_keys=True)] = run
        new = {i for i in manifest.get("inputs", {}).values() if i in places and i not in seen}
        seen |= new
        waiting += sorted(new)
    return list(found.values())


def compared(a: Side, b: Side, view: View, ignore: Sequence[str] = ()) -> pd.DataFrame:
    """One row per figure of either side, with columns `COLUMNS`; A and B are the values, and the difference is B − A.

    Args:
        view: the view whose primary endpoints are corrected by Holm.
        ignore: labels that need not agree. The names of method and attack still do.

    Raises:
        UserError: for an unknown label.
    """
    for name in ignore:
        if name not in LABELS:
            raise unknown("label", name, LABELS, "ignore")
    labels = [*(name for name in LABELS if name not in ignore), "method_name", "attack_name"]
    both = pd.concat([side.records.assign(side=name) for name, side in (("a", a), ("b", b))], ignore_index=True)
    both = both.reindex(columns=list(dict.fromkeys([*both, *LABELS, *KIND, *MADE, "versions", "why", "against"])))
    both["variant"] = _variants(both, [*labels, "facet", "metric"])
    rows = both.astype(object).where(both.notna(), None).to_dict("records")
    sides = {"a": a, "b": b}
    found: list[dict[str, Any]] = []
    tests: list[Compared | None] = []
    for places in both.groupby([*labels, "facet", "metric", "variant"], sort=False, dropna=False).indices.values():
        of_side = {side: [rows[place] for place in places if rows[place]["side"] == side] for side in sides}
        figure, test = _figure(of_side, sides, view)
        found.append(figure)
        tests.append(test)
    for figure, mark in zip(found, marks(tests), strict=True):
        figure |= {"p_adjusted": mark.p_adjusted, "family": mark.family}
        figure["group"] = figure["group"] or {DIFFERS: CHANGED, EQUAL: SHOWN_EQUAL, "": INCONCLUSIVE}[mark.says]
        if figure["group"] == CHANGED:
            figure["better"] = "better" if _is_better(figure) else "worse"
    return pd.DataFrame(found, columns=COLUMNS)


def _is_better(figure: Mapping[str, Any]) -> bool:
    """Whether B is better than A by the difference that is tested: that of the shared images where figures are paired.

    Where figures should be near 0, or without a difference, the two values decide.
    """
    a, b = figure["a"], figure["b"]
    if figure["difference"] and figure["direction"] != "zero":
        a, b = 0.0, figure["difference"]
    before, after = loss([a, b], figure["direction"])
    return bool(after < before)


def _variants(both: pd.DataFrame, labels: Sequence[str]) -> pd.Series:
    """What distinguishes figures of one side with the same labels: the detector, then the hash of the settings."""
    found = pd.Series("", index=both.index)
    for extra in (["detector", "extractor", "threshold"], ["settings"], [ARTEFACT]):
        place = both[labels].assign(variant=found)
        several = pd.concat([place, both[["side", "seed"]]], axis=1).duplicated(keep=False)
        crowded = several.groupby([place[name] for name in place], dropna=False).transform("any")
        if crowded.any():
            for values in (both[name].astype(object) for name in extra if name in both):
                found = found.where(~crowded, found + " " + values.where(values.notna(), "").astype(str))
    return found


def _figure(rows: Mapping[str, Rows], sides: Mapping[str, Side], view: View) -> tuple[dict[str, Any], Compared | None]:
    """One figure without its corrected test, and its test. ``group`` is "" if the corrected test decides.

    ``rows`` holds the records of each side.
    """
    of_a, of_b = rows["a"], rows["b"]
    first = (of_b or of_a)[0]
    figure: dict[str, Any] = {name: _label(of_a, of_b, name) for name in LABELS}
    figure |= {name: first[name] for name in ("facet", "metric", "direction", "unit")} | {"group": "", "better": ""}
    values = {side: _pooled(rows[side], sides[side]) for side in rows if rows[side]}
    for side, e in values.items():
        figure |= {side: e.value, f"{side}_low": e.low, f"{side}_high": e.high, f"{side}_n": e.n}
    if not of_a or not of_b:
        return figure | {"group": ONLY_B if of_b else ONLY_A}, None
    figure["differs"] = list(_differing(of_a, of_b))
    for name in KIND:
        one, other = _said(of_a, name), _said(of_b, name)
        if one != other:
            return figure | {"group": UNTESTED, "why": f"{name}: {one} in A, {other} in B"}, None
    undefined = [side for side, e in values.items() if e.value is None]
    if undefined:
        why = "; ".join(f"undefined in {side.upper()}: {rows[side][0]['why']}" for side in undefined)
        return figure | {"group": IDENTICAL if len(undefined) == 2 else UNTESTED, "why": why}, None
    same = _numbers(of_a) == _numbers(of_b)
    digests = [_digests(rows[side], sides[side]) for side in sides]
    primary = is_primary(view.primary, first["facet"], first["metric"], first["attack_name"], first["against"])
    if same and digests[0] == digests[1]:
        figure |= {"group": IDENTICAL, "difference": 0.0, "p_value": 1.0, "n": values["a"].n or None}
        return figure, Compared(1.0, None, primary)  # counts in the correction of the others
    gap, joined, why = _gap(of_a, of_b, sides["a"], sides["b"], values["a"], values["b"], first["unit"])
    if same and (joined is None or _equal(joined["value"], joined["value_other"])):
        figure["group"] = IDENTICAL
    if digests[0] == digests[1] and None not in digests[0] and abs(figure["b"] - figure["a"]) > SAME:
        figure["group"], why = CHANGED, f"{RECOMPUTED}; {why}"
    figure |= {"difference": gap.value, "low": gap.low, "high": gap.high, "n": gap.n or None}
    if gap.p_value is None:
        return figure | {
            "group": figure["group"] or UNTESTED,
            "why": why if figure["group"] == CHANGED else "no interval",
        }, None
    if joined is not None and gap.value is not None and gap.value * (figure["b"] - figure["a"]) < 0:
        why = OPPOSITE
    figure |= {"p_value": gap.p_value, "p_equivalence": gap.p_equivalence}
    figure |= {"pairing": "unpaired" if joined is None else "paired", "why": why}
    return figure, Compared(gap.p_value, gap.p_equivalence, primary)


def _digests(rows: Sequence[Mapping], side: Side) -> list[int | None]:
    """Hashes of the outcomes of records, by method seed; ``None`` where they are not stored."""
    ordered = sorted(rows, key=lambda row: row["seed"])
    return [side.outcomes.digests.get((row.get(ARTEFACT), row["metric"])) for row in ordered]


def _numbers(rows: Sequence[Mapping]) -> list[list]:
    """The numbers of records, by method seed."""
    return [[row[name] for name in ("seed", *NUMBERS)] for row in sorted(rows, key=lambda row: row["seed"])]


def _label(of_a: Sequence[Mapping], of_b: Sequence[Mapping], name: str) -> str:
    """A label as text; both if they differ."""
    texts = [str(row[0][name] or "") for row in (of_a, of_b) if row]
    return " → ".join(dict.fromkeys(texts))


def _pooled(rows: Rows, side: Side) -> Estimate:
    """The figure of one side, over its method seeds."""
    found = pooled(rows, "value", side.outcomes)
    return found.estimate if found else Estimate(None)


def _gap(
    of_a: Rows, of_b: Rows, a: Side, b: Side, one: Estimate, other: Estimate, unit: str
) -> tuple[Estimate, pd.DataFrame | None, str]:
    """B − A, the paired outcomes (``None`` if it is unpaired), and why it is unpaired."""
    joined, why = (None, MISSING) if not (a.outcomes and b.outcomes) else _joined(of_a, of_b, a, b, one, other)
    if joined is not None:
        return statistics.paired_difference(joined["value"], joined["value_other"], **groups_of(joined)), joined, ""
    gap = statistics.difference_of_estimates(other, one)
    if gap.low is not None:
        p_value, p_equivalence = tests_of(gap._replace(p_value=None), equivalence=unit == "fraction")
        gap = gap._replace(p_value=p_value, p_equivalence=p_equivalence, n=one.n + other.n)
    return gap, None, why


def _joined(
    of_a: Rows, of_b: Rows, a: Side, b: Side, one: Estimate, other: Estimate
) -> tuple[pd.DataFrame | None, str]:
    """The outcomes of both sides by prompt and seed, if they give both figures and at least half of them correspond."""
    tables = b.outcomes.together(of_b), a.outcomes.together(of_a)
    joined, why = aligned(*tables)
    if joined is None:
        return None, why
    for table, estimate in zip(tables, (other, one), strict=True):
        if table is not None and estimate.value is not None and abs(_mean(table) - estimate.value) > SAME:
            return None, "the figure is no mean of its outcomes"
    if 2 * len(joined) < max(len(table) for table in tables if table is not None):
        return None, "fewer than half of the images have the same prompt and seed"
    return joined, ""


def _mean(table: pd.DataFrame) -> float:
    """The mean of outcomes: method seeds weigh the same, and so do strata of shares."""
    values = table["value"].to_numpy(float)
    shares = np.isin(values[~np.isnan(values)], (0, 1)).all()
    by = [name for name in ("run", *(["stratum"] if shares else [])) if table[name].nunique() > 1]
    if not by:
        return float(np.nanmean(values))
    means = table.groupby(by)["value"].mean()
    return float((means.groupby("run").mean() if "run" in by else means).mean())


def _equal(these: pd.Series, those: pd.Series) -> bool:
    return np.array_equal(these.to_numpy(float), those.to_numpy(float), equal_nan=True)


def _said(rows: Sequence[Mapping], name: str) -> str:
    """The values of a column as text."""
    return ", ".join(dict.fromkeys("none" if row[name] in (None, "", "{}") else str(row[name]) for row in rows))


def _differing(of_a: Sequence[Mapping], of_b: Sequence[Mapping]) -> Iterator[tuple[str, str, str]]:
    """What differs in how a figure was made: its name, and its values in A and in B."""
    recorded = all(row["versions"] not in (None, "{}") for row in (*of_a, *of_b))
    if recorded:
        known = component_versions(row["versions"] for row in (*of_a, *of_b))
        one, other = (_versions(known[row["versions"]] for row in rows) for rows in (of_a, of_b))
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                yield f"version of {name}", one.get(name, "none"), other.get(name, "none")
    for name, title in MADE.items():
        first, second = _said(of_a, name), _said(of_b, name)
        stated = "none" not in (first, second) or (recorded and name != "statistics")  # older records lack some columns
        if first != second and stated:
            yield title.format(metric=of_a[0]["metric"]), first, second
    if recorded and _said(of_a, "settings") != _said(of_b, "settings"):
        yield SETTINGS, _said(of_a, "settings"), _said(of_b, "settings")


def _versions(rows: Iterable[Mapping[str, int]]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, version in row.items():
            found.setdefault(name, []).append(str(version))
    return {name: ", ".join(dict.fromkeys(versions)) for name, versions in found.items()}


def differences(figures: pd.DataFrame, a: Side, b: Side) -> pd.DataFrame:
    """What differs in how the two sides were made: columns ``what``, ``a``, ``b``, and ``figures``, how many it concerns.

    ``figures`` is 0 for libraries, processors, models and assets, which are known of a side as a whole.
    """
    counted = Counter(
        reason if reason[0] != SETTINGS else (SETTINGS, "", "")
        for found in figures["differs"].dropna()
        for reason in found
    )
    rows = [(*reason, number) for reason, number in counted.most_common()]
    one, other = _made(a.runs), _made(b.runs)
    for what in sorted(one.keys() & other.keys()):
        if one[what] != other[what]:
            left, right = (sorted(side) for side in (one[what] - other[what], other[what] - one[what]))
            rows.append((what, ", ".join(left), ", ".join(right), 0))
    return pd.DataFrame(rows, columns=["what", "a", "b", "figures"])


def _made(runs: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Libraries, processor, models and assets of runs. Hashes have 12 digits."""
    found: dict[str, set[str]] = {}
    for run in runs:
        named = {f"library {name}": version for name, version in (run.get("libraries") or {}).items()}
        named |= {f"asset {name}": str(digest)[:12] for name, digest in (run.get("assets") or {}).items()}
        named |= {"processor": run["machine"]} if run.get("machine") else {}
        for what, value in [*named.items(), *(("model", str(digest)[:12]) for digest in run.get("models") or ())]:
            found.setdefault(what, set()).add(str(value))
    return found


def sheets(
    figures: pd.DataFrame, differing: pd.DataFrame, a: Side, b: Side, shown: Sequence[str], view: View
) -> list[Sheet]:
    """The number of figures in each group, the figures of the groups ``shown``, and what differs in how they were made."""
    counts = figures["group"].value_counts()
    summary = [[name, str(counts.get(name, 0)), meaning] for name, meaning in GROUPS.items()]
    found = [Sheet(f"A: {a.name} · B: {b.name}", ["group", "figures", "meaning"], summary, 1, [_family(figures, view)])]
    silent = [name for name in GROUPS if name not in (IDENTICAL, *shown) and counts.get(name)]
    if silent:
        found[0] = replace(
            found[0], notes=[*found[0].notes, f"Not listed: {', '.join(silent)}. --show all lists them."]
        )
    if apart := nothing_in_common(figures, a, b):
        found = [replace(found[0], notes=[apart])]
    several = [name for name in LABELS if name not in NAMED and figures[name].nunique() > 1]
    for name in shown:
        part = figures[figures["group"] == name]
        if part.empty:
            continue
        if name in (ONLY_A, ONLY_B):
            found.append(_alone(part, several, name))
        else:
            found.append(_figures(part, several, f"{name}: {GROUPS[name]}"))
    unstated = [
        f"{name} does not state its libraries, models and assets."
        for name, s in (("A", a), ("B", b))
        if not _made(s.runs)
    ]
    if len(differing) or unstated:
        rows = [
            [str(r.what), str(r.a or "–"), str(r.b or "–"), str(r.figures or "all")] for r in differing.itertuples()
        ]
        found.append(Sheet("What differs in how A and B were made", ["what", "A", "B", "figures"], rows, 1, unstated))
    return found


#: Labels that have columns of their own in a table.
NAMED = ("concepts", "method", "attack")


def _figures(part: pd.DataFrame, several: Sequence[str], title: str) -> Sheet:
    """One row per figure, the largest differences of shares first."""
    part = part.assign(size=part["difference"].abs() * (part["unit"] == "fraction"))
    part = part.sort_values("size", ascending=False, kind="stable", na_position="last")
    rows = []
    for row in part.to_dict("records"):
        unit = row["unit"]
        name = f"{row['metric'].replace('_', ' ')} {ARROWS[row['direction']]}"
        values = [_with_limits(row[s], row[f"{s}_low"], row[f"{s}_high"], unit) for s in "ab"]
        gap = _with_limits(row["difference"], row["low"], row["high"], unit)
        notes = [
            row["better"],
            "" if pd.isna(row["pairing"]) else row["pairing"],
            "" if row["why"] == MISSING else row["why"],
        ]
        notes += [what for what, *_ in row["differs"] if what != SETTINGS]
        said = "; ".join(note for note in notes if isinstance(note, str) and note)
        p = "" if pd.isna(row["p_adjusted"]) else f"{row['p_adjusted']:.2g}"
        count = "" if pd.isna(row["n"]) else f"{row['n']:.0f}"
        rows.append([*(row[n] for n in (*several, *NAMED)), name, *values, gap, p, count, said])
    heads = [*several, *NAMED, "figure", "A", "B", "B − A", "p, corrected", "n", "note"]
    unstored = (part["why"] == MISSING).sum()
    notes = [f"{unstored} of these figures are unpaired because one side stores no outcomes."] if unstored else []
    return Sheet(title, heads, rows, len(several) + len(NAMED) + 1, notes)


def _alone(part: pd.DataFrame, several: Sequence[str], name: str) -> Sheet:
    """The numbers of figures that one side alone has, by cell."""
    by = [*several, *NAMED]
    rows = [
        [*map(str, labels), str(len(own)), ", ".join(dict.fromkeys(own["metric"]))]
        for labels, own in part.groupby(by, sort=False)
    ]
    return Sheet(f"{name}: {GROUPS[name]}", [*by, "figures", "metrics"], rows, len(by))


def _with_limits(value: float | None, low: float | None, high: float | None, unit: str) -> str:
    return entry_text(Entry(number_of(value), number_of(low), number_of(high), unit), Reasons())


def _family(figures: pd.DataFrame, view: View) -> str:
    """A sentence about the correction."""
    tested = figures[figures["p_adjusted"].notna()]
    first = tested["family"].str.startswith("primary").sum()
    named = ", ".join(endpoint["metric"].replace("_", " ") for endpoint in view.primary.values())
    return (
        f"{len(tested)} tests are corrected together: Holm over {first} primary endpoints ({named}), Benjamini–Hochberg over the "
        f"{len(tested) - first} others; 5 % level, equivalence margin {statistics.MARGIN:.2f}. A paired difference has the same "
        "prompts and seeds on both sides. An unpaired one treats the two figures as independent, which is cautious if they "
        "share prompts. The intervals do not cover the variation between method seeds, unless both sides have "
        f"{seeds.FEWEST} of them."
    )


def nothing_in_common(figures: pd.DataFrame, a: Side, b: Side) -> str:
    """Why no figure is on both sides: labels without a common value, and the filter that leaves them out; empty if one is."""
    if not figures["group"].isin([ONLY_A, ONLY_B]).all():
        return ""
    compared_by = [*LABELS, "method_name", "attack_name", "metric"]
    sides = [side.records.reindex(columns=compared_by).astype(str) for side in (a, b)]
    apart = {}
    for name in compared_by:
        one, other = (list(dict.fromkeys(side[name])) for side in sides)
        if not set(one) & set(other):
            apart[name] = f"{name.removesuffix('_name')} is {few(one, 3)} in A and {few(other, 3)} in B"
    for name in ("method_name", "attack_name", "metric"):
        if name in apart:
            what = name.removesuffix("_name")
            further = "; overpaint table --view pairs compares methods" if what == "method" else ""
            return f"No figure is on both sides: {apart[name]}. Figures of two {what}s are not compared{further}."
    if not apart:
        keys = {name: [{*map(tuple, side.drop(columns=name).to_numpy())} for side in sides] for name in LABELS}
        near = [f"ignore={name}" for name, (one, other) in keys.items() if one & other]
        hint = f" {' or '.join(near)} compares some." if near else ""
        return f"No figure is on both sides: their labels are combined in other ways.{hint}"
    left_out = "leaves it" if len(apart) == 1 else "leaves them"
    return f"No figure is on both sides: {'; '.join(apart.values())}. ignore={','.join(apart)} {left_out} out of the comparison."


def flat(figures: pd.DataFrame) -> pd.DataFrame:
    """The figures with all their columns as text and numbers, for CSV."""
    said = [
        "; ".join(f"{what}: {one} → {other}" for what, one, other in found) if isinstance(found, list) else ""
        for found in figures["differs"]
    ]
    return figures.assign(differs=said)
