"""`overpaint list`: what there is, one line each, read from YAML without importing the components."""

from __future__ import annotations

from collections.abc import Iterator

import click
import yaml

from overpaint.errors import unknown
from overpaint.grid.registry import component, components, load_attribute
from overpaint.grid.shipped import shipped

GROUPS = {"methods": "method", "attacks": "attack", "detectors": "detector"}
#: Groups whose options say what they are in their first comment.
PLAIN = {f"{group}s": group for group in ("experiment", "model", "protocol", "budget", "engine", "tracker", "view")}


@click.command(name="list")
@click.argument("what")
def list_(what: str) -> None:
    """List methods, concepts, attacks, metrics, detectors, models, experiments and other groups, one a line."""
    for line in lines(what):
        click.echo(line)


def lines(what: str) -> Iterator[str]:
    """Lines of `overpaint list WHAT`."""
    if what in GROUPS:
        kind = GROUPS[what]
        rows = [(name, component(kind, name).config) for name in sorted(components(kind))]
        width = max((len(name) for name, _ in rows), default=0)
        for name, config in rows:
            about = [config.get("summary", ""), config.get("paper") or "", config.get("status") or ""]
            yield f"{name:<{width}}  " + " · ".join(part for part in about if part)
    elif what in PLAIN:
        for name, path in sorted(components(PLAIN[what]).items()):
            comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
            yield f"{name:<18}  {next((c for c in comments if not c.startswith('@')), '')}"
    elif what == "concepts":
        yield from _concepts()
    elif what == "metrics":
        yield from _metrics()
    else:
        raise unknown("list", what, [*GROUPS, *PLAIN, "concepts", "metrics"])


def _concepts() -> Iterator[str]:
    for name, path in sorted(components("concepts").items()):
        comment = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        yield f"{name:<18}  concept set · {comment}"
    for path in sorted((shipped("datasets") / "concepts").glob("*.yaml")):
        raw = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for name, entry in raw["concepts"].items():
            yield f"{name:<18}  {entry.get('kind', 'object')} of the {path.stem} catalogue"


def _metrics() -> Iterator[str]:
    for path in components("metrics").values():
        config = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for name, reference in config["metrics"].items():
            metric = load_attribute(reference)
            better = {"up": "higher is better", "down": "lower is better"}[metric.direction]
            yield f"{name:<24}  {metric.facet:<14} {better:<16} {metric.unit:<9} {metric.paper}"
