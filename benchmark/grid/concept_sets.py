"""Concept sets: the concepts that a cell erases and retains, and the prompts for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from overpaint.errors import UserError, nearest, unknown
from overpaint.grid.assets import content_digest, referred
from overpaint.grid.concepts import (
    LONGEST,
    Catalogue,
    Concept,
    Kind,
    Request,
    for_concepts,
    load_catalogue,
    read_as,
    templates,
    words_of,
)
from overpaint.grid.labels import label
from overpaint.grid.prompt_files import PromptList
from overpaint.grid.read_once import remembered
from overpaint.grid.registry import component, components
from overpaint.grid.typed import construct, shown

Rule = Literal["sum", "mean", "ties", "closed"]


@dataclass(frozen=True)
class Merge:
    """How erasures that were made separately become one (`overpaint.blocks.merging`).

    Attributes:
        rule: ``sum`` and ``mean`` of their changes, ``ties``, or ``closed``, the least change that keeps what each does.
        scale: factor of the merged change (task arithmetic).
        keep: for ``ties``, the share of each erasure's values that count, the largest ones.
        captions: for ``closed``, the texts whose outputs change least: a collection of ``datasets`` or a CSV file; ``None``
            for the retained concepts.
    """

    rule: Rule
    scale: float = 1.0
    keep: Annotated[float, Field(gt=0, le=1)] = 0.2
    captions: str | None = None

    @classmethod
    def of(cls, given: str | Mapping[str, Any], where: str) -> Merge:
        """A merge from its setting: a rule, or a mapping with the other keys as well.

        Raises:
            UserError: no rule, an unknown rule or key, or a key that the rule does not use.
        """
        entry = {"rule": given} if isinstance(given, str) else given
        if entry.get("rule") is None:
            raise UserError(f"{where} needs a rule ({', '.join(sorted(get_args(Rule)))}), got {shown(entry)}")
        if entry["rule"] not in get_args(Rule):
            raise unknown("rule", str(entry["rule"]), get_args(Rule), where)
        merge = construct(cls, entry, where)
        for key, rule in USED_BY.items():
            if key in entry and merge.rule != rule:
                raise UserError(f"{where}: {key} is used by rule={rule}, not by rule={merge.rule}")
        if merge.captions and not referred(merge.captions) and not merge.content:
            raise UserError(
                f"{where}: captions takes a collection such as testbed/captions, or a CSV file, got {merge.captions}"
            )
        return merge

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that the rule uses."""
        return {key: value for key, value in asdict(self).items() if USED_BY.get(key, self.rule) == self.rule}

    @property
    def content(self) -> str | None:
        """A hash of the captions; ``None`` without captions, and for an asset's file that is unknown before its download."""
        if self.captions is None:
            return None
        return next(filter(None, (content_digest(f"{self.captions}{end}") for end in ("", ".csv"))), None)

    @property
    def label(self) -> str:
        """``ties``, or ``ties keep=0.1`` with the values that differ from the defaults."""
        plain = Merge(self.rule)
        return label(self.rule, {key: value for key, value in asdict(self).items() if value != getattr(plain, key)})


#: Keys of a merge that one rule uses alone.
USED_BY = {"keep": "ties", "captions": "closed"}


@dataclass(frozen=True)
class ConceptSet:
    """Concepts to erase and to retain, with their prompts.

    Attributes:
        request: the concepts to erase and to retain.
        sequential: whether the concepts are erased one after the other, each as a request of its own.
        merge: how erasures of one concept each, all made on the unedited model, become one; ``None`` for one request.
        near: neighbours whose images are measured.
        catalogue: the catalogue that the concepts come from.
        templates: prompt templates; ``None`` for those of the catalogue.
        prompts: prompt lists by role, as given: a file, or a mapping (`overpaint.grid.prompt_files.PromptList`).
        detector: the detector that ``model.detector=auto`` selects; ``None`` for one by the kind of the concepts.
        attributes: detector labels that the concepts' images should show in these shares, for balance; empty for none.
    """

    name: str
    request: Request
    sequential: bool
    near: tuple[Concept, ...]
    catalogue: Catalogue
    templates: tuple[str, ...] | None
    prompts: Mapping[str, str | Mapping[str, Any]]
    detector: str | None = None
    attributes: Mapping[str, float] = field(default_factory=dict)
    merge: Merge | None = None

    @cached_property
    def lists(self) -> Mapping[str, PromptList]:
        """The prompt lists by role, in the order of their names."""
        given = sorted((role, value) for role, value in self.prompts.items() if value)
        return {role: PromptList.of(value, f"concepts.prompts.{role}") for role, value in given}

    @cached_property
    def found(self) -> dict[Any, Any]:
        """What `overpaint.grid.roles` found in the lists, so that each is read once."""
        return {}

    def without_lists(self, roles: Collection[str]) -> ConceptSet:
        """The same set without the lists of these roles, which then are neither needed nor read."""
        self.lists  # noqa: B018 - checks all of them
        kept = {role: given for role, given in self.prompts.items() if role not in roles}
        return replace(self, prompts=kept) if any(self.prompts[role] for role in self.prompts.keys() - kept) else self

    @property
    def singly(self) -> bool:
        """Whether each of several concepts is erased by a request of its own, in turn or to be merged."""
        return self.sequential or self.merge is not None

    @property
    def manner(self) -> str:
        """How several concepts are erased, as the end of the name: `` in turn``, `` merged by sum`` or nothing."""
        return " in turn" if self.sequential else f" merged by {self.merge.label}" if self.merge else ""

    @property
    def kind(self) -> str:
        """Kind of the first concept to erase. It selects presets."""
        return self.request.erase[0].kind

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the prompts and the request. Prompt files are given by a hash of their content."""
        merged = {"merge": [self.merge.settings, self.merge.content]} if self.merge else {}
        found = merged | {
            "erase": [asdict(c) for c in self.request.erase],
            "retain": [asdict(c) for c in self.request.retain],
            "near": [asdict(c) for c in self.near],
            "sequential": self.sequential,
            "catalogue": self.catalogue.identity,
            "templates": self.templates,
            "prompts": {role: listed.identity for role, listed in self.lists.items()},
        }
        return found | ({"attributes": dict(self.attributes)} if self.attributes else {})  # other keys stay


@dataclass(frozen=True)
class Entry:
    """The keys of the ``concepts`` group; see ``conf/concepts/inline.yaml``."""

    name: str | None
    catalogue: str | None
    erase: str | list[str]
    sequential: bool
    retain: str | list[str]
    near: str | list[str] | None
    anchor: str | list[str] | None
    kind: Kind
    templates: list[str] | None
    prompts: dict[str, str | dict[str, Any] | None] | None
    labels: dict[str, str] | None
    detector: str | None
    attributes: dict[str, Annotated[float, Field(gt=0, le=1)]] | None
    merge: str | dict[str, Any] | None = None


def concept_set(config: Mapping[str, Any], catalogue_of_model: str | None) -> ConceptSet:
    """A concept set from the ``concepts`` group. The catalogue adds kind, label and synonyms to the names that it lists."""
    if "name" in config and not {"erase", "catalogue", "templates"} <= config.keys():
        raise UserError(
            f"concepts={config['name']}: its YAML lacks keys that every concept set has: add `defaults: [inline, _self_]`"
        )
    entry = construct(Entry, config, "concepts")
    catalogue = load_catalogue(catalogue_of_model if entry.catalogue == "auto" else entry.catalogue)
    labels = entry.labels or {}
    if entry.catalogue == "auto":
        advice = "; this model draws only these, others take any name, such as model=sd14"
    else:
        advice = "; concepts.catalogue=null takes any name"
    erase = _concepts(entry.erase, catalogue, entry.kind, labels, "concepts.erase", advice)
    names = [c.name for c in erase]
    others = [name for name in catalogue.concepts if name not in names]
    kept = others if entry.retain == "all" else entry.retain
    retain = _concepts(kept, catalogue, entry.kind, labels, "concepts.retain", advice)
    neighbours = [name for c in erase for name in c.neighbours if name not in names]
    asked = neighbours if entry.near is None else others if entry.near == "all" else listed(entry.near)
    near = _concepts(list(dict.fromkeys(asked)), catalogue, entry.kind, labels, "concepts.near", advice)
    for name in labels:
        if name not in (known := {*names, *(c.name for c in (*retain, *near))}):
            raise unknown("concept", name, known, "concepts.labels")
    if entry.catalogue == "auto":
        _check_words(entry.anchor, catalogue, "concepts.anchor", advice)
    request = Request.of(erase, entry.anchor, retain)
    erased_too = [c.name for c in near if read_as(c.name) in map(read_as, names)]
    if erased_too:
        raise UserError(f"concepts.near: {', '.join(erased_too)} cannot be erased and be a neighbour that stays")
    several = len(erase) > 1  # one concept is the same request in every way
    merge = Merge.of(entry.merge, "concepts.merge") if entry.merge is not None else None
    merge = merge if several else None
    sequential = entry.sequential and several and merge is None
    if entry.detector is not None and entry.detector not in components("detector"):
        raise unknown("detector", entry.detector, components("detector"), "concepts.detector")
    if entry.templates == []:
        raise UserError(
            "concepts.templates is empty: give sentences with {} for the concept, or null for the catalogue's"
        )
    name = entry.name or "+".join(names)
    if entry.name and not (name.isprintable() and len(name) <= LONGEST):
        raise UserError(f"concepts.name takes at most {LONGEST} printable characters on one line, got {shown(name)}")
    found = ConceptSet(
        name,
        request,
        sequential,
        tuple(near),
        catalogue,
        templates(entry.templates, "concepts.templates") or None,
        for_concepts(entry.prompts or {}, request),
        entry.detector,
        _attributes(entry),
        merge,
    )
    return replace(found, name=f"{name}{found.manner}")


def _attributes(entry: Entry) -> dict[str, float]:
    """The desired share of each attribute. Raises a `UserError` for shares that no images can have."""
    shares = entry.attributes or {}
    total = sum(shares.values())
    if len(shares) > 1 and abs(total - 1) > 1e-6:
        raise UserError(
            f"concepts.attributes: the shares of {', '.join(shares)} have the sum {total:g}, and it must be 1"
        )
    if not shares and (entry.prompts or {}).get("attributes"):
        raise UserError(
            "concepts.prompts.attributes is a list of prompts without attributes to count: set concepts.attributes, "
            "such as {man: 0.5, woman: 0.5}"
        )
    return shares


def _concepts(
    names: str | Sequence[str], catalogue: Catalogue, kind: str, labels: Mapping[str, str], where: str, advice: str
) -> list[Concept]:
    """Concepts from their names. Without a catalogue, a concept's detector label is its name unless ``labels`` says another.

    An unknown name is refused with the ``advice``.
    """
    names = listed(names)
    if not catalogue.concepts:
        return [Concept(name, kind=kind, label=labels.get(name, name)) for name in names]
    for name in names:
        if name not in catalogue.concepts:
            raise UserError(f"{unknown('concept', name, catalogue.concepts, where)}{advice}")
    found = [catalogue.concepts[name] for name in names]
    return [replace(c, label=labels[c.name]) if c.name in labels else c for c in found]


def _check_words(texts: str | Sequence[str | None] | None, catalogue: Catalogue, where: str, advice: str) -> None:
    """Raise a `UserError`, with the ``advice``, for a text with a word that is nowhere in the catalogue."""
    given = [texts] if isinstance(texts, str) else texts or ()
    for text in given if catalogue.concepts else ():
        for word in words_of(text or ""):
            if word not in catalogue.words:
                hint = nearest(word, catalogue.concepts)
                names = ", ".join(catalogue.concepts)
                raise UserError(f"unknown word {word!r} in {where}={text}{hint} (known concepts: {names}){advice}")


def listed(names: str | Sequence[str]) -> Sequence[str]:
    """Names as a list; a single name may be given without one."""
    return [names] if isinstance(names, str) else names


@remembered
def erased_by(name: str) -> tuple[str, ...]:
    """The concepts that a known concept set erases; empty if there is none of this name."""
    known = name in components("concepts")
    return tuple(map(str, listed(component("concepts", name).config.get("erase") or ()))) if known else ()
