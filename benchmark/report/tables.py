"""Tables from records: the long form for programs, the six facets for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import yaml

from overpaint.errors import UserError, unknown
from overpaint.grid.registry import components
from overpaint.grid.scope import OUTSIDE
from overpaint.report.records import corrected
from overpaint.report.statistics import Estimate, mean_of_estimates
from overpaint.run.track import facets

FORMATS = ("terminal", "md", "csv", "json", "latex")
#: What figures of one block have in common: figures of two budgets, say, are neither compared nor averaged.
SETTINGS = ["protocol", "budget", "seed", "detector", "threshold"]


# --- the wide form ---------------------------------------------------------------------------------------------


def _several(records: pd.DataFrame) -> list[str]:
    """The settings that these records have more than one of."""
    return [name for name in SETTINGS if name in records and records[name].nunique() > 1]


def _under(settings: Iterable[str], values: Iterable) -> str:
    """``, budget lite, seed 1``: what tells a block from those of other settings, as far as it is known."""
    return "".join(f", {name} {value}" for name, value in zip(settings, values) if not pd.isna(value))


def blocks(records: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """One block a concept set, and a setting where there are several: rows are figures by facet, columns are methods."""
    several = _several(records)
    by = ["model", "concepts", "kind", *several]
    for (model, concepts, kind, *values), part in records.groupby(by, sort=False, dropna=False):
        methods = list(dict.fromkeys(part["method"]))
        rows = []
        for facet in facets():
            of_facet = part[part["facet"] == facet]
            for (attack, metric), figures in of_facet.groupby(["attack", "metric"], sort=False):
                first = figures.iloc[0]
                arrow = {"up": "↑", "down": "↓"}[first["direction"]]
                name = metric.replace("_", " ") + ("" if attack == "none" else f", {attack}")
                count = f" n={figures['n'].max()}" if figures["n"].max() else ""
                row = {"facet": facet, "figure": f"{name} {arrow}{count}"}
                by_method = {f["method"]: f for _, f in figures.iterrows()}
                row |= {m: cell_text(by_method[m]) if m in by_method else "" for m in methods}
                rows.append(row)
        if rows:
            title = f"{concepts} ({kind}) on {model}{_under(several, values)}"
            yield title, pd.DataFrame(rows, columns=["facet", "figure", *methods])


def cell_text(figure: pd.Series) -> str:
    """``0.04 [0.01, 0.12]``; ≈ where it is not distinguishable from what it is compared to; † where the attack goes round
    the defence; ≥ where it is only a lower bound; ⊥ where undefined; how many images failed, if any."""
    if pd.isna(figure["value"]):
        return "⊥" + _failures(figure["failed"])
    text = _bound(figure["why"]) + _ranged(figure["value"], figure["low"], figure["high"], figure["unit"])
    if figure["distinguishable"] is False:
        text += " ≈"
    text += _mark(figure["scope"])
    if not pd.isna(figure["control"]):
        text += f" (control {number(figure['control'], figure['unit'])})"
    return text + _failures(figure["failed"])


def number(value: float, unit: str) -> str:
    """A figure in its unit, as short as it can be read."""
    if unit == "bytes":
        for name in ("B", "kB", "MB"):
            if abs(value) < 1000:
                return f"{value:.3g} {name}"
            value /= 1000
        return f"{value:.3g} GB"
    if unit == "seconds":
        return f"{value:.3g} s"
    if unit == "dB":
        return f"{value:.1f} dB"
    return f"{round(value, 2) + 0.0:.2f}" if unit in ("fraction", "ratio") else f"{value:.3g}"  # no "-0.00"


def _ranged(value: float, low: float | None, high: float | None, unit: str) -> str:
    """``0.04 [0.01, 0.12]``, or the figure alone where it has no interval."""
    interval = "" if pd.isna(low) else f" [{number(low, unit)}, {number(high, unit)}]"
    return number(value, unit) + interval


def _mark(scope: str) -> str:
    return " †" if scope == OUTSIDE else ""


def _failures(failed: float) -> str:
    return f" ({failed:.0f} failed)" if failed > 0 else ""


def _bound(why: str | None) -> str:
    """A value that has a reason is only a lower bound."""
    return "≥ " if isinstance(why, str) and why else ""


LEGEND = (
    "Figures with 95 % intervals. ≈ not distinguishable (Holm-corrected over the table, 5 %) from the unedited model, "
    "or from the attack's control where one is given; for a mean over concepts: its interval holds no difference. "
    "⊥ undefined. ↑ higher is better, ↓ lower is better."
)
FOOTNOTES = {
    "†": f"† {OUTSIDE}: the attack comes in behind the place where the defence acts, and so is no test of it.",
    "≥": "≥ a lower bound: the most that was measured.",
}


def legend(shown: Iterable[tuple[str, pd.DataFrame]]) -> str:
    """What the marks in these blocks mean."""
    text = " ".join(str(text) for _, block in shown for text in block.to_numpy().ravel())
    return " ".join([LEGEND, *(said for mark, said in FOOTNOTES.items() if mark in text)])


def averaged(records: pd.DataFrame, view: Mapping) -> Iterable[tuple[str, pd.DataFrame]]:
    """One block a model, what else the view's blocks are for, and a setting where there are several; columns are those of
    the view, means over the concepts. A mean over fewer concepts than others of its column says over how many."""
    row, apart, several = view["rows"], view["blocks"], _several(records)
    for (model, *by), part in records.groupby(["model", *apart, *several], sort=False, dropna=False):
        method = [value for name, value in zip(apart, by) if name == "method"]
        values = by[len(apart) :]
        rows: dict[str, dict[str, str]] = {}
        titles = {}
        for title, column in view["columns"].items():
            chosen = part[_asked(part, column)]
            if row == "method":
                chosen = chosen[chosen["attack"] == column.get("attack", "none")]
            if "kind" in column:
                chosen = chosen[chosen["kind"] == column["kind"]]
            if chosen.empty:
                continue
            field, arrow = column.get("field", "value"), {"up": "↑", "down": "↓"}[chosen["direction"].iloc[0]]
            titles[title] = f"{title} {arrow}" if field == "value" else title
            most = chosen["concepts"].nunique()
            for name, figures in chosen.groupby(row, sort=False):
                text, count = _mean_text(figures, field), figures["concepts"].nunique()
                fewer = f" (over {count} of {most} concepts)" if text and count < most else ""
                rows.setdefault(name, {})[titles[title]] = text + fewer
        if rows:
            names = [name for name in dict.fromkeys(part[row]) if name in rows]
            table = pd.DataFrame([{row: name} | rows[name] for name in names], columns=[row, *titles.values()])
            concepts = list(dict.fromkeys(part["concepts"]))
            over = ("mean over " if len(concepts) > 1 else "") + ", ".join(concepts)
            yield f"{' on '.join([*method, model])}{_under(several, values)}: {over}", table.fillna("")


def _asked(records: pd.DataFrame, column: Mapping) -> pd.Series:
    """Which records are a column's metric, and compared to what it asks for."""
    of_metric = records["metric"] == column["metric"]
    return of_metric & (records["against"] == column["against"]) if "against" in column else of_metric


#: What a view's column shows of its records -> where they keep it, with its interval.
FIELDS = {
    "value": ("value", "low", "high"),
    "control": ("control",),
    "difference": ("difference", "difference_low", "difference_high"),
    "original": ("original",),
}


def _mean_text(figures: pd.DataFrame, field: str) -> str:
    estimates = [
        Estimate(*(None if pd.isna(v) else float(v) for v in found), n=int(n))
        for *found, n in figures[[*FIELDS[field], "n"]].itertuples(index=False)
    ]
    mean = mean_of_estimates(estimates)
    failed = _failures(figures["failed"].sum()) if field == "value" else ""
    if mean.value is None:
        return "" if field in ("control", "difference") else "⊥" + failed
    text = max(map(_bound, figures["why"])) if field == "value" else ""
    text += _ranged(mean.value, mean.low, mean.high, figures["unit"].iloc[0])
    if field == "difference" and _alike(figures["distinguishable"], mean):
        text += " ≈"
    return text + (max(map(_mark, figures["scope"])) if field in ("value", "difference") else "") + failed


def _alike(distinguishable: pd.Series, mean: Estimate) -> bool:
    """Is a mean difference none that can be told from 0? One tested figure says so itself, several by their mean's interval."""
    tested = [found for found in distinguishable if isinstance(found, bool)]
    if len(distinguishable) == 1 or mean.low is None:
        return bool(tested) and not any(tested)
    return bool(tested) and mean.low <= 0 <= mean.high


def viewed(records: pd.DataFrame, view: str) -> Iterable[tuple[str, pd.DataFrame]]:
    """The blocks of a view: ``facets`` (every figure, concept by concept) or one of ``conf/view``."""
    if view == "facets":
        return blocks(records)
    views = components("view")
    if view not in views:
        raise unknown("view", view, ["facets", *views])
    chosen = yaml.safe_load(views[view].read_text(encoding="utf-8"))
    shown = pd.Series(False, index=records.index)  # Holm's family are the comparisons that the view shows
    for column in chosen["columns"].values():
        if column.get("field") == "difference":
            shown |= _asked(records, column)
    return averaged(pd.concat([corrected(records[shown]), records[~shown]]), chosen)


def render(records: pd.DataFrame, form: str, view: str = "facets") -> str:
    """The table as text in one of `FORMATS` (``terminal`` is printed by `show`); csv and json are always the long form."""
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    found = list(viewed(records, view))
    if form == "csv":
        return records.to_csv(index=False)
    if form == "json":
        return records.to_json(orient="records", indent=1)
    _check_shown(records, found, view)
    parts = [(markdown if form == "md" else latex)(title, block) for title, block in found]
    return "\n\n".join([*parts, legend(found) if form == "md" else latex_text(legend(found))]) + "\n"


def _check_shown(records: pd.DataFrame, found: Sequence, view: str) -> None:
    """An empty table says why it is empty."""
    if records.empty:
        raise UserError("no records stored yet for this table: run it first (overpaint run …)")
    if not found:
        raise UserError(f"view {view} shows none of the {len(records)} figures stored for this table")


def markdown(title: str, block: pd.DataFrame) -> str:
    lines = [f"### {title}", "", _row(block.columns), _row(["---"] * len(block.columns))]
    lines += [_row(row) for row in _once(block)]
    return "\n".join(lines)


def _row(values: Iterable[str]) -> str:
    return "| " + " | ".join(str(v).replace("|", "\\|") for v in values) + " |"


def latex(title: str, block: pd.DataFrame) -> str:
    columns = "ll" + "r" * (len(block.columns) - 2)
    lines = [f"\\begin{{table}}\n\\caption{{{latex_text(title)}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule"]
    lines.append(" & ".join(map(latex_text, block.columns)) + r" \\ \midrule")
    lines += [" & ".join(map(latex_text, row)) + r" \\" for row in _once(block)]
    lines.append("\\bottomrule\n\\end{tabular}\n\\end{table}")
    return "\n".join(lines)


LATEX = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    | {"≈": r"$\approx$", "⊥": r"$\bot$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$\dagger$", "≥": r"$\geq$"}
)


def latex_text(text: str) -> str:
    return text.translate(LATEX)


def _once(block: pd.DataFrame) -> Iterable[Sequence[str]]:
    """Rows with the facet named only where it changes."""
    last = None
    for row in block.itertuples(index=False):
        yield ["" if row[0] == last else row[0], *row[1:]]
        last = row[0]


def show(records: pd.DataFrame, view: str = "facets") -> None:
    """Print a view to the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    found = list(viewed(records, view))
    _check_shown(records, found, view)
    for title, block in found:
        table = Table(title=title, title_style="bold", title_justify="left", expand=False, pad_edge=False)
        for index, name in enumerate(block.columns):
            table.add_column(name, style="bold" if index == 0 else None, no_wrap=index > 0)
        last = None
        for row in _once(block):
            if row[0] and last is not None:
                table.add_section()
            table.add_row(*map(str, row))
            last = row[0]
        console.print(table)
    console.print(legend(found), highlight=False, style="dim")
