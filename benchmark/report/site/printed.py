"""Published against measured: what papers print, where they disagree, and whether our orders of methods are theirs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from overpaint.report.directions import ARROWS
from overpaint.report.ledger import sheets
from overpaint.report.ledger.agreement import DISAGREE, disagreements, orders, pairs
from overpaint.report.ledger.measured import beside, orders_with_ours
from overpaint.report.ledger.published import names, published
from overpaint.report.site.documents import Section
from overpaint.report.site.pages import Content, Page
from overpaint.report.site.plots import taus

HEADS = "paper|table|method|erased|base|prompts|attack|metric|printed|n|our nearest record|verdict".split("|")


class Ledger:
    """The published figures beside the records of all results."""

    def __init__(self, content: Content) -> None:
        self.everything, self.known = published(), names()
        frames = [results.records for results in content.results]
        self.records = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        self.pairs = pairs(self.everything)
        self.beside = beside(self.everything, self.records, self.known)

    def by_method(self, content: Content) -> dict[str, Printed]:
        """What papers print of each method, by its name in this project."""
        return {
            str(name): Printed(
                [row(f) for f in part[part["ours"].notna()].to_dict("records")],
                [
                    (f"{paper}: {method}", f"{page_of(content, str(paper))}#{urlencode({'method': method})}", len(own))
                    for (paper, method), own in part.groupby(["paper", "method"], sort=False)
                ],
            )
            for name, part in self.beside.groupby("method_name")
        }


@dataclass(frozen=True)
class Printed:
    """Published figures of a method: those beside a record, as rows of text, and links to all with their numbers."""

    rows: Sequence[Sequence[str]]
    links: Sequence[tuple[str, str, int]]

    @property
    def notes(self) -> list[str]:
        return signs_of(self.rows)


def signs_of(rows: Sequence[Sequence[str]]) -> list[str]:
    """What the signs ° and ? of printed figures mean, where they occur."""
    printed = [row[HEADS.index("printed")] for row in rows]
    return [
        said for sign, said in (("°", sheets.NOTED), ("?", sheets.DOUBTED)) if any(sign in text for text in printed)
    ]


def page_of(content: Content, paper: str) -> str:
    """The path of a paper's page. ``#method=NAME`` after it filters its table."""
    return f"published/{content.slugs.of(paper)}.html"


def row(f: Mapping[Hashable, Any]) -> list[str]:
    """A published figure with the nearest record and the verdict, as text in the order of `HEADS`."""
    ours, verdict = "", ""
    if not pd.isna(f["ours"]):
        ours = sheets.record_text(f)
        verdict = f["verdict"] + (f": {f['reasons']}" if f["reasons"] else "")
        verdict += f"; {f['sign']} sign" if f["sign"] else ""
    n = "" if pd.isna(f["images"]) else f"{f['images']:.0f}"
    metric = f"{f['metric']} {ARROWS[f['better']]}"
    return [
        *(str(f[name]) for name in ("paper", "table", "method", "erased", "base", "prompts", "attack")),
        *(metric, sheets.printed_text(f), n, ours, verdict),
    ]


def pages(content: Content, ledger: Ledger) -> Iterator[Page]:
    """The overview, and a page per paper."""
    papers = {str(paper): (page_of(content, str(paper)), part) for paper, part in ledger.beside.groupby("paper")}
    ours = orders_with_ours(ledger.everything, ledger.records, ledger.known) if len(ledger.records) else pd.DataFrame()
    apart = disagreements(ledger.pairs)
    counts = ledger.pairs["verdict"].value_counts()
    values = {
        "papers": [(name, page, part["arxiv"].iloc[0], len(part)) for name, (page, part) in papers.items()],
        "total": len(ledger.everything),
        "said": sheets.records_said(ledger.beside),
        "taus": taus(ours.to_dict("records")) if len(ours) else [],
        "orders": [
            *([sheets.order_sheet(ours, "Orders of methods: papers against these records")] if len(ours) else []),
            sheets.order_sheet(orders(ledger.everything, ledger.known), "Orders of methods: papers against papers"),
        ],
        "disagreements": sheets.disagreement_sheet(apart, counts.get(DISAGREE, 0)),
        "signs": _signs(ledger.beside),
        "heads": HEADS,
        "rules": [sheets.RULE, sheets.NOTED],
    }
    yield Page("published/index.html", "published.html", "Published and measured", values)
    for name, (page, part) in papers.items():
        rows = [row(f) for f in part.to_dict("records")]
        notes = [*signs_of(rows), *sheets.limits(part)]
        about = Section(page, "", name, f"published figures {' '.join(part['method'].unique())}")
        yield Page(
            page,
            "paper.html",
            name,
            {"heads": HEADS, "rows": rows, "notes": notes, "arxiv": part["arxiv"].iloc[0]},
            [about],
        )


def _signs(found: pd.DataFrame) -> Sequence[tuple[str, int]]:
    """How many differences to the unedited model have the sign of ours."""
    counts = found["sign"].value_counts()
    return [(name, int(counts.get(name, 0))) for name in ("same", "opposite", "open")]
