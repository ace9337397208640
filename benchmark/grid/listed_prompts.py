"""Prompts from a list: which of its rows a role uses, and the labels of what they ask for.

A list can be about several concepts. A row names its concept in a column (``concept``, ``class``, ``artist``; I2P's
``categories``) or in the prompt. Target prompts are the rows about an erased concept; the same list serves the neighbours,
which get the others. Without a column, all rows of a list are about the erased concept if there is only one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from overpaint.errors import UserError
from overpaint.grid.concept_sets import ConceptSet
from overpaint.grid.concepts import Concept, read_as
from overpaint.grid.digests import canonical
from overpaint.grid.prompt_files import PromptList, Row
from overpaint.grid.prompts import Prompt, distinct
from overpaint.grid.read_once import shared
from overpaint.grid.typed import bare

#: ``about(concept, role, count)`` makes up to ``count`` prompts for a concept in a role.
About = Callable[[Concept, str, int], list[Prompt]]


@dataclass(frozen=True)
class Words:
    """Concepts by the words for them: names, synonyms and labels, in any case, with spaces or underscores."""

    concepts: Sequence[Concept]

    @cached_property
    def known(self) -> dict[str, Concept]:
        """The concept by each of its words in lower case; names and labels before synonyms."""
        found: dict[str, Concept] = {}
        for words in (lambda c: (c.name, c.label or ""), lambda c: c.synonyms):
            for concept in self.concepts:
                for word in filter(None, words(concept)):
                    found.setdefault(_plain(word), concept)
        return found

    @cached_property
    def pattern(self) -> re.Pattern | None:
        """Finds any of the words as a whole word, the longest first; ``None`` without words."""
        longest = sorted(map(re.escape, self.known), key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(longest)})(?!\w)") if longest else None

    def called(self, word: str) -> Concept | None:
        """The concept with this name."""
        return self.known.get(_plain(word))

    def named_in(self, text: str) -> Concept | None:
        """The first concept that a text names."""
        found = self.pattern.search(_plain(text)) if self.pattern else None
        return self.known[found[0]] if found else None


def _plain(text: str) -> str:
    return read_as(text.replace("_", " "))


@dataclass(frozen=True)
class Listed:
    """The prompts of a list for one role.

    Attributes:
        prompts: all of them, for every budget.
        rows: the number of rows of the list.
        unlabelled: the number of prompts without a label, which no detector can count.
        absent: a sentence if the list is not on this machine. A plan then counts stand-ins for its prompts.
    """

    prompts: Sequence[Prompt] = ()
    rows: int = 0
    unlabelled: int = 0
    absent: str = ""


def listed(asked: PromptList, key: str, role: str, concepts: ConceptSet, about: About, count: int) -> Listed:
    """The prompts of the list ``concepts.prompts.KEY`` for a role. A list of names gets up to ``count`` prompts a name from
    ``about``.

    Raises:
        UserError: if no row is about a concept of this role.
    """
    absent = asked.absent
    rows = _stand_ins(asked, role, concepts) if absent else asked.read()
    if not rows:
        return Listed(absent=absent)
    words, chosen = _all_words(concepts), _about(rows, role, concepts)
    found = [prompt for row, concept in chosen for prompt in _prompts(row, concept, role, words, about, count)]
    if not found and role != "near":
        raise UserError(_nothing(asked, key, rows, concepts))
    unlabelled = sum(not (p.concept or p.expects) for p in found) if role not in ("utility", "attributes") else 0
    return Listed(shared(distinct(found)), len(rows), unlabelled, absent)


def limited(prompts: Sequence[Prompt], role: str, count: int, erased: Iterable[str]) -> Sequence[Prompt]:
    """The first prompts: ``count`` for each concept of target prompts and neighbours; of a grid, those of the erased concepts and
    of ``count`` others on each axis; else ``count`` in all."""
    if role in ("target", "near"):
        seen: Counter[str] = Counter()
        kept = []
        for prompt in prompts:
            seen[prompt.concept] += 1
            if seen[prompt.concept] <= count:
                kept.append(prompt)
        return kept
    if role != "grid" or not all(prompt.expects for prompt in prompts):
        return prompts[:count] if count < len(prompts) else prompts
    erased = set(erased)
    axes = zip(*(prompt.expects for prompt in prompts), strict=False)
    kept_labels = [{*erased, *[label for label in dict.fromkeys(axis) if label not in erased][:count]} for axis in axes]
    return [p for p in prompts if all(label in kept for label, kept in zip(p.expects, kept_labels, strict=False))]


def _about(rows: Sequence[Row], role: str, concepts: ConceptSet) -> list[tuple[Row, Concept | None]]:
    """The rows that belong to a role, each with its concept (``None`` if it is unknown)."""
    own, words = Words(concepts.request.erase), _all_words(concepts)
    source = _source(rows, role, own)
    pairs = [(row, _subject(row, own, words, source)) for row in rows]
    erased = {c.name for c in own.concepts}
    if role in ("target", "attacked"):
        return [(row, concept) for row, concept in pairs if concept and concept.name in erased]
    if role == "near":
        others = [(row, concept) for row, concept in pairs if not (concept and concept.name in erased)]
        return [pair for pair in others if pair[1]] or others
    return pairs


def _source(rows: Sequence[Row], role: str, own: Words) -> str:
    """Where the concepts of a list's rows are read: ``column``, ``categories``, ``text``, ``set`` or ``nothing``.

    If all erased concepts have one label, all rows are about them (``set``), except rows that name another concept.
    """
    if any(row.about for row in rows):
        return "column"
    if role == "utility":
        return "nothing"
    targets, labels = role in ("target", "attacked"), {c.label or c.name for c in own.concepts}
    synonymous = targets and len(labels) == 1
    if any(own.called(category) for row in rows for category in row.categories) and not (
        synonymous and len(own.concepts) > 1
    ):
        return "categories"
    return "set" if synonymous else "text"


def _subject(row: Row, own: Words, words: Words, source: str) -> Concept | None:
    if source == "column":
        return words.called(row.about) or (Concept(row.about, label=row.about) if row.about else None)
    if source == "categories":
        found = [own.called(category) or words.called(category) for category in row.categories]
        return next((c for c in found if c in own.concepts), next(filter(None, found), None))
    if source == "nothing":
        return None
    named = own.named_in(row.text) or words.named_in(row.text)
    return named or (own.concepts[0] if source == "set" else None)


def _all_words(concepts: ConceptSet) -> Words:
    """The words for every concept of a set."""
    return Words([*concepts.request.erase, *concepts.near, *concepts.request.retain])


def _prompts(row: Row, concept: Concept | None, role: str, words: Words, about: About, count: int) -> list[Prompt]:
    """The prompts of one row, with labels of a detector."""
    label = (concept.label or concept.name) if concept else ""
    asked = [(c.label or c.name) if (c := words.called(word)) else word for word in row.expects]
    if role in ("target", "near", "attacked") and label:
        asked = asked or [label]
    elif role == "in_prompt" and label:
        asked = [*dict.fromkeys([*asked, label])]
    if row.text or concept is None:
        return [row.prompt(role, label, asked)] if row.text else []
    return [replace(prompt, expects=tuple(asked)) for prompt in about(concept, role, count)]


def _nothing(asked: PromptList, key: str, rows: Sequence[Row], concepts: ConceptSet) -> str:
    """The message for a list without a row about a concept of the role."""
    names = ", ".join(c.name for c in concepts.request.erase)
    told = list(dict.fromkeys(filter(None, (word for row in rows for word in (row.about, *row.categories)))))
    others = f" (it is about {bare(', '.join(told))})" if told else ""
    return f"concepts.prompts.{key}: no row of {asked.name} is about {names}{others}"


def _stand_ins(asked: PromptList, role: str, concepts: ConceptSet) -> list[Row]:
    """Stand-ins for the rows of a list that is not on this machine, as many as it is known to have. A plan counts them.

    Rows are distinct if their lists or their subjects are. If no neighbour is known, the list has as many as it has names
    (``first``), or one for each row.
    """
    rows = asked.rows or 0
    names = [f"neighbour {n}" for n in range(min(rows, asked.first or rows))]
    others = [c.name for c in (*concepts.near, *concepts.request.retain)] or names
    about = others if role == "near" else [""] if role == "utility" else [c.name for c in concepts.request.erase]
    place = f"{asked.file} {canonical(asked.where)}" if asked.where else asked.file
    each = -(-rows // max(1, len(about)))  # published lists are sorted by subject, so that grids share parts of them
    subjects = [(n % each, about[n // each]) for n in range(rows)]
    return [Row(f"row {n} of {place}" + (f" about {subject}" if subject else ""), subject) for n, subject in subjects]
