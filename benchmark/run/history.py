"""The sources that a store's results were made with: what `run` says about changed components, and which record is current."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from overpaint.errors import UserError
from overpaint.grid.labels import counted
from overpaint.grid.source_code import DRAFT, is_ours
from overpaint.run.plan import Plan
from overpaint.run.store import Store
from overpaint.run.tasks import Task

#: The file of a store with its history.
SOURCES = "sources.json"


class History:
    """``sources.json`` of a store: every source of a component that results were made with, the one used last at the end."""

    def __init__(self, store: Store):
        self._store, self._path = store, store.root / SOURCES
        try:
            self._sources = self._stored()
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {error.strerror or error}") from None

    @property
    def all(self) -> dict[str, list[str]]:
        """The sources of every component, oldest use first."""
        return dict(self._sources)

    def of(self, component: str) -> list[str]:
        """The sources of a component (``method=mine``), oldest use first."""
        return self._sources.get(component, [])

    def known(self, sources: Mapping[str, str]) -> dict[str, str]:
        """Those of the sources that results were made with."""
        return {component: source for component, source in sources.items() if source in self.of(component)}

    def recency(self, sources: Mapping[str, str]) -> dict[str, int]:
        """A number for each of these sources, larger if it was used more recently. Unknown sources are left out."""
        return {component: self.of(component).index(source) for component, source in self.known(sources).items()}

    def add(self, sources: Mapping[str, str]) -> None:
        """Note that results of these sources are in use. A store that cannot be written to stays as it is."""
        if all(self.of(component)[-1:] == [source] for component, source in sources.items()):
            return
        with suppress(OSError), self._alone():
            for component, source in sources.items():
                before = [other for other in self.of(component) if other != source]
                self._sources[component] = [*before, source]

    def add_older(self, others: Mapping[str, list[str]]) -> None:
        """Note the sources of another store, as used before all that are known here."""
        if not others:
            return
        with self._alone():
            for component, sources in others.items():
                mine = self.of(component)
                self._sources[component] = [*(source for source in sources if source not in mine), *mine]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Context: the sources as stored, which are written at the end."""
        with self._store.alone(self._path):
            self._sources = self._stored()
            yield
            self._store.write(self._path, json.dumps(self._sources, indent=1, sort_keys=True))

    def _stored(self) -> dict[str, list[str]]:
        """Raises an `OSError` for a file that is there and cannot be read: it must not be written again without its entries."""
        try:
            return self.parsed(self._path.read_bytes())
        except FileNotFoundError:
            return {}

    @staticmethod
    def parsed(content: bytes) -> dict[str, list[str]]:
        """The entries of a ``sources.json``; those of any other layout are left out."""
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {
            component: [source for source in sources if isinstance(source, str)]
            for component, sources in entries
            if isinstance(sources, list)
        }


def changes(plan: Plan, store: Store, todo: Sequence[Task]) -> list[str]:
    """A sentence for each component whose source is not the one that its stored results were made with.

    A component from outside this package makes its results again. Results of one of our own are kept until its version is
    raised; this is said of uncommitted sources only, because a commit that can change results raises the version.
    """
    history, said = History(store), []
    edited = {}
    for component, source in plan.sources.items():
        before = history.of(component)
        if is_ours(source):
            others = {other for other in before if _differ(source, other)}
            if others:
                edited[component] = others
        elif before and before[-1] != source:
            count = sum(component in task.sources for task in todo)
            if count:
                said.append(
                    f"{component} has changed since its results were made: {counted(count, 'task')} to make again"
                )
    made_with = _made_with(plan, store) if edited else Counter()
    for component, others in edited.items():
        count = sum(number for text, number in made_with.items() if json.loads(text).get(component) in others)
        if count:
            said.append(
                f"{component}: its source changed since its results were made, and its version did not: {counted(count, 'task')} "
                "kept; raise version if results can change"
            )
    return said


def _made_with(plan: Plan, store: Store) -> Counter[str]:
    """The sources that a plan's stored results were made with, as JSON, each with the number of these results."""
    by_stage: dict[str, list[str]] = defaultdict(list)
    for task in plan.kept(store):
        by_stage[task.stage].append(task.key)
    found = Counter[str]()
    for stage, keys in by_stage.items():
        sources = store.listed(stage).column("sources")  # from the index: no manifest is opened
        found.update(sources[key] for key in keys if key in sources)
    return found


def _differ(one: str, other: str) -> bool:
    """Whether two sources of one of our components differ and one of them is not committed."""
    drafts = one.endswith(DRAFT) or other.endswith(DRAFT)
    return drafts and one.removesuffix(DRAFT) != other.removesuffix(DRAFT)
