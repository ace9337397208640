"""Reads the pages of a site that `overpaint site` wrote."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote

#: Elements without an end.
VOID = {"meta", "link", "img", "input", "br", "hr", "line", "circle", "rect", "path", "polyline"}


class Element:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent, self.children = tag, attributes, parent, []

    def all(self, *tags):
        """The elements below this one, in the order of the page."""
        for child in self.children:
            if isinstance(child, Element):
                if not tags or child.tag in tags:
                    yield child
                yield from child.all(*tags)

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    def of_class(self, name):
        return next((e for e in self.all() if name in e.classes), None)

    @property
    def text(self):
        return "".join(c if isinstance(c, str) else c.text for c in self.children)


class Tree(HTMLParser):
    """A page as elements; every element that opens must close."""

    def __init__(self, text):
        super().__init__()
        self.root = self.open = Element("", {}, None)
        self.feed(text)
        assert self.open is self.root, f"<{self.open.tag}> is not closed"

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), self.open)
        self.open.children.append(element)
        if tag not in VOID:
            self.open = element

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.tag == tag, f"</{tag}> closes <{self.open.tag}>"
            self.open = self.open.parent

    def handle_data(self, data):
        self.open.children.append(data)


class Site:
    def __init__(self, folder):
        self.folder = folder
        self.pages = {
            path.relative_to(folder).as_posix(): Tree(path.read_text(encoding="utf-8")).root
            for path in sorted(folder.rglob("*.html"))
        }

    def files(self):
        return {p.relative_to(self.folder).as_posix(): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}

    def broken_links(self):
        """Addresses below the site that lead to no page, file or anchor, each with its page."""
        broken, anchors = [], {page: ids(root) for page, root in self.pages.items()}
        for page, root in self.pages.items():
            for element in root.all():
                for name in ("href", "src", "data-clear", "action"):
                    given = element.attributes.get(name)
                    if not given or re.match(r"(https?|data|mailto):", given):
                        continue
                    path, _, anchor = given.partition("#")
                    target = (self.folder / page).parent / unquote(path) if path else self.folder / page
                    known = target.resolve().relative_to(self.folder.resolve()).as_posix() if target.is_file() else ""
                    filters = known.startswith("published/")  # an anchor filters its table
                    if not known or (anchor and not filters and unquote(anchor) not in anchors[known]):
                        broken.append(f"{page}: {given}")
        return broken


def ids(root):
    return {e.attributes["id"] for e in root.all() if "id" in e.attributes}
