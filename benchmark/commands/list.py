"""`overpaint list`: lists the available components, one per line, from their YAML files without importing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import click
import yaml

from overpaint.errors import UserError, unknown
from overpaint.grid.assets import Asset, asset
from overpaint.grid.concepts import Concept, load_catalogue
from overpaint.grid.directions import BETTER
from overpaint.grid.labels import bytes_said, printable
from overpaint.grid.registry import broken_packages, component, components, file_of, load_attribute, search
from overpaint.grid.shipped import shipped
from overpaint.grid.typed import bare

#: Most concepts of a catalogue that are listed one by one.
MOST_LISTED = 100
GROUPS = {"methods": "method", "attacks": "attack", "detectors": "detector", "extractors": "extractor"}
#: Groups whose options are described by the first comment of their file.
PLAIN = {
    f"{group}s": group for group in ("experiment", "model", "protocol", "budget", "engine", "track", "tracker", "view")
}

#: What can be listed, and its folder of ``conf/``. ``probes`` are the attacks that show what a model knows of a concept, erased
#: or not (``probe: true``).
LISTS = {
    **GROUPS, **PLAIN, "assets": "asset", "concepts": "concepts", "metrics": "metrics", "pictures": "pictures", "probes": "attack"
}  # fmt: skip


@click.command(name="list")
@click.argument("what", default="")
@click.argument("names", nargs=-1)
def list_(what: str, names: Sequence[str]) -> None:
    """List methods, concepts, attacks, probes, metrics, detectors, assets, models, experiments and other groups, one per line.

    With NAMES, print the YAML files of these, which explain every setting: `overpaint list methods uce`. For a concept, print
    its entries in the catalogues: `overpaint list concepts church`.
    `hydra.searchpath=[file:///folder]` also lists what is in that folder.
    """
    if not what:
        raise UserError(f"say what to list: {', '.join(sorted(LISTS))}")
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    named = search(names)
    for name in named:
        if "=" in name:
            raise UserError(f"list takes names and hydra.searchpath=[file:///folder], got {bare(name)}")
    if what == "concepts":
        texts = ["\n".join(map(_concept, named))] if named else []
    else:
        texts = [_yaml(LISTS[what], name) for name in named]
    for line in chain.from_iterable(text.rstrip().splitlines() for text in texts) if texts else lines(what):
        click.echo(printable(line))


def lines(what: str) -> Iterator[str]:
    """Lines of `overpaint list WHAT`. The line of an unusable file shows the error."""
    if what in GROUPS:
        yield from _components(GROUPS[what])
    elif what == "probes":
        yield from _components("attack", lambda config: config.get("probe") is True)
    elif what in PLAIN:
        yield from _options(PLAIN[what])
    elif what == "pictures":
        yield from _options(what)
    elif what == "concepts":
        yield from _concepts()
    elif what == "metrics":
        yield from _metrics()
    else:
        yield from _assets()
    yield from broken_packages()


def _components(kind: str, chosen: Callable[[Mapping[str, Any]], bool] = lambda config: True) -> Iterator[str]:
    names = sorted(components(kind))
    width = max(map(len, names), default=0)
    for name in names:
        try:
            config = component(kind, name).config
        except UserError as error:
            yield f"{name:<{width}}  cannot be used: {error}"
        else:
            about = [config.get(key) or "" for key in ("summary", "paper", "status")]
            if chosen(config):
                yield f"{name:<{width}}  " + " · ".join(str(part) for part in about if part)


def _options(folder: str) -> Iterator[str]:
    found = sorted(components(folder).items())
    width = max((len(name) for name, _ in found), default=0)
    for name, path in found:
        yield f"{name:<{width}}  {_comment(path)}"


def _comment(path: Path) -> str:
    """The first comment of an option's file, which describes the option."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    comments = [line[1:].strip() for line in lines if line.startswith("#")]
    return next((c for c in comments if not c.startswith("@")), "")


def _concepts() -> Iterator[str]:
    for name, path in sorted(components("concepts").items()):
        yield f"{name:<18}  concept set · {_comment(path)}"
    for path in _catalogues():
        catalogue = load_catalogue(path.stem).concepts
        if len(catalogue) > MOST_LISTED:
            yield f"{path.stem:<18}  catalogue of {len(catalogue)} concepts"
            continue
        for name, concept in catalogue.items():
            yield f"{name:<18}  {concept.kind} of the {path.stem} catalogue"


def _concept(name: str) -> str:
    """The YAML file of a concept set, and the entries of the concept of this name in shipped catalogues."""
    catalogues = {path.stem: load_catalogue(path.stem).concepts for path in _catalogues()}
    homes: dict[str, list[str]] = {}
    for catalogue, concepts in catalogues.items():
        if name in concepts:
            homes.setdefault(_entry(concepts[name]), []).append(catalogue)
    texts = [_yaml("concepts", name)] if name in components("concepts") else []
    texts += [f"# in the catalogue {', '.join(found)}\n{entry}" for entry, found in homes.items()]
    if not texts:
        raise unknown("concept", name, {*components("concepts"), *chain.from_iterable(catalogues.values())})
    return "\n".join(texts)


def _entry(concept: Concept) -> str:
    """A concept as a catalogue's file writes it, without empty fields."""
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(concept).items()}
    fields["translations"] = {language: list(words) for language, words in concept.translations.items()}
    unused = {key: value for key, value in vars(Concept(concept.name)).items() if key != "kind"}
    given = {key: value for key, value in fields.items() if value not in (unused.get(key), [], {})}
    return f"{concept.name}:\n" + "".join(f"  {key}: {_flow(value)}\n" for key, value in given.items())


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump([value], allow_unicode=True, default_flow_style=True, width=10**6)[1:-2]


def _yaml(kind: str, name: str) -> str:
    return file_of(kind, name).read_text(encoding="utf-8", errors="replace")


def _catalogues() -> list[Path]:
    return sorted((shipped("datasets") / "concepts").glob("*.yaml"))


def _assets() -> Iterator[str]:
    names = sorted(components("asset"))
    for name in names:
        try:
            found = asset(name)
        except UserError as error:
            yield f"{name:<20}  cannot be used: {error}"
        else:
            yield f"{name:<20}  {found.summary} · {said_size(found)} · {found.licence} · {found.purpose}"


def said_size(chosen: Asset) -> str:
    """The size of an asset for people: ``12.2 MB``."""
    return "size unknown" if chosen.bytes is None else bytes_said(chosen.bytes)


def _metrics() -> Iterator[str]:
    """The metrics of every set, with the set's name first."""
    for kind in components("metrics"):
        try:
            listed = component("metrics", kind).config.get("metrics") or {}
        except UserError as error:
            yield f"{kind}  cannot be used: {error}"
            continue
        for name, reference in listed.items():
            try:
                metric = load_attribute(str(reference))
                better = BETTER[metric.direction]
                yield f"{kind:<13}  {name:<28}  {metric.facet:<14} {better:<21} {metric.unit:<9} {metric.paper}"
            except (UserError, AttributeError, KeyError) as error:
                yield f"{kind:<13}  {name:<28}  cannot be used: {error}"
