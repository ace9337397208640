"""Guides and cards: Markdown as HTML whose links lead to pages of the site, and the index of the search."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from markdown_it import MarkdownIt
from markdown_it.token import Token

from overpaint.grid.shipped import shipped

#: Comments in pages, such as the marks around written numbers.
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
#: Pages outside `docs/`: path in the checkout -> path on the site.
OTHERS = {"leaderboards/README.md": "docs/leaderboards.html", "datasets/testbed/README.md": "docs/testbed.html"}


@dataclass(frozen=True)
class Section:
    """A part of a page for the search: its page, anchor, heading and text."""

    page: str
    anchor: str
    title: str
    text: str


@dataclass(frozen=True)
class Document:
    """A page of the documentation.

    Attributes:
        source: its path in the checkout, such as ``docs/methods/uce.md``.
        page: its path on the site.
        html: its text; links are relative to ``page``.
        pictures: path in the checkout -> path on the site of every picture that it shows.
    """

    source: str
    page: str
    title: str
    html: str
    sections: tuple[Section, ...]
    pictures: Mapping[str, str]

    @property
    def nested(self) -> str:
        """The text inside of another page: headings are two levels lower."""
        return re.sub(r"(</?h)([1-4])\b", lambda match: f"{match[1]}{int(match[2]) + 2}", self.html)


def checkout() -> Path | None:
    """The checkout with the documentation; ``None`` in an installed wheel, which has none."""
    root = shipped("conf").parent
    return root if (root / "docs" / "methods").is_dir() else None


def documents() -> list[Document]:
    """All guides and cards of the checkout."""
    root = checkout()
    if root is None:
        return []
    sources = [path.relative_to(root).as_posix() for path in sorted((root / "docs").rglob("*.md"))]
    sources += [name for name in OTHERS if (root / name).is_file()]
    pages = {source: _page(source) for source in sources}
    return [document(root, source, pages) for source in sources]


def _page(source: str) -> str:
    """The path on the site: cards of methods are next to the figures of the method."""
    if source in OTHERS:
        return OTHERS[source]
    path = PurePosixPath(source).with_suffix(".html")
    return str(path.relative_to("docs")) if path.parts[1] == "methods" else str(path)


def document(root: Path, source: str, pages: Mapping[str, str]) -> Document:
    """One Markdown file. ``pages`` maps the files that are pages of the site to their places."""
    text = COMMENT.sub("", (root / source).read_text(encoding="utf-8"))
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens, page = parser.parse(text), pages[source]
    pictures: dict[str, str] = {}
    sections = list(_sections(tokens, page))
    for token in tokens:
        for child in token.children or ():
            _relink(child, token.children or [], root, source, pages, pictures)
    html = parser.renderer.render(tokens, parser.options, {})
    for number in range(html.count("<table>")):  # a wide table scrolls on its own, also by keyboard
        label = f"table {number + 1}"
        html = html.replace("<table>", f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table >', 1)
    html = (
        html.replace("<table >", "<table>").replace("</table>", "</table></div>").replace("<pre>", '<pre tabindex="0">')
    )
    title = sections[0].title if sections else PurePosixPath(source).stem
    return Document(source, page, title, html, tuple(sections), pictures)


def _sections(tokens: list[Token], page: str) -> Iterator[Section]:
    """The sections of a page. Headings get anchors as on GitHub."""
    taken: dict[str, int] = {}
    anchor, title = "", ""
    text: list[str] = []
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            if title or text:
                yield Section(page, anchor, title, " ".join(text))
            title, text = _plain(tokens[place + 1]), []
            anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            count = taken.get(anchor, 0)
            taken[anchor] = count + 1
            anchor = f"{anchor}-{count}" if count else anchor
            token.attrSet("id", anchor)
        elif token.type == "inline" and tokens[place - 1].type != "heading_open":
            text.append(_plain(token))
        elif token.type in ("fence", "code_block"):
            text.append(token.content)
    if title or text:
        yield Section(page, anchor, title, " ".join(text))


def _plain(token: Token) -> str:
    return " ".join("".join(child.content or " " for child in token.children or ()).split())


def _relink(
    token: Token, siblings: list[Token], root: Path, source: str, pages: Mapping[str, str], pictures: dict[str, str]
) -> None:
    """Point a link or a picture to the site. A link to a file that is not on the site becomes plain text."""
    name = {"link_open": "href", "image": "src"}.get(token.type)
    if name is None:
        return
    given = str(token.attrGet(name) or "")
    if re.match(r"[a-z]+:|#", given):
        if token.type == "image":  # nothing is loaded from elsewhere
            token.type, token.tag, token.nesting, token.content = "text", "", 0, _plain(token)
        return
    path, _, anchor = given.partition("#")
    wanted = os.path.normpath(f"{PurePosixPath(source).parent}/{path}")
    page = pages[source]
    if token.type == "image" and (root / wanted).is_file():
        pictures[wanted] = f"images/{PurePosixPath(wanted).name}"
        token.attrSet("src", relative(pictures[wanted], page))
        token.attrSet("loading", "lazy")
    elif token.type == "link_open" and wanted in pages:
        token.attrSet("href", relative(pages[wanted], page) + (f"#{anchor}" if anchor else ""))
    elif token.type == "link_open":
        _unlink(token, siblings)


def _unlink(token: Token, siblings: list[Token]) -> None:
    """Turn a link into a span that holds the same text."""
    depth = 0
    for other in siblings[next(i for i, t in enumerate(siblings) if t is token) :]:
        depth += other.nesting if other.type in ("link_open", "link_close") else 0
        if depth == 0:
            other.tag, other.attrs = "span", {}
            break
    token.tag, token.attrs = "span", {}


def relative(target: str, page: str) -> str:
    """The link from one page to another path on the site."""
    return PurePosixPath(os.path.relpath(target, PurePosixPath(page).parent)).as_posix()
