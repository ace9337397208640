"""What a view shows and the records lack, with the command that makes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from overpaint.errors import nearest
from overpaint.grid.cells import ModelSpec
from overpaint.grid.concepts import KINDS
from overpaint.grid.labels import counted, few
from overpaint.grid.registry import component, components
from overpaint.report.records import given_by_hand, given_in, plain_name
from overpaint.report.views import View
from overpaint.run.track import facets

#: The protocol of pictures that `overpaint score` measures.
AS_GIVEN = "as given"
#: Contents of views without the unedited model, and the fewest methods that they show.
FEWEST = {"ranks": 2, "pairs": 2, "front": 2, "validity": 4, "panel": 1, "spread": 1, "verdicts": 1}
#: The options that a run has without overrides, of groups that commands repeat.
DEFAULTS = {"model": "testbed", "budget": "lite"}


def command_of(view: View, by_hand: Mapping[str, Any] | None = None, **others: Sequence[str]) -> str:
    """The command that makes the records of a view; ``others`` replaces values of its overrides: ``method=["uce"]``.

    Hyper-parameters of a method that is replaced are left out. Values set ``by_hand`` follow.
    """
    methods = others.get("method") or ()
    replaced = {*view.run.get("method", "").split(",")} - {*methods} if methods else ()
    kept = {key: value for key, value in view.run.items() if key.partition(".")[0] not in replaced}
    overrides = kept | {key: ",".join(values) for key, values in others.items() if values}
    typed = [f"{key}={value}" for key, value in overrides.items() if key not in (by_hand or {})]
    if by_hand:
        from overpaint.grid.overrides import override  # imports Hydra, which most tables do without

        typed += [shlex.quote(override(key, value)) for key, value in by_hand.items()]
    return " ".join(["overpaint run", *typed])


def command_for(records: pd.DataFrame, view: View, **others: Sequence[str]) -> str:
    """The `command_of` a view whose figures join the table of the records: with their model, protocol and budget, and with
    the values that were set by hand there, in the metric set, and for a method that the command names.

    The text names what a command cannot repeat, such as several settings of a method. No run makes pictures of other code:
    they are left out, or `overpaint score` is named if there is nothing else.
    """
    made = records[records["protocol"] != AS_GIVEN]
    methods = dict.fromkeys(made["method_name"])
    if made.empty or not methods.keys() & others.get("method", methods):
        return "overpaint score, with the pictures that they need"
    others = {group: [n for n in names if group != "method" or n in methods] for group, names in others.items()}
    values: dict[str, Any] = {}
    unclear = []
    for group, default in (DEFAULTS | {"protocol": _usual_protocol(made)}).items():
        option, given = _option(made, group)
        if option not in (None, default):
            others[group] = [option]
        values |= {f"{group}.{key}": value for key, value in given.items()}
        labels = [*dict.fromkeys(made[group].dropna())]
        if option is None and labels not in ([], [default]) and (len(labels) == 1 or view.together):
            unclear.append(f"{group} {few(labels, 3)}")
    by_hand = given_by_hand(made, ("metrics",)).unique()
    if len(by_hand) == 1 and (given := given_in(made.iloc[0].to_dict(), "metrics")):
        values |= {f"metrics.{key}": value for key, value in given.items()}
    elif any(by_hand):
        unclear.append(few(text for text in by_hand if text))
    if others.get("concepts") == []:  # sets that no option names
        view = replace(view, run={key: value for key, value in view.run.items() if key != "concepts"})
        unclear.append(f"concepts {few(dict.fromkeys(made['concepts']), 3)}")
    for name in others.get("method", methods):
        of_method = made[made["method_name"] == name]
        option, given = _option(of_method, "method")
        if option == name and "method" in others:
            values |= {f"{name}.{key}": value for key, value in given.items()}
        elif option != name or given:
            unclear.append(f"method {few(dict.fromkeys(of_method['method']))}")
    also = f" (with the values that these figures have: {', '.join(unclear)})" if unclear else ""
    return command_of(view, values, **others) + also


def _option(records: pd.DataFrame, group: str) -> tuple[str | None, dict[str, Any]]:
    """The option of a group that all these records have, and the values that were set by hand in it.

    It is ``None`` if the records differ, or if their label is that of no option with these values.
    """
    known = records.reindex(columns=["given", group]).drop_duplicates().to_dict("records")
    first, *others = [(plain_name(record, group), given_in(record, group)) for record in known]
    return first if first[0] in components(group) and all(other == first for other in others) else (None, {})


def _usual_protocol(records: pd.DataFrame) -> str | None:
    """The protocol that a run with the model of these records has; the records' own, if nothing shows that it is another."""
    model, known = records["model"].iloc[0], components("model")
    if model in known:
        return str(component("model", model).config.get("protocol", ModelSpec.protocol))
    return None if given_by_hand(records, ("protocol",)).any() else records["protocol"].iloc[0]


def too_few(records: pd.DataFrame, view: View) -> str:
    """A sentence about methods or seeds that a view compares and the records lack; empty if there are enough."""
    methods = list(dict.fromkeys(records.loc[records["method_name"] != "none", "method_name"]))
    least, seeds = FEWEST.get(view.cells, 0), records["seed"].nunique()
    if len(methods) < least:
        return f"It needs {counted(least, 'method')} besides the unedited model; stored: {few(methods) or 'none'}. "
    if view.cells == "spread" and seeds < 2:
        return "It needs two method seeds; stored: one. "
    return ""


def undefined(records: pd.DataFrame, view: View) -> str:
    """A sentence about figures of the view that are stored and undefined; empty if there are none."""
    said = {}
    for title, column in view.columns.items():
        chosen = column.chosen(records, view.rows) if not column.harmonic else records.iloc[:0]
        if len(chosen) and chosen["value"].isna().any():
            said[title] = str(chosen.loc[chosen["value"].isna(), "why"].iloc[0])
    named = few((f"{title} ({why})" for title, why in said.items()), between="; ")
    return f"Undefined for at least one method: {named}. " if named else ""


def gaps(records: pd.DataFrame, view: View) -> list[str]:
    """Sentences about the figures of a view that are not among the records, for the notes under its tables."""
    return _facets_without(records, view) if view.cells == "every" else _columns_without(records, view)


def _facets_without(records: pd.DataFrame, view: View) -> list[str]:
    found = set(records["facet"])
    missing = [facet for facet in facets() if facet not in found]
    if not missing:
        return []
    methods, concepts = list(dict.fromkeys(records["method_name"])), _plain(records["concepts"], "concepts")
    command = command_for(records, view, method=methods, concepts=concepts)
    return [f"No figure of {', '.join(missing)} is stored. To make them: {command}"]


def _columns_without(records: pd.DataFrame, view: View) -> list[str]:
    """Columns that no record fills, and methods that lack columns which others have."""
    by_column = {
        title: column.chosen(records, view.rows) for title, column in view.columns.items() if not column.harmonic
    }
    misspelt = {title: _misspelt(view, title, records) for title, chosen in by_column.items() if chosen.empty}
    empty = [title for title, sentence in misspelt.items() if not sentence]
    methods = list(dict.fromkeys(records["method_name"]))
    concepts = _plain(records["concepts"], "concepts")
    said = [sentence for sentence in misspelt.values() if sentence]
    if empty:
        kinds = {view.columns[title].kind for title in empty} - {None}
        held = {title for title in empty if view.columns[title].kind in set(records["kind"]) | {None}}
        same = held == set(empty)  # other columns need concepts of another kind
        enough = len({*methods} - {"none"}) >= FEWEST.get(view.cells, 0)
        others = ({"method": methods} if enough else {}) | ({"concepts": concepts} if same else {})
        command = command_for(records, view, **others)
        of_kind = f" (concepts of kind {', '.join(sorted(map(str, kinds)))})" if kinds and not same else ""
        said.append(f"Not stored: {_listed(empty)}{of_kind}. To make them: {command}")
    lacking: dict[str, list[str]] = {}
    for title, chosen in by_column.items():
        for method in set(methods) - {"none"} - set(chosen["method_name"]) if title not in misspelt else ():
            lacking.setdefault(method, []).append(title)
    groups: dict[tuple[str, ...], list[str]] = {}
    for method in methods:
        if method in lacking and view.rows == "method":
            groups.setdefault(tuple(lacking[method]), []).append(method)
    for titles, names in groups.items():
        command = command_for(records, view, method=names, concepts=concepts)
        said.append(f"Not stored for {', '.join(names)}: {_listed(titles)}. To make them: {command}")
    return said


def _misspelt(view: View, title: str, records: pd.DataFrame) -> str:
    """A sentence about the metric, attack or kind of a column that neither the records nor the configuration know."""
    column, sets = view.columns[title], [component("metrics", name) for name in components("metrics")]
    known = {
        "metric": {*records["metric"], *(name for one in sets for name in one.config.get("metrics") or {})},
        "attack": {*records["attack_name"], *components("attack")},
        "kind": {*records["kind"], *KINDS},
    }
    for what, names in known.items():
        given = getattr(column, what)
        if given is not None and not {given, given.partition(".")[0]} & names:  # a metric with parts: ``figure.part``
            said = f"Column {title} of view {view.name} shows the {what} {given!r}, which is unknown{nearest(given, names)}"
            return said if said.endswith("?") else f"{said}."
    return ""


def _listed(names: Iterable[str]) -> str:
    return few(f"‘{name}’" if "," in name else name for name in names)


def _plain(labels: pd.Series, group: str) -> list[str]:
    """The labels, if each is the name of an option of the group, so that a command can repeat them."""
    known: Mapping = components(group)
    found = list(dict.fromkeys(labels))
    return found if all(label in known for label in found) else []
