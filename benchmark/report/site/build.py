"""Writes the site: every page, the pictures of the documents, the style, the script and the index of the search."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from overpaint.report.site import concepts, leaderboard, made, methods, printed
from overpaint.report.site.documents import Document, Section, checkout, relative
from overpaint.report.site.pages import Content, Page
from overpaint.report.site.printed import Ledger

#: Navigation: title -> page.
NAVIGATION = {
    "Leaderboard": "index.html",
    "Methods": "methods/index.html",
    "Concepts": "concepts/index.html",
    "Published": "published/index.html",
    "Guides": "docs/index.html",
    "How it was made": "made.html",
}
ASSETS = Path(__file__).parent / "assets"
#: Tells a folder of this command from others, so that it may be replaced.
MARK = "overpaint-site.json"
#: Longest text of a section in the search.
LONGEST = 4000


def pages_of(content: Content, origin: str) -> Iterator[Page]:
    """Every page of the site."""
    ledger = Ledger(content)
    yield from leaderboard.pages(content)
    yield from methods.pages(content, ledger.by_method(content))
    yield from concepts.pages(content)
    yield from printed.pages(content, ledger)
    yield from made.pages(content, origin)
    yield from _guides(content)
    yield Page("search.html", "search.html", "Search", {})


def _guides(content: Content) -> Iterator[Page]:
    """The guides and cards that are not the card of a method's page."""
    own = {method.page for method in content.methods}
    listed = [document for document in content.documents if document.page not in own]
    groups: dict[str, list[Document]] = {}
    for document in listed:
        folder = Path(document.source).parent.name
        group = {"attacks": "Attacks", "design": "Design notes", "methods": "Methods"}.get(folder, "Guides")
        groups.setdefault(group, []).append(document)
    ordered = {name: groups[name] for name in ("Guides", "Attacks", "Methods", "Design notes") if name in groups}
    yield Page("docs/index.html", "guides.html", "Guides", {"groups": ordered})
    for document in listed:
        yield Page(document.page, "document.html", document.title, {"document": document}, document.sections)


def write(folder: Path, content: Content, origin: str) -> list[str]:
    """Write all pages into an existing folder, and return their paths. Pictures of ``content`` are there already."""
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["navigation"] = NAVIGATION
    written, sections = [], list[Section]()
    for page in pages_of(content, origin):
        path = folder / page.path
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {
            **page.values,
            "title": page.title,
            "path": page.path,
            "content": content,
            "to": lambda target, here=page.path: relative(target, here),
        }
        path.write_text(environment.get_template(page.template).render(values), encoding="utf-8")
        written.append(page.path)
        sections += page.sections
    root = checkout()
    for document in content.documents:
        for source, target in document.pictures.items():
            assert root
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / source, folder / target)
    for asset in sorted(ASSETS.iterdir()):
        shutil.copyfile(asset, folder / asset.name)
    (folder / "search-index.js").write_text(_index(sections), encoding="utf-8")
    (folder / MARK).write_text(json.dumps({"pages": written, "from": origin}, indent=1) + "\n", encoding="utf-8")
    return written


def _index(sections: list[Section]) -> str:
    """The sections of all pages as a script, because a page that is opened from disk may not read other files."""
    rows = [[s.page + (f"#{s.anchor}" if s.anchor else ""), s.title, s.text[:LONGEST]] for s in sections]
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return f"const SECTIONS = {text};\n"
