"""Concepts: what is to be forgotten or kept, and the catalogue that knows their synonyms and translations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path

import yaml

from overpaint.errors import UserError, unknown
from overpaint.grid.shipped import shipped

KINDS = ("object", "style", "person", "character", "unsafe", "mark")


@dataclass(frozen=True)
class Concept:
    """One concept. ``anchor`` is what to paint instead (``None``: the method's own default); ``label`` is what
    the detector calls it (``None``: nobody can see it); ``translations`` maps a language code to words."""

    name: str
    kind: str = "object"
    anchor: str | None = None
    label: str | None = None
    article: str = ""
    synonyms: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    translations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    neighbours: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.name.strip():
            raise UserError("a concept needs a name, got an empty string")
        if self.kind not in KINDS:
            raise unknown("concept kind", self.kind, KINDS, f"concept {self.name!r}")

    @property
    def phrase(self) -> str:
        """The name with its article, as a template takes it: ``"a church"``, ``"mira"``."""
        return f"{self.article} {self.name}".strip()


def _read(concept: Concept) -> str:
    """The name as tokenizers of the CLIP kind read it: capitals and spaces around it make no other text."""
    return concept.name.strip().lower()


@dataclass(frozen=True)
class Request:
    """What an eraser is asked for: concepts to erase (each with its anchor) and concepts to retain."""

    erase: tuple[Concept, ...]
    retain: tuple[Concept, ...] = ()

    def __post_init__(self):
        if not self.erase:
            raise UserError("nothing to erase: give at least one concept in concepts.erase")
        names = [_read(c) for c in self.erase]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise UserError(f"{', '.join(twice)} cannot be erased twice in one request")
        both = set(names) & set(map(_read, self.retain))
        if both:
            raise UserError(f"{', '.join(sorted(both))} cannot be erased and retained in one request")

    def anchors(self, default: str) -> list[str]:
        """The anchor text of each concept to erase; ``default`` where a concept names none."""
        return [default if c.anchor is None else c.anchor for c in self.erase]

    def singly(self) -> list[Request]:
        """One request for each concept to erase, in order; the concepts to retain are the same in all."""
        return [Request((concept,), self.retain) for concept in self.erase]

    @classmethod
    def of(cls, erase, anchor=None, retain=(), kind: str = "object") -> Request:
        """From plain names, as the Python API takes them. One anchor serves all; a list gives one each."""
        erase, retain = _listed(erase, "erase"), _listed(retain, "retain")
        if not isinstance(anchor, list | tuple):
            anchor = [anchor]
        if not all(a is None or isinstance(a, str) for a in anchor):
            raise UserError(f"anchor takes a text, or a list of one each, got {anchor!r}")
        anchors = list(anchor)
        if len(anchors) == 1:
            anchors *= len(erase)
        if len(anchors) != len(erase):
            raise UserError(f"{len(erase)} concepts to erase but {len(anchors)} anchors: give one, or one each")
        chosen = [c if isinstance(c, Concept) else Concept(c, kind=kind) for c in erase]
        chosen = [c if a is None else replace(c, anchor=a) for c, a in zip(chosen, anchors)]
        return cls(tuple(chosen), tuple(c if isinstance(c, Concept) else Concept(c, kind=kind) for c in retain))


def _listed(names, where: str) -> list:
    if names is None:
        return []
    names = [names] if isinstance(names, str | Concept) else names
    names = list(names) if isinstance(names, Iterable) else [names]
    if not all(isinstance(n, str | Concept) for n in names):
        raise UserError(f"{where} takes a list of concept names, got {names!r}")
    return names


@dataclass(frozen=True)
class Catalogue:
    """The concepts of one world and the sentences that show them, read from ``datasets/concepts/<name>.yaml``."""

    concepts: Mapping[str, Concept] = field(default_factory=dict)
    templates: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    implicit: tuple[str, ...] = ()
    utility: tuple[Mapping, ...] = ()
    unseen: Mapping[str, Concept] = field(default_factory=dict)

    def concept(self, name: str) -> Concept:
        """The named concept; a name the catalogue does not hold is a bare object without detector label."""
        return self.concepts.get(name) or Concept(name)

    def of_kind(self, *kinds: str) -> list[Concept]:
        return [c for c in self.concepts.values() if c.kind in kinds]


@cache
def load_catalogue(name: str | None) -> Catalogue:
    """Read a catalogue by name (shipped) or path. ``None`` gives the empty one."""
    if not name:
        return Catalogue()
    folder = shipped("datasets") / "concepts"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        raise unknown("concept catalogue", name, (p.stem for p in folder.glob("*.yaml")))
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"concept catalogue {name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("concepts"), dict):
        raise UserError(f"concept catalogue {name} has no mapping 'concepts' (name: its kind, label, synonyms …)")
    if not isinstance(raw.get("unseen", {}), dict):
        raise UserError(f"concept catalogue {name}: 'unseen' takes a mapping as 'concepts' does, got {raw['unseen']!r}")
    concepts, unseen = (
        {n: concept_from(n, entry or {}, str(path)) for n, entry in raw.get(part, {}).items()}
        for part in ("concepts", "unseen")
    )
    templates = {
        kind: {language: tuple(lines) for language, lines in by_language.items()}
        for kind, by_language in raw.get("templates", {}).items()
    }
    return Catalogue(
        concepts,
        templates,
        tuple(raw.get("implicit", ())),
        tuple(raw.get("utility", ())),
        unseen,
    )


def concept_from(name: str, entry: Mapping, where: str) -> Concept:
    """A concept from its YAML mapping; an unknown field is an error that names the nearest one."""
    known = {f.name for f in fields(Concept)} - {"name"}
    for key in entry:
        if key not in known:
            raise unknown("field", key, known, f"concept {name!r} of {where}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    if "translations" in values:
        values["translations"] = {
            language: tuple([words] if isinstance(words, str) else words)
            for language, words in values["translations"].items()
        }
    return Concept(name=name, **values)


def stored_concept(entry: Mapping) -> Concept:
    """A concept from the plain values (``dataclasses.asdict``) that a task's configuration holds."""
    return concept_from(entry["name"], {k: v for k, v in entry.items() if k != "name"}, "task")
