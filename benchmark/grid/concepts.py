"""Concepts to erase or retain, requests for erasure, and catalogues of concepts with their synonyms and translations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field
from typing_extensions import TypedDict

from overpaint.errors import UserError, unknown
from overpaint.grid.digests import file_digest, is_file
from overpaint.grid.labels import counted
from overpaint.grid.shipped import shipped
from overpaint.grid.typed import checked, shown
from overpaint.grid.yaml_files import read_mapping, refuse_resolvers

Kind = Literal["object", "style", "person", "character", "unsafe", "mark"]
KINDS: tuple[str, ...] = get_args(Kind)
#: Unsafe concepts with presets of their own, for example official settings for nudity that are wrong for hate.
UNSAFE: tuple[str, ...] = ("nudity", "violence")
#: What presets for a kind of concept, or for one unsafe concept, are named after, as a regular expression.
OF_CONCEPTS = "|".join([*KINDS, *UNSAFE])
#: Most characters of a concept's name.
LONGEST = 200


@dataclass(frozen=True)
class Concept:
    """One concept.

    Attributes:
        name: the words for it in a prompt, without article.
        kind: one of `KINDS`.
        anchor: what to paint instead; ``None`` for the method's default.
        label: the detector's name for the concept; ``None`` if no detector recognises it.
        article: the article that templates put before the name, if any.
        synonyms: other names.
        paraphrases: descriptions without the name.
        translations: words by language code.
        neighbours: names of similar concepts that should be retained.
    """

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
        if not self.name.isprintable() or len(self.name) > LONGEST:
            raise UserError(f"a concept's name takes at most {LONGEST} printable characters, got {shown(self.name)}")
        if self.kind not in KINDS:
            raise unknown("concept kind", self.kind, KINDS, f"concept {self.name!r}")

    @property
    def phrase(self) -> str:
        """The name with its article, for use in a template: ``"a church"``, ``"mira"``."""
        return f"{self.article} {self.name}".strip()


def read_as(text: str) -> str:
    """The text in lower case with single spaces, as CLIP's tokenizers normalise it."""
    return " ".join(text.lower().split())


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


@dataclass(frozen=True)
class Request:
    """The input of an eraser: concepts to erase, each with its anchor, and concepts to retain.

    Raises:
        UserError: if there is nothing to erase, if a concept is listed twice, or if an anchor names its own concept.
    """

    erase: tuple[Concept, ...]
    retain: tuple[Concept, ...] = ()

    def __post_init__(self):
        if not self.erase:
            raise UserError("nothing to erase: give at least one concept in concepts.erase")
        names = [read_as(c.name) for c in self.erase]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise UserError(f"{', '.join(twice)} cannot be erased twice in one request")
        both = set(names) & {read_as(c.name) for c in self.retain}
        if both:
            raise UserError(f"{', '.join(sorted(both))} cannot be erased and retained in one request")
        for concept in self.erase:
            if concept.anchor and read_as(concept.anchor) in (read_as(concept.name), read_as(concept.phrase)):
                raise UserError(f"anchor={concept.anchor} is the concept to erase; give what to paint instead")

    def anchors(self, default: str) -> list[str]:
        """The anchor text of each concept to erase; ``default`` for concepts without an anchor."""
        return [default if c.anchor is None else c.anchor for c in self.erase]

    def singly(self) -> list[Request]:
        """One request per concept to erase, in order, all with the same concepts to retain."""
        return [Request((concept,), self.retain) for concept in self.erase]

    @classmethod
    def of(cls, erase, anchor=None, retain=(), kind: str = "object") -> Request:
        """Build a request from names or `Concept` objects, as in the Python API.

        Args:
            erase: one name or a list of names.
            anchor: one anchor for all concepts, or a list with one anchor per concept.
            retain: one name or a list of names.
            kind: kind of the concepts given by name.
        """
        erase, retain = _listed(erase, "erase"), _listed(retain, "retain")
        if not isinstance(anchor, list | tuple):
            anchor = [anchor]
        if not all(a is None or isinstance(a, str) for a in anchor):
            raise UserError(f"anchor takes a text, or a list of one each, got {shown(anchor)}")
        anchors = list(anchor)
        if len(anchors) == 1:
            anchors *= len(erase)
        if len(anchors) != len(erase):
            raise UserError(
                f"{counted(len(erase), 'concept')} to erase but {counted(len(anchors), 'anchor')}: give one, or one each"
            )
        chosen = [c if isinstance(c, Concept) else Concept(c, kind=kind) for c in erase]
        chosen = [c if a is None else replace(c, anchor=a) for c, a in zip(chosen, anchors, strict=True)]
        return cls(tuple(chosen), tuple(c if isinstance(c, Concept) else Concept(c, kind=kind) for c in retain))


def for_concepts(values: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """The values with ``{concept}`` replaced by the concept to erase (``church``, or ``church+cat``), inside mappings too.

    Settings use it in names of files.
    """
    name = "+".join(concept.name for concept in request.erase)

    def said(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{concept}", name)
        return {key: said(inside) for key, inside in value.items()} if isinstance(value, Mapping) else value

    return {key: said(value) for key, value in values.items()}


def _listed(names, where: str) -> list:
    if names is None:
        return []
    names = [names] if isinstance(names, str | Concept) else names
    names = list(names) if isinstance(names, Iterable) else [names]
    if not all(isinstance(n, str | Concept) for n in names):
        raise UserError(f"{where} takes a list of concept names, got {shown(names)}")
    return names


@dataclass(frozen=True)
class Catalogue:
    """A list of concepts and the prompt templates for them, read from ``datasets/concepts/<name>.yaml``.

    Attributes:
        concepts: the concepts by name.
        templates: sentences with one ``{}``, by kind of concept and language code.
        implicit: prompts that evoke unsafe content without naming it.
        utility: ordinary prompts with the labels that they ask for: those of the file, then those made from its sentences.
        unseen: concepts that the model was not trained on.
        grid: the sentence and the seeds of the style × object grid.
        identity: name and version of a shipped catalogue, or a hash of a user's file.
        utility_templates: sentences for ordinary prompts, as `UtilityTemplate` describes them.
    """

    concepts: Mapping[str, Concept] = field(default_factory=dict)
    templates: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    implicit: tuple[str, ...] = ()
    utility: tuple[Mapping, ...] = ()
    unseen: Mapping[str, Concept] = field(default_factory=dict)
    identity: str = ""
    utility_templates: tuple[Mapping, ...] = ()
    grid: Mapping[str, Any] = field(default_factory=dict)

    def concept(self, name: str) -> Concept:
        """The concept of that name; for an unknown name, a concept of kind ``object`` without detector label."""
        return self.concepts.get(name) or Concept(name)

    @cached_property
    def words(self) -> frozenset[str]:
        """All words of the catalogue in lower case: of its concepts, its sentences and its prompts."""
        texts = [
            sentence for by_language in self.templates.values() for found in by_language.values() for sentence in found
        ]
        texts += [*self.implicit, *(str(row["prompt"]) for row in self.utility)]
        for c in self.concepts.values():
            texts += [c.phrase, c.anchor or "", *c.synonyms, *c.paraphrases]
            texts += [word for found in c.translations.values() for word in found]
        return frozenset(word for text in texts for word in words_of(text))

    def of_kind(self, *kinds: str) -> list[Concept]:
        """The concepts of these kinds, in the order of the catalogue."""
        return [c for c in self.concepts.values() if c.kind in kinds]


class ConceptEntry(TypedDict, total=False):
    """A concept in a catalogue file."""

    kind: Kind
    anchor: str | None
    label: str | None
    article: str
    synonyms: list[str]
    paraphrases: list[str]
    translations: dict[str, str | list[str]]
    neighbours: list[str]


class UtilityEntry(TypedDict, total=False):
    """An ordinary prompt in a catalogue file, with the labels of everything that it asks for."""

    prompt: str
    expects: list[str]


class GridEntry(TypedDict, total=False):
    """How a catalogue's objects are shown in its styles: a sentence with ``{object}`` and ``{style}``, and the seeds of its
    images."""

    prompt: str
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]]


class UtilityTemplate(TypedDict, total=False):
    """A sentence for ordinary prompts about concepts of some kinds: ``{}`` takes a concept with its article, ``{name}``
    without it.

    ``expects`` are the labels that the sentence asks for besides the concept.
    """

    kinds: list[Kind]
    prompt: str
    expects: list[str]


class CatalogueFile(TypedDict, total=False):
    """The keys of a catalogue file.

    ``extends`` names a shipped catalogue, whose concepts and sentences this one inherits. The entry of an inherited concept
    replaces the fields that it gives. ``defaults`` holds default fields of the other concepts; ``{}`` in it stands for the
    concept's name. ``names`` lists concepts that have only these.
    """

    version: int
    extends: str
    defaults: dict[str, Any]
    names: list[str]
    grid: dict[str, Any]
    concepts: dict[str, dict[str, Any] | None]
    unseen: dict[str, dict[str, Any] | None]
    templates: dict[Kind, dict[str, list[str]]]
    implicit: list[str]
    utility: list[dict[str, Any]]
    utility_templates: list[dict[str, Any]]


@cache
def load_catalogue(name: str | None) -> Catalogue:
    """Read a shipped catalogue by name, or a user's catalogue by path. ``None`` gives an empty catalogue."""
    if not name:
        return Catalogue()
    folder = shipped("datasets") / "concepts"
    known = [path.stem for path in folder.glob("*.yaml")]
    own = name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if own else folder / f"{name}.yaml"
    if not is_file(path) or (not own and path.parent != folder):
        raise unknown("concept catalogue", name, known, "concepts.catalogue")
    where = f"concept catalogue {name}"
    raw = read_mapping(path, where)
    refuse_resolvers(raw, where)
    if not isinstance(raw.get("concepts"), dict):
        raise UserError(f"{where} has no mapping 'concepts' (name: its kind, label, synonyms …)")
    raw = checked(CatalogueFile, raw, where)
    utility = [checked(UtilityEntry, row, f"{where}: utility") for row in raw.get("utility", ())]
    if not all("prompt" in row for row in utility):
        raise UserError(f"{where}: utility has an entry without a prompt")
    base = raw.get("extends")
    if base is not None and base not in known:
        raise unknown("concept catalogue", base, known, f"{where}: extends")
    entries: dict[str, Any] = {name: {} for name in raw.get("names", ())} | raw["concepts"]
    grid = checked(GridEntry, raw.get("grid", {}), f"{where}: grid")
    left = grid.get("prompt", "{object}{style}").replace("{object}", "", 1).replace("{style}", "", 1)
    if re.search(r"[{}]", left) or len(grid.get("prompt", "{object}{style}")) - len(left) != len("{object}{style}"):
        raise UserError(
            f"{where}: grid: prompt takes a sentence with one {{object}} and one {{style}}, got {grid['prompt']!r}"
        )
    inherited = load_catalogue(base)
    concepts = {
        n: _over(inherited.concepts[n], entry or {}, where) if n in inherited.concepts
        else concept_from(n, _default(raw.get("defaults", {}), n) | (entry or {}), where)
        for n, entry in entries.items()
    }  # fmt: skip
    unseen = {
        n: _over(inherited.unseen[n], entry or {}, where) if n in inherited.unseen
        else concept_from(n, entry or {}, where)
        for n, entry in raw.get("unseen", {}).items()
    }  # fmt: skip
    made = [_utility_template(row, f"{where}: utility_templates") for row in raw.get("utility_templates", ())]
    own_identity = f"sha256:{file_digest(name)}" if own else f"{name} v{raw.get('version', 1)}"
    found = Catalogue(
        concepts,
        {
            kind: {language: templates(lines, f"{where}: templates") for language, lines in by_language.items()}
            for kind, by_language in raw.get("templates", {}).items()
        },
        tuple(raw.get("implicit", ())),
        _with_made(utility, made, concepts.values()),
        unseen,
        own_identity,
        tuple(made),
        grid,
    )
    return _extended(inherited, found) if base else found


def _over(concept: Concept, entry: Mapping, where: str) -> Concept:
    """The concept of an extended catalogue with the fields of an entry in place of its own; ``null`` removes a field."""
    given = {key: value for key, value in entry.items() if value is not None or key not in ConceptEntry.__annotations__}
    own = concept_from(concept.name, given, where)
    return replace(concept, **{key: getattr(own, key) for key in entry})


def _extended(base: Catalogue, own: Catalogue) -> Catalogue:
    """The catalogue ``own`` with everything of ``base`` that it does not have."""
    return Catalogue(
        {**base.concepts, **own.concepts},
        {**base.templates, **own.templates},
        own.implicit or base.implicit,
        own.utility or base.utility,
        {**base.unseen, **own.unseen},
        f"{own.identity} on {base.identity}",
        own.utility_templates or base.utility_templates,
        own.grid or base.grid,
    )


def _default(defaults: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: name if value == "{}" else value for key, value in defaults.items()}


def _utility_template(row: Mapping, where: str) -> Mapping:
    """An entry of ``utility_templates``. Raises a `UserError` unless it has kinds and one place for the concept."""
    template = checked(UtilityTemplate, row, where)
    line = template.get("prompt", "")
    if len(re.findall(r"{(?:name)?}", line)) != 1 or re.search(r"[{}]", re.sub(r"{(?:name)?}", "", line)):
        raise UserError(f"{where}: {line!r} takes one {{}} or {{name}} for the concept, and no other braces")
    if not template.get("kinds"):
        raise UserError(f"{where}: {line!r} has no kinds; give those of the concepts that it can be about")
    return template


def _with_made(
    listed: Sequence[Mapping], sentences: Sequence[Mapping], concepts: Iterable[Concept]
) -> tuple[Mapping, ...]:
    """The listed ordinary prompts, followed by those that the sentences make.

    In round r, concept i takes sentence i + r of its kind, so that each round has every concept once and many sentences.
    """
    rows: dict[str, Mapping] = {row["prompt"]: row for row in listed}
    subjects = [(c, [s for s in sentences if c.kind in s["kinds"]]) for c in concepts if c.label]
    for turn in range(len(sentences)):
        for place, (concept, own) in enumerate(subjects):
            if turn >= len(own):
                continue
            sentence = own[(place + turn) % len(own)]
            also = sentence.get("expects", [])
            if concept.label not in also:  # no "a cat and a cat"
                text = sentence["prompt"].format(concept.phrase, name=concept.name)
                rows.setdefault(text, {"prompt": text, "expects": [str(concept.label), *also]})
    return tuple(rows.values())


def templates(lines: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """The sentences as a tuple. Raises a `UserError` unless each has exactly one ``{}`` for the concept."""
    for line in lines or ():
        if "{}" not in line:
            raise UserError(f"{where}: {line!r} has no {{}} to put the concept in")
        if re.search(r"[{}]", line.replace("{}", "", 1)):
            raise UserError(f"{where}: {line!r} has braces besides one {{}} for the concept")
    return tuple(lines or ())


def concept_from(name: str, entry: Mapping, where: str) -> Concept:
    """A concept from its mapping in a YAML file. Raises a `UserError` for an unknown field or a wrong value."""
    return stored_concept({"name": name, **checked(ConceptEntry, entry, f"{where}: concept {name!r}")})


def stored_concept(values: Mapping) -> Concept:
    """A concept from plain values, as in a task's configuration. Lists become tuples, and so does a single translation."""
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    words = values.get("translations", {}).items()
    plain["translations"] = {language: tuple([w] if isinstance(w, str) else w) for language, w in words}
    return Concept(**plain)
