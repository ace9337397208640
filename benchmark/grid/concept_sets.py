"""Concept sets: the concepts that a cell erases and retains, and the prompts for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from overpaint.errors import UserError, unknown
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
)
from overpaint.grid.prompt_files import PromptList
from overpaint.grid.registry import components
from overpaint.grid.typed import construct, shown


@dataclass(frozen=True)
class ConceptSet:
    """Concepts to erase and to retain, with their prompts.

    Attributes:
        request: the concepts to erase and to retain.
        sequential: whether the concepts are erased one after the other, each as a request of its own.
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
    def kind(self) -> str:
        """Kind of the first concept to erase. It selects presets."""
        return self.request.erase[0].kind

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the prompts and the request. Prompt files are given by a hash of their content."""
        found = {
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


def concept_set(config: Mapping[str, Any], catalogue_of_model: str | None) -> ConceptSet:
    """A concept set from the ``concepts`` group. The catalogue adds kind, label and synonyms to the names that it lists."""
    entry = construct(Entry, config, "concepts")
    catalogue = load_catalogue(catalogue_of_model if entry.catalogue == "auto" else entry.catalogue)
    labels = entry.labels or {}
    erase = _concepts(entry.erase, catalogue, entry.kind, labels, "concepts.erase")
    names = [c.name for c in erase]
    others = [name for name in catalogue.concepts if name not in names]
    kept = others if entry.retain == "all" else entry.retain
    retain = _concepts(kept, catalogue, entry.kind, labels, "concepts.retain")
    neighbours = [name for c in erase for name in c.neighbours if name not in names]
    asked = neighbours if entry.near is None else others if entry.near == "all" else _listed(entry.near)
    near = _concepts(list(dict.fromkeys(asked)), catalogue, entry.kind, labels, "concepts.near")
    for name in labels:
        if name not in (known := {*names, *(c.name for c in (*retain, *near))}):
            raise unknown("concept", name, known, "concepts.labels")
    request = Request.of(erase, entry.anchor, retain)
    erased_too = [c.name for c in near if read_as(c.name) in map(read_as, names)]
    if erased_too:
        raise UserError(f"concepts.near: {', '.join(erased_too)} cannot be erased and be a neighbour that stays")
    sequential = entry.sequential and len(erase) > 1  # one concept is the same request either way
    if entry.detector is not None and entry.detector not in components("detector"):
        raise unknown("detector", entry.detector, components("detector"), "concepts.detector")
    name = entry.name or "+".join(names)
    if entry.name and not (name.isprintable() and len(name) <= LONGEST):
        raise UserError(f"concepts.name takes at most {LONGEST} printable characters on one line, got {shown(name)}")
    return ConceptSet(
        f"{name} in turn" if sequential else name,
        request,
        sequential,
        tuple(near),
        catalogue,
        templates(entry.templates, "concepts.templates") or None,
        for_concepts(entry.prompts or {}, request),
        entry.detector,
        _attributes(entry),
    )


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
    names: str | Sequence[str], catalogue: Catalogue, kind: str, labels: Mapping[str, str], where: str
) -> list[Concept]:
    """Concepts from their names. Without a catalogue, a concept's detector label is its name unless ``labels`` says another."""
    names = _listed(names)
    if not catalogue.concepts:
        return [Concept(name, kind=kind, label=labels.get(name, name)) for name in names]
    for name in names:
        if name not in catalogue.concepts:
            raise unknown("concept", name, catalogue.concepts, where)
    found = [catalogue.concepts[name] for name in names]
    return [replace(c, label=labels[c.name]) if c.name in labels else c for c in found]


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names
