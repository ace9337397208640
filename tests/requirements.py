"""Requirements for a component's YAML and documentation. `unmet` lists everything that is missing at once."""

import re
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import yaml

from overpaint.errors import UserError
from overpaint.grid.lengths import Shortenable
from overpaint.grid.registry import DESCRIPTION, component, components

ROOT = Path(__file__).resolve().parents[1]
#: Kind of a component -> required keys that describe it, in addition to the defaults of its fields.
DESCRIBED_BY = {
    "detector": ("name", "component", "summary", "paper"),
    "method": ("name", "component", "summary", "paper", "status", "preset", "presets"),
    "attack": ("name", "component", "summary", "paper", "status", "preset", "presets", "control"),
}
#: Kinds whose components have a page under docs/.
WITH_PAGES = ("method", "attack")


def documented(kind):
    """Components with a page. The page of a component names its YAML, as in ``conf/attack/{uda,p4d_uda}.yaml``."""
    for page in (ROOT / "docs" / f"{kind}s").glob("*.md"):
        for names in re.findall(rf"`conf/{kind}/(\w+|{{[\w,]+}})\.yaml`", page.read_text(encoding="utf-8")):
            yield from names.strip("{}").split(",")


def _undeclarable(built):
    """Declared lengths, and hyper-parameters paced with one, that are not numbers of steps."""
    if not isinstance(built, Shortenable):
        return []
    parameters = {f.name: getattr(built, f.name) for f in fields(built) if f.name != "seed"}
    declared = {"lengths": built.lengths, "paced": built.paced}
    found = [
        f"{where}: {key!r} must be an integer hyper-parameter, a list of integers or null"
        for where, keys in declared.items()
        for key in keys
        if not _counts(parameters.get(key))
    ]
    ends = set(built.paced.values()) - {key for key in built.lengths if type(parameters.get(key)) is int}
    return found + [f"paced: {key!r} must be one of the lengths, and an integer" for key in sorted(ends)]


def _counts(value):
    """Whether a value is a number of steps, a list of step numbers, or no limit (``None``)."""
    return value is None or type(value) is int or (isinstance(value, list) and all(type(step) is int for step in value))


def unmet(kind, name, base):
    """All requirements that ``conf/<kind>/<name>.yaml`` and its class (a subclass of ``base``) do not meet."""
    path = components(kind)[name]
    text = path.read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    lines = {line.split(":")[0]: line for line in text.splitlines()}
    found = [f"add the key {key!r}" for key in DESCRIBED_BY[kind] if key not in config]
    if config.get("name") != name:
        found.append(f"name: must be {name}, the file's name")
    if not config.get("summary"):
        found.append("summary: must be one line of text")
    try:
        cls = component(kind, name).load()
    except (UserError, KeyError) as error:
        return [*found, f"component: {error}"]
    if not issubclass(cls, base):
        return [*found, f"component: {cls.__name__} must be a subclass of {base.__name__}"]
    parameters = {f.name for f in fields(cls)} - {"seed"}
    found += [f"add the default of {key!r}, a field of {cls.__name__}" for key in sorted(parameters - set(config))]
    extra = set(config) - parameters - set(DESCRIPTION)
    found += [f"remove {key!r}, which is not a field of {cls.__name__}" for key in sorted(extra)]
    found += [
        f"{key}: add a comment with its meaning" for key in sorted(parameters & set(config)) if " # " not in lines[key]
    ]
    with suppress(UserError):  # another line says what is missing
        found += _undeclarable(component(kind, name).build({}))
    if kind in WITH_PAGES and name not in documented(kind):
        found.append(f"add a page docs/{kind}s/*.md that names `conf/{kind}/{name}.yaml`")
    return found
