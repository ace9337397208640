"""Comparisons of methods, computed from outcomes: ranks with intervals, agreement of rankings, and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from overpaint.grid.directions import BETTER
from overpaint.grid.labels import counted
from overpaint.report import statistics
from overpaint.report.directions import loss
from overpaint.report.families import Compared, Mark, is_primary, marks
from overpaint.report.pooling import SHARED, Outcomes, groups_of, pooled, rows_by
from overpaint.report.ranks import FEWEST_CONCEPTS, alike, mean_ranks, rank_intervals, rank_intervals_over_concepts
from overpaint.report.standings import MISSING, PAIR, SEVERAL, UNALIKE, paired, with_equal_runs
from overpaint.report.statistics import Estimate
from overpaint.report.tables import Entry, Head, Row, Table, blocks_of, provenance
from overpaint.report.views import View


def rankings(records: pd.DataFrame, view: View, outcomes: Outcomes) -> Iterator[Table]:
    """Per block, the rank of each method in each column with its interval, and the agreement of the columns.

    With enough concept sets, a table in between has the ranks whose intervals hold for other concepts.
    """
    for title, part in blocks_of(records, view):
        shown: dict[str, dict[str, Entry]] = {}
        heads: list[Head] = []
        shared: dict[str, pd.DataFrame] = {}
        methods = list(dict.fromkeys(part["method"]))
        for name, column in view.columns.items():
            chosen = column.chosen(part, view.rows)
            if not chosen.empty:
                heads.append(Head(name, chosen["direction"].iloc[0]))
                shared[name] = alike_measured(chosen)
                ranks = _ranks(chosen, shared[name], methods, outcomes)
                shown[name] = dict(zip(methods, ranks, strict=True))
        if not shown or len(methods) < 2:
            continue
        notes = ["Ranks: 1 is best, ties share the better rank; 95 % intervals from paired tests, concepts fixed."]
        notes += _left_out({name: view.columns[name].chosen(part, view.rows) for name in shown}, shared)
        notes += [note for name, own in shared.items() if (note := _groups(name, own, outcomes))]
        ranked = _ranked(part, view) if view.mean_ranks else {}
        means = {f"mean rank, {average}": _mean_ranks(ranked, methods, average) for average in view.mean_ranks}
        if means:
            notes.append(
                "Mean ranks are over the columns, by the methods' means over concept sets or over kinds of concepts."
            )
            if absent := [name for name in view.columns if name not in ranked]:
                notes.append(f"Mean ranks leave out columns that no method has: {', '.join(absent)}.")
        rows = [Row((m,), [of.get(m) for of in [*shown.values(), *means.values()]]) for m in methods]
        heads += [Head(name, "down") for name in means]
        yield Table(f"Ranks, {title}", (view.rows,), heads, rows, notes, provenance(part))
        if part["concepts"].nunique() >= FEWEST_CONCEPTS:
            yield _over_concepts(title, part, view, methods, outcomes)
        yield _agreement(title, {name: [of[m].value for m in methods] for name, of in shown.items()})


def _ranks(chosen: pd.DataFrame, shared: pd.DataFrame, methods: Sequence[str], outcomes: Outcomes) -> list[Entry]:
    """The rank of each method by its mean outcome. Without outcomes, the ranks use the records and have no intervals.

    Methods are ranked by the records in ``shared``, which is `alike_measured` of ``chosen``.
    """
    direction = chosen["direction"].iloc[0]
    concepts = _concepts_by_method(chosen)
    present = [m for m in methods if (shared["method"] == m).any()]
    if not present:
        why = "no other method was measured on one of its concept sets"
        return [Entry(None, unit="rank", why=why if m in concepts else "not measured") for m in methods]
    images, why = _images(shared, present, outcomes)
    own = rows_by(shared, "method")
    if images is None:
        means = [pooled(own[m], "value", Outcomes()) for m in present]
        values = [np.nan if found is None or found.estimate.value is None else found.estimate.value for found in means]
        ranks = pd.Series(loss(values, direction)).rank(method="min")
        found = [Estimate(None if np.isnan(rank) else float(rank)) for rank in ranks]
    else:
        keys = images.index.to_frame(index=False)
        found = rank_intervals(images.to_numpy(float).T, direction, **groups_of(keys))
        if found[0].value is None:
            why = "no prompt was judged for every method"
    undefined = {
        m: "; ".join(dict.fromkeys(r["why"] for r in own[m] if isinstance(r["why"], str) and r["why"])) for m in own
    }
    entries = {
        m: Entry(e.value, e.low, e.high, "rank", e.n, e.failed, why=undefined[m] or why if e.value is None else "")
        for m, e in zip(present, found, strict=True)
    }
    wanted = set(shared["concepts"])
    reasons = {m: f"measured on {len(own & wanted)} of the {len(wanted)} concept sets" for m, own in concepts.items()}
    return [entries.get(m, Entry(None, unit="rank", why=reasons.get(m, "not measured"))) for m in methods]


def _concepts_by_method(chosen: pd.DataFrame) -> dict[str, frozenset[str]]:
    """The concept sets on which each method was measured."""
    return {str(m): frozenset(own) for m, own in chosen.groupby("method", sort=False)["concepts"]}


def alike_measured(chosen: pd.DataFrame) -> pd.DataFrame:
    """The records of methods that were measured on the same concept sets, and of these sets; empty if no two methods were.

    Means over different concept sets are not comparable. If methods differ, those concept sets are kept on which the most
    figures can be compared: the largest product of their number and the number of methods that have them all. The records
    of a single method are kept.
    """
    of = _concepts_by_method(chosen)
    if len(set(of.values())) < 2:
        return chosen
    own = dict.fromkeys(of.values())
    candidates = dict.fromkeys([*own, *(one & other for one, other in combinations(own, 2))])
    methods = {sets: [m for m, measured in of.items() if sets <= measured] for sets in candidates if sets}
    compared = {sets: len(found) for sets, found in methods.items() if len(found) > 1}
    if not compared:
        return chosen.iloc[:0]
    best = max(compared, key=lambda sets: (compared[sets] * len(sets), compared[sets]))
    return chosen[chosen["method"].isin(methods[best]) & chosen["concepts"].isin(best)]


def _left_out(chosen: dict[str, pd.DataFrame], shared: dict[str, pd.DataFrame]) -> list[str]:
    """Sentences about columns that rank on fewer concept sets than were measured."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for name, own in shared.items():
        concepts = tuple(dict.fromkeys(own["concepts"]))
        if concepts and len(concepts) < chosen[name]["concepts"].nunique():
            columns.setdefault(concepts, []).append(name)
    return [
        f"{', '.join(names)}: ranked by {', '.join(concepts)} only, because not every method was measured on the same concept "
        "sets; methods without one of these are left out."
        for concepts, names in columns.items()
    ]


def _over_concepts(title: str, part: pd.DataFrame, view: View, methods: Sequence[str], outcomes: Outcomes) -> Table:
    """The ranks of the methods by their means over concept sets, which are a sample."""
    shown: dict[str, dict[str, Entry]] = {}
    heads: list[Head] = []
    for name, column in view.columns.items():
        chosen = column.chosen(part, view.rows)
        if chosen.empty:
            continue
        table = chosen.groupby(["method", "concepts"])["value"].agg(lambda own: own.mean(skipna=False)).unstack()
        table = table.reindex(index=list(methods))
        complete = table[table.notna().all(axis=1)]
        direction = chosen["direction"].iloc[0]
        fixed = _fixed(chosen, list(complete.index), outcomes) if chosen["facet"].iloc[0] in SHARED else None
        found = rank_intervals_over_concepts(complete.to_numpy(float), direction, fixed)
        entries = {
            str(m): Entry(e.value, e.low, e.high, "rank", e.n) for m, e in zip(complete.index, found, strict=True)
        }
        known = table.notna().sum(axis=1)
        shown[name] = {
            m: entries.get(m, Entry(None, unit="rank", why=f"measured on {known[m]} of {table.shape[1]} concept sets"))
            for m in methods
        }
        heads.append(Head(name, direction, table.shape[1]))
    rows = [Row((m,), [of.get(m) for of in shown.values()]) for m in methods]
    note = (
        "Ranks by the means over concept sets; the intervals hold for other concepts of these kinds: the n concept sets are a "
        "sample, and their prompts are, too."
    )
    return Table(f"Ranks over other concepts, {title}", (view.rows,), heads, rows, [note], provenance(part))


def _fixed(chosen: pd.DataFrame, methods: Sequence[str], outcomes: Outcomes) -> np.ndarray:
    """The p-values (methods, methods) of the methods' differences on these concepts, from outcomes or else from intervals."""
    own = rows_by(chosen, "method")
    means = {m: pooled(own[m], "value", outcomes) for m in methods}
    found = np.full((len(methods), len(methods)), np.nan)
    for (i, a), (j, b) in combinations(enumerate(methods), 2):
        p_value = paired(own[a], own[b], outcomes, interval=False)[0].p_value
        one, other = means[a], means[b]
        if p_value is None and one is not None and other is not None:
            p_value = statistics.difference_of_estimates(one.estimate, other.estimate).p_value
        found[i, j] = found[j, i] = np.nan if p_value is None else p_value
    return found


def _groups(name: str, chosen: pd.DataFrame, outcomes: Outcomes) -> str:
    """A sentence about the methods that cannot be told apart; empty without outcomes."""
    found, _ = _images(chosen, list(dict.fromkeys(chosen["method"])), outcomes)
    if found is None or found.shape[1] < 2 or found.empty:
        return ""
    keys = found.index.to_frame(index=False)
    groups = alike(found.to_numpy(float).T, chosen["direction"].iloc[0], **groups_of(keys))
    said = "; ".join(", ".join(str(found.columns[place]) for place in group) for group in groups)
    return f"{name}: not told apart (paired tests, Holm over all pairs), best first: {said}."


def _images(chosen: pd.DataFrame, methods: Sequence[str], outcomes: Outcomes) -> tuple[pd.DataFrame | None, str]:
    """Outcomes by image (rows) and method (columns), of the images that every method has.

    The text is the reason if there are none, else empty.
    """
    table = outcomes.together(chosen.to_dict("records"))
    if table is None:
        return None, MISSING
    if table.duplicated([*PAIR, "cluster", "method"]).any():
        return None, SEVERAL
    table = with_equal_runs(table)
    images = [*PAIR, "cluster"]
    common = table.groupby(images, dropna=False)["method"].transform("size") == len(methods)
    if not common.any():
        return None, UNALIKE
    return table[common].pivot(index=images, columns="method", values="value").reindex(columns=list(methods)), ""


def _ranked(part: pd.DataFrame, view: View) -> dict[str, pd.DataFrame]:
    """The records of each column that has a figure of at least one method."""
    chosen = {name: column.chosen(part, view.rows) for name, column in view.columns.items()}
    return {name: own for name, own in chosen.items() if own["value"].notna().any()}


def _mean_ranks(ranked: Mapping[str, pd.DataFrame], methods: Sequence[str], average: str) -> dict[str, Entry]:
    """The mean over columns (`_ranked`) of each method's rank by its mean figure.

    It is undefined if a method lacks a column that another one has, or if the methods were measured on different concept sets
    in a column.
    """
    values, directions, missing, unequal = [], [], [], []
    for name, chosen in ranked.items():
        own = rows_by(chosen, "method")
        means = [pooled(own.get(m, []), "value", Outcomes(), average) for m in methods]
        known = [None if found is None else found.estimate.value for found in means]
        if None in known:
            missing.append(name)
        elif len(set(_concepts_by_method(chosen).values())) > 1:
            unequal.append(name)
        else:
            values.append(known)
            directions.append(chosen["direction"].iloc[0])
    if missing or unequal or not values:
        said = {"not defined for every method": missing, "not measured on the same concept sets": unequal}
        why = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in said.items() if names)
        return {m: Entry(None, unit="mean rank", why=why or "no column has a figure") for m in methods}
    _, ranks = mean_ranks(np.array(values, float).T, directions)
    return {m: Entry(float(rank), unit="mean rank", n=len(values)) for m, rank in zip(methods, ranks, strict=True)}


def _agreement(title: str, ranks: dict[str, list[float | None]]) -> Table:
    """Kendall's tau-b between the columns of a ranking."""
    names = list(ranks)
    rows = []
    for one in names:
        entries: list[Entry | None] = []
        for other in names:
            both = [(a, b) for a, b in zip(ranks[one], ranks[other], strict=True) if a is not None and b is not None]
            found = statistics.kendall_tau_b(*zip(*both, strict=True)) if len(both) > 1 else Estimate(None)
            why = "" if found.value is not None else "fewer than two different ranks"
            entries.append(Entry(found.value, unit="correlation", n=len(both), why=why) if one != other else None)
        rows.append(Row((one,), entries))
    note = "Kendall's tau-b between the columns' rankings: 1 the same order, −1 the reverse."
    return Table(f"Agreement of the rankings, {title}", ("column",), list(map(Head, names)), rows, [note])


def pairs(records: pd.DataFrame, view: View, outcomes: Outcomes) -> Iterator[Table]:
    """One table per column of the view: the paired difference of every two methods, row minus column."""
    for title, part in blocks_of(records, view):
        for name, column in view.columns.items():
            chosen = column.chosen(part, view.rows)
            methods = list(dict.fromkeys(chosen["method"]))
            if len(methods) < 2:
                continue
            first = chosen.iloc[0]
            primary = is_primary(view.primary, first["facet"], column.metric, first["attack_name"], first["against"])
            own = rows_by(chosen, "method")
            found = {(a, b): paired(own[a], own[b], outcomes) for a, b in combinations(methods, 2)}
            said = marks(
                [
                    Compared(e.p_value, e.p_equivalence, primary) if e.p_value is not None else None
                    for e, _ in found.values()
                ]
            )
            shown: dict[tuple[str, str], Entry] = {}
            for ((a, b), (e, why)), mark in zip(found.items(), said, strict=True):
                shown[a, b] = _difference(e, why, mark, first["unit"])
                turned = e._replace(value=_minus(e.value), low=_minus(e.high), high=_minus(e.low))
                shown[b, a] = _difference(turned, why, mark, first["unit"])
            rows = [Row((a,), [shown.get((a, b)) for b in methods]) for a in methods]
            correction = "Holm" if primary else "Benjamini–Hochberg"
            note = (
                f"Row minus column, paired on the same prompts and seeds; {correction} over the "
                f"{counted(len(found), 'pair')} of this table, 5 % level, equivalence margin {statistics.MARGIN:.2f}."
            )
            heading = f"{name} ({BETTER[first['direction']]}): methods against each other, {title}"
            yield Table(heading, ("method",), list(map(Head, methods)), rows, [note], provenance(chosen))


def _minus(value: float | None) -> float | None:
    return None if value is None else 0.0 - value


def _difference(e: Estimate, why: str, mark: Mark, unit: str) -> Entry:
    return Entry(e.value, e.low, e.high, unit, e.n, e.failed, mark, why=why)
