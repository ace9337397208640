"""The ledger as tables of text: an overview, figures side by side, disagreements, and agreement of orders."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from overpaint.report.directions import ARROWS
from overpaint.report.figure_text import interval, number
from overpaint.report.ledger.agreement import AGREE, DISAGREE, EQUAL, QUANTITY, RELATIVE, SAMPLING, TOLERANCE
from overpaint.report.ledger.measured import AGREES, DIFFERS, NOT_COMPARABLE, SHOWN
from overpaint.report.records import number_of
from overpaint.report.sheets import Sheet

DOUBTED = "? doubtful: it contradicts its own paper."
LEGEND = (
    "Shares are fractions. (n): number of images, if stated. ≠ another paper prints a figure that differs by more than the "
    f"tolerance. {DOUBTED} ↑ higher is better for the eraser, ↓ lower is better."
)
RULE = (
    "Two papers disagree if the figures of one method, base, concept, attack and metric differ by more than "
    f"{TOLERANCE['fraction']:.2f} (shares), {TOLERANCE['100 cos']:.0f} (100 cos) or {100 * RELATIVE:.0f} % of the larger "
    "figure (all others), and, for shares with a stated number of images on both sides, the 95 % interval of their difference "
    "excludes 0. Equal figures are counted apart: one paper may quote the other."
)
NOTED = "° read in someone else's note, not in the paper."
TAU = (
    "τ: Kendall's tau-b of the methods that both sides print, 1 the same order, −1 the reverse; 95 % interval from resampled "
    "methods, from 5 methods on, none where all resamples agree; p: test of no association, exact without ties. Both take "
    "the figures as exact. Equal: shared methods with equal figures, which may be quoted."
)
OURS = "A record of ours can be of other concepts than the paper's; the column names them."


def overview(found: pd.DataFrame, compared: pd.DataFrame, ordered: pd.DataFrame) -> Iterator[Sheet]:
    """Papers, what they disagree about, and the orders of methods under UnlearnDiffAtk and on I2P."""
    apart = compared[compared["verdict"] == DISAGREE]
    rows = [
        [
            paper,
            part["arxiv"].iloc[0],
            str(len(part)),
            str(part["method"].nunique()),
            _provenance(part),
            *_counts(paper, compared),
        ]
        for paper, part in found.groupby("paper")
    ]
    title = f"{len(found):,} published figures of {found['paper'].nunique()} papers, {len(apart)} disagreements between papers"
    heads = ["paper", "arXiv", "figures", "methods", "read in", "compared", "disagreements"]
    yield Sheet(title, heads, rows, notes=[RULE, records_said(found)])
    yield by_quantity(compared)
    for erased, prompts, attack in (("nudity", "", "uda"), ("nudity", "I2P", "")):
        fits = (ordered["erased"] == erased) & (ordered["prompts"] == prompts) & (ordered["attack"] == attack)
        yield order_sheet(ordered[fits], f"Orders of methods: {erased}{_where(prompts, attack)}")


def records_said(found: pd.DataFrame) -> str:
    """How many published figures have a record beside them, and the verdicts."""
    verdicts = found["verdict"].value_counts()
    if verdicts.empty:
        return "No stored record measures one of these methods, metrics and attacks."
    counts = ", ".join(f"{verdicts.get(name, 'none')} {name}" for name in (AGREES, DIFFERS, NOT_COMPARABLE))
    return f"Records: {verdicts.sum()} figures have a record of their method, metric and attack: {counts}."


def _provenance(part: pd.DataFrame) -> str:
    return ", ".join(f"{name} {count}" for name, count in part["provenance"].value_counts().items())


def _counts(paper: object, compared: pd.DataFrame) -> list[str]:
    own = compared[(compared["paper"] == paper) | (compared["other_paper"] == paper)]
    return [str(len(own)), str((own["verdict"] == DISAGREE).sum())]


def names_sheet(listed: pd.DataFrame) -> Sheet:
    """The names that filters take."""
    rows = [[str(cell) for cell in row] for row in listed.itertuples(index=False, name=None)]
    note = "A name selects all that are printed for it; a printed name selects only itself. attack=none: without an attack."
    return Sheet("Names in the ledger", list(listed.columns), rows, 2, [note])


def by_quantity(compared: pd.DataFrame) -> Sheet:
    """How many pairs of figures agree, by what was measured."""
    rows = []
    for place, part in compared.groupby(["erased", "metric", "prompts", "attack"]):
        erased, metric, prompts, attack = map(str, place)
        counts = part["verdict"].value_counts()
        verdicts = [str(counts.get(verdict, 0)) for verdict in (EQUAL, AGREE, SAMPLING, DISAGREE)]
        silent = ((part["verdict"] == DISAGREE) & (part["differs_in"] == "")).sum()
        rows.append([f"{metric}{_where(prompts, attack)}", erased, str(len(part)), *verdicts, str(silent)])
    rows.sort(key=lambda row: int(row[6]), reverse=True)
    heads = ["quantity", "erased", "pairs", EQUAL, AGREE, SAMPLING, DISAGREE, "with nothing recorded that differs"]
    note = "The last column: n, detector and notes are recorded alike, or not stated by either."
    return Sheet("Pairs of papers by quantity", heads, rows, 2, [note])


def _where(prompts: str, attack: str) -> str:
    return (f" under {attack}" if attack else "") + (f" on {prompts}" if prompts else "")


def side_by_side(found: pd.DataFrame, compared: pd.DataFrame) -> Iterator[Sheet]:
    """A row per erased concept, base, quantity and method, a column per paper, then our record and the verdict.

    Concepts that the same papers measured share a table.
    """
    apart = _disagreeing(compared)
    blocks: dict[tuple, list[tuple]] = {}
    for place, part in found.groupby(["concept", "base"], sort=False):
        blocks.setdefault(tuple(sorted(part["paper"].unique())), []).append((place, part))
    for papers, parts in sorted(blocks.items(), key=lambda block: -len(block[0])):
        together = pd.concat([part for _, part in parts])
        ours = "ours" in together and together["ours"].notna().any()
        rows = [row for place, part in parts for row in _rows(place, part, papers, apart, ours)]
        own = ["ours", "verdict"] if ours else []
        heads = ["erased (base)", "quantity", "method", *papers, *own]
        yield Sheet(f"Figures of {', '.join(papers)}", heads, rows, 3, limits(together))


def limits(found: pd.DataFrame) -> list[str]:
    """What limits these figures: the notes of their tables, and why figures are doubtful."""
    listed = found.drop_duplicates(["paper", "table"])
    tables = [f"{f['paper']}, {f['table']}: {f['table_note']}" for f in listed.to_dict("records") if f["table_note"]]
    doubtful = [
        f"? {f['paper']}, {f['table']}, {f['method']}, {f['erased']}, {f['metric']}: {f['note'].removeprefix('doubtful: ')}"
        for f in found.to_dict("records")
        if f["note"].startswith("doubtful")
    ]
    return [*tables, *doubtful]


def _rows(
    place: tuple, part: pd.DataFrame, papers: Sequence[str], apart: set[tuple], ours: bool
) -> Iterator[list[str]]:
    """The rows of one erased concept and base: quantities that most papers print first, the unedited model first."""
    quantities = list(part.groupby([*QUANTITY[2:], "better"], sort=False))
    for quantity, figures in sorted(quantities, key=lambda pair: -pair[1]["paper"].nunique()):
        prompts, attack, metric, scale, better = map(str, quantity)
        head = f"{metric} {ARROWS[better]}{_where(prompts, attack)}{_unit(scale)}"
        for method in sorted(figures["method"].unique(), key=lambda name: (name != "original", name.casefold())):
            listed = figures[figures["method"] == method].to_dict("records")
            cells = [_cell([f for f in listed if f["paper"] == paper], apart) for paper in papers]
            yield [f"{place[0]} ({place[1]})", head, method, *cells, *(_ours(listed) if ours else [])]


#: What identifies a figure in `overpaint.report.ledger.agreement.pairs`.
_SIDE = ["paper", "table", "method", "base", "prompts", "attack", "metric"]


def _disagreeing(compared: pd.DataFrame) -> set[tuple]:
    """The figures with which another paper disagrees."""
    apart = compared[compared["verdict"] == DISAGREE]
    turned = apart.assign(paper=apart["other_paper"], table=apart["other_table"])
    return {(*row,) for side in (apart, turned) for row in side[[*_SIDE, "erased"]].itertuples(index=False, name=None)}


def disagrees(found: pd.DataFrame, compared: pd.DataFrame) -> pd.Series:
    """Whether another paper disagrees with each published figure."""
    apart = _disagreeing(compared)
    return pd.Series([_identity(f) in apart for f in found.to_dict("records")], index=found.index, dtype=bool)


def _identity(f: Mapping[Hashable, Any]) -> tuple:
    return (*(f[n] for n in ("paper", "table", "method", "base", "prompts", "attack_name", "metric_name", "erased")),)


def _cell(figures: Sequence[Mapping[Hashable, Any]], apart: set[tuple]) -> str:
    """The figures of one paper, those of several tables after a slash: ``0.761 ≠ (142)``."""
    return " / ".join(dict.fromkeys(_figure(f, apart) for f in figures))


def _figure(f: Mapping[Hashable, Any], apart: set[tuple]) -> str:
    differs = " ≠" if _identity(f) in apart else ""
    n = "" if pd.isna(f["images"]) else f" ({f['images']:.0f})"
    return f"{printed_text(f)}{differs}{n}"


def printed_text(f: Mapping[Hashable, Any]) -> str:
    """A published figure as text, with ° if it was read in someone else's note and ? if it is doubtful."""
    marks = ("°" if f["provenance"] == "secondary" else "") + ("?" if f["note"].startswith("doubtful") else "")
    return f"{value_text(f['scaled'], f['scale'])}{marks}"


def record_text(f: Mapping[Hashable, Any]) -> str:
    """The record beside a published figure as text: ``0.04 [0.01, 0.12] esd train=x, uda, sd14, church, paper``."""
    text = number(f["ours"], f["scale"])
    text += interval(number_of(f["ours_low"]), number_of(f["ours_high"]), f["scale"])
    labels = (str(f[f"ours_{name}"]) for name in ("method", "attack", "model", "concepts", "budget"))
    return f"{text} {', '.join(label for label in labels if label != 'none')}"


def value_text(value: float, scale: str) -> str:
    """A figure as text, with up to four significant digits."""
    return number(value, scale) if scale in ("bytes", "seconds", "dB") else f"{value:.4g}"


def _unit(scale: str) -> str:
    return "" if scale in ("fraction", "distance", "seconds", "bytes", "dB", "detections", "images") else f", {scale}"


#: What identifies our record beside a published figure.
_RECORD = ["ours", *(f"ours_{name}" for name in SHOWN[1:])]


def _ours(listed: Sequence[Mapping[Hashable, Any]]) -> list[str]:
    """Our figure beside those of one row, and its verdicts. Several records stand behind the names of their papers."""
    known = [f for f in listed if not pd.isna(f["ours"])]
    if not known:
        return ["", ""]
    papers = [f["paper"] for f in known]
    names = [f["paper"] if papers.count(f["paper"]) == 1 else f"{f['paper']}, {f['table']}" for f in known]
    nearest: dict[tuple, tuple[str, list[str]]] = {}
    said = []
    for name, f in zip(names, known, strict=True):
        record = tuple(str(f[column]) for column in _RECORD)
        nearest.setdefault(record, (record_text(f), []))[1].append(name)
        reasons = f": {f['reasons']}" if f["verdict"] == NOT_COMPARABLE else ""
        sign = f"; {f['sign']} sign" if f["sign"] else ""
        said.append(f"{f['verdict']}{reasons}{sign}")
    verdicts = list(dict.fromkeys(said))
    if len(verdicts) > 1:
        verdicts = [f"{name}: {text}" for name, text in zip(names, said, strict=True)]
    if len(nearest) == 1:
        return [record_text(known[0]), " | ".join(verdicts)]
    records = [f"{', '.join(dict.fromkeys(of))}: {text}" for text, of in nearest.values()]
    return [" | ".join(records), " | ".join(dict.fromkeys(verdicts))]


def disagreement_sheet(shown: pd.DataFrame, total: int) -> Sheet:
    """Disagreements between papers; ``total`` is the number of all of them."""
    rows = []
    for p in shown.to_dict("records"):
        quantity = f"{p['metric']} {ARROWS[p['better']]}{_where(p['prompts'], p['attack'])}{_unit(p['scale'])}"
        sides = [_side(p, ""), _side(p, "other_")]
        cells = [text for side in sides for text in side]
        rows.append([p["method"], quantity, f"{p['erased']}, {p['base']}", *cells, p["differs_in"] or "nothing"])
    title = f"{total} disagreements between papers" + (f": {len(shown)} of the largest" if len(shown) < total else "")
    heads = "method|quantity|erased, base|paper|figure|other paper|its figure|recorded differences".split("|")
    return Sheet(title, heads, rows, 1, [RULE, NOTED] if "°" in str(rows) else [RULE])


def _side(p: Mapping[Hashable, Any], prefix: str) -> list[str]:
    mark = "°" if p[f"{prefix}provenance"] == "secondary" else ""
    return [p[f"{prefix}paper"], f"{value_text(p[f'{prefix}value'], p['scale'])}{mark}"]


def order_sheet(ordered: pd.DataFrame, title: str) -> Sheet:
    """Kendall's tau of pairs of papers, or of papers and our records."""
    rows = []
    for o in ordered.to_dict("records"):
        sides = [_source(o, ""), _source(o, "other_")]
        interval = "" if pd.isna(o["low"]) else f" [{_tau(o['low'])}, {_tau(o['high'])}]"
        quantity = f"{o['measure']}{_where(o['prompts'], o['attack'])}"
        rows.append(
            [
                quantity,
                o["erased"],
                *sides,
                str(o["methods"]),
                str(o["equal"]),
                f"{_tau(o['tau'])}{interval}",
                f"{o['p_value']:.3f}",
            ]
        )
    heads = ["quantity", "erased", "one side", "other side", "methods", "equal", "τ", "p"]
    ours = bool(len(ordered)) and ordered["other_paper"].iloc[0] == "overpaint"
    return Sheet(title, heads, rows, 2, [TAU, OURS] if ours else [TAU])


def _source(o: Mapping[Hashable, Any], prefix: str) -> str:
    return f"{o[f'{prefix}paper']}, {o[f'{prefix}table']} ({o[f'{prefix}base']})"


def _tau(value: float) -> str:
    return number(value, "correlation").replace("-", "−")
