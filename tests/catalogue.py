"""What the YAML of a component has to say. Every fault is found, so that one message tells its author all of them."""

from dataclasses import fields

import yaml

import overpaint
from overpaint.grid.registry import DESCRIPTION, component, components, construct

#: Kind of a component -> keys that its YAML must have, beside one for each field of its class.
REQUIRED = {
    "detector": ("name", "component", "summary", "paper"),
    "method": ("name", "component", "summary", "paper", "status", "preset", "presets"),
    "attack": ("name", "component", "summary", "paper", "status", "preset", "presets", "control"),
}


def faults(kind: str, name: str) -> list[str]:
    """One sentence for everything that is missing or wrong in ``conf/<kind>/<name>.yaml``."""
    text = components(kind)[name].read_text(encoding="utf-8")
    config, chosen = yaml.safe_load(text), component(kind, name)
    found = [f"it has no key '{key}'" for key in REQUIRED[kind] if key not in config]
    if config.get("name", name) != name:
        found.append(f"its name is {config['name']!r}")
    if not config.get("summary"):
        found.append("its summary is empty")
    parameters = {f.name for f in fields(chosen.load())} - {"seed"}
    found += [f"it has no key '{key}', a field of its class" for key in sorted(parameters - config.keys())]
    found += [f"'{key}' is no field of its class" for key in sorted(config.keys() - parameters - {*DESCRIPTION})]
    for key in sorted(parameters & config.keys()):
        if not any(line.startswith(f"{key}:") and " # " in line for line in text.splitlines()):
            found.append(f"'{key}' has no comment")
    for preset in (None, *(config.get("presets") or {})):
        try:
            construct(chosen.load(), chosen.settle({}, preset), name)
        except overpaint.UserError as error:
            found.append(f"preset {preset} cannot be built: {error}")
    return found
