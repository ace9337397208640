"""Untrusted YAML files: they are read within limits, and errors are reported in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from overpaint.errors import UserError
from overpaint.grid.typed import shown

#: Limits: the size of a file in bytes, and the number of values after expansion of its aliases.
LARGEST, MOST_VALUES = 8 << 20, 200_000
#: Types of values.
PLAIN = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
#: An interpolation that runs a resolver, such as ``${oc.env:HOME}``; ``${seed}`` only refers to another value.
RESOLVER = re.compile(r"\$\{[^${}]*:")


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """Loads plain values only. Numbers follow Hydra's rules (``1e-4`` is a number); dates stay strings."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path, what: str) -> Any:
    """The value in a YAML file; ``None`` for an empty file. Error messages start with ``what``: ``method=mine``.

    Raises:
        UserError: if the file cannot be read, is not YAML, contains a key twice, or has aliases that expand to more than
            `MOST_VALUES` values.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{what}: {path} is larger than {LARGEST >> 20} MiB")
        loader = _Loader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > MOST_VALUES:
            raise UserError(f"{what}: {path} expands to more than {MOST_VALUES} values by its aliases")
        return loader.construct_document(node)
    except UnicodeDecodeError:
        raise UserError(f"{what}: {path} is not a text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{what}: {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{what}: {path} is not YAML: {_problem(error)}") from None


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises a `UserError` if it holds something else or a key that is not a string."""
    found = read_yaml(path, what)
    if not isinstance(found, dict):
        given = "is empty" if found is None else f"holds a {'list' if isinstance(found, list) else 'single value'}"
        raise UserError(f"{what}: {path} {given}; it takes a mapping (key: value)")
    for key in found:
        if not isinstance(key, str):
            raise UserError(f"{what}: {path} has the key {shown(key)}, which is not a text; quote it")
    return found


def refuse_resolvers(value: Any, where: str) -> None:
    """Raise a `UserError` if a string inside ``value`` would run a resolver, which could read the environment."""
    if isinstance(value, str) and RESOLVER.search(value):
        raise UserError(f"{where}: {value!r} runs a resolver; only references to other keys, ${{key}}, are allowed")
    if isinstance(value, Mapping):
        for key, inside in value.items():
            refuse_resolvers(key, where)
            refuse_resolvers(inside, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for inside in value:
            refuse_resolvers(inside, where)


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values of a node after expansion of its aliases. Raises an error for a repeated key or another type."""
    if node.tag.removeprefix("tag:yaml.org,2002:") not in PLAIN:
        raise yaml.MarkedYAMLError(problem=f"the tag {node.tag} is not allowed", problem_mark=node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.MarkedYAMLError(problem="an alias that holds itself", problem_mark=node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
    parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    total = 1
    for part in parts:
        total += _values(part, known)
        if total > MOST_VALUES:
            break
    known[id(node)] = total
    return total


def _problem(error: Exception) -> str:
    """The parser's message with the line number, without its excerpt of the file."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return " ".join(str(problem).split()) + (f" (line {mark.line + 1})" if mark else "")
