"""The source code of components, so that a changed component is noticed. Files are read and parsed; no code is run.

The source of a component of another package covers its module and every module that it imports inside its top-level package
or, for a module without a package, inside its folder. It is part of task keys. The source of a component of this package is
recorded in a git checkout only, and covers its module and those that it imports from its own room and from ``blocks``. It is
not part of keys, because these components have a ``version``.

Comments, docstrings and formatting do not count. Modules that are imported by a computed name, and data files, are not seen.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, resolve_name
from pathlib import Path

#: Ending of the source of one of our components whose files differ from the last commit.
DRAFT = "-dirty"
#: Nodes of a syntax tree that may have a docstring.
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def source_of(*references: str) -> str:
    """``module@hash`` of the code behind ``module:attribute``; empty for a component of this package outside a checkout.

    Several references make one source, ``first+second@hash``, in which modules of this package count only if all are. A
    process computes it once, because the code that it has imported does not change either.
    """
    named = sorted({reference.partition(":")[0] for reference in references})
    modules = [module for module in named if not is_ours(module)] or named
    ours = is_ours(modules[0])
    if ours and not _checkout():
        return ""
    files = {name: file for module in modules for name, file in _files(module, _inside(module)).items()}
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\n{_parsed(files[name])[0]}\n".encode())
    draft = DRAFT if ours and not _uncommitted().isdisjoint(files.values()) else ""
    return f"{'+'.join(modules)}@{digest.hexdigest()[:12]}{draft}"


def is_ours(source: str) -> bool:
    """Whether a module, a reference or a source belongs to this package."""
    return source.startswith("overpaint.")


def source_now(source: str) -> str:
    """The source of the same modules as this process finds them."""
    return source_of(*source.partition("@")[0].split("+"))


def _inside(module: str) -> Callable[[str], bool]:
    """Which modules belong to the source of this one."""
    root = module.partition(".")[0]
    if is_ours(module):
        rooms = (".".join(module.split(".")[:2]), "overpaint.blocks")
        return lambda name: any(name == room or name.startswith(f"{room}.") for room in rooms)
    if _locations(_spec(root)):
        return lambda name: name.partition(".")[0] == root
    folder = _folder(root)
    return lambda name: not is_ours(f"{name}.") and _folder(name.partition(".")[0]) == folder


def _files(module: str, inside: Callable[[str], bool]) -> dict[str, Path]:
    """The files of a module and of all modules that it imports, directly or indirectly, by name."""
    waiting, seen, found = [module], set(), {}
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        for known in (".".join(parts[: n + 1]) for n in range(len(parts))):
            if known in seen or not inside(known):
                continue
            seen.add(known)
            spec = _spec(known)
            if spec and spec.has_location and spec.origin and Path(spec.origin).is_file():
                found[known] = Path(spec.origin).resolve()
                package = known if _locations(spec) else known.rpartition(".")[0]
                waiting += _absolute(_parsed(found[known])[1], package)
    return found


def _spec(module: str) -> ModuleSpec | None:
    """Where a module is. Its parent packages are not imported."""
    parent, _, _ = module.rpartition(".")
    if parent:
        places = _locations(_spec(parent))
        specs = (finder.find_spec(module, places) for finder in sys.meta_path) if places else ()
        return next(filter(None, specs), None)
    try:
        return find_spec(module)
    except ValueError:  # a module that runs as a script has no spec
        return None


def _locations(spec: ModuleSpec | None) -> list[str]:
    """The folders of a package; empty for a plain module."""
    return list((spec and spec.submodule_search_locations) or ())


def _folder(root: str) -> Path | None:
    """The folder that holds a top-level module or package."""
    spec = _spec(root)
    place = next(iter(_locations(spec)), spec.origin if spec and spec.has_location else None)
    return Path(place).resolve().parent if place else None


def _absolute(imported: tuple[tuple[int, str], ...], package: str) -> Iterator[str]:
    """Full names of imported modules. Names that turn out to be no modules are ignored later."""
    for level, name in imported:
        try:
            yield resolve_name("." * level + name, package)
        except ImportError:  # beyond the top-level package
            continue


@cache
def _parsed(file: Path) -> tuple[str, tuple[tuple[int, str], ...]]:
    """A hash of a file's code, and what it imports: the number of leading dots, and the name after them."""
    content = file.read_bytes()
    try:
        with warnings.catch_warnings(action="ignore"):  # importing the module shows them
            tree = ast.parse(content)
        imported: list[tuple[int, str]] = []
        return hashlib.sha256(repr(_plain(tree, imported)).encode()).hexdigest(), tuple(imported)
    except (SyntaxError, ValueError, RecursionError):  # an extension module, or more than Python can parse
        return hashlib.sha256(content).hexdigest(), ()


def _plain(node: object, imported: list[tuple[int, str]]) -> object:
    """A syntax tree as nested lists, the same for all versions of Python: fields without a value and docstrings are left out.

    What the tree imports is added to ``imported``.
    """
    if isinstance(node, ast.AST):
        if isinstance(node, ast.Import):
            imported += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            imported += [(node.level, f"{base}.{alias.name}".lstrip(".")) for alias in node.names]
        elif isinstance(node, DOCUMENTED) and _is_docstring(node.body[0] if node.body else None):
            del node.body[0]
        fields = [(name, value) for name in node._fields if (value := getattr(node, name, None)) is not None]
        return [type(node).__name__, *[(name, _plain(value, imported)) for name, value in fields if value != []]]
    return [_plain(part, imported) for part in node] if isinstance(node, list) else repr(node)


def _is_docstring(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def _checkout() -> Path | None:
    """The folder of the git checkout that this package runs from, if any."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / ".git").exists() else None


@cache
def _uncommitted() -> frozenset[Path]:
    """The files of this package that differ from the last commit; none if git cannot tell."""
    folder, package = _checkout(), Path(__file__).resolve().parents[1]
    command = [
        "git",
        "--no-optional-locks",
        "status",
        "--porcelain",
        "-z",
        "--no-renames",
        "--untracked-files=all",
        "--",
    ]
    places = [str(package), str((package / "methods").resolve())]  # a link
    try:
        done = subprocess.run([*command, *places], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset((folder / line[3:]).resolve() for line in done.stdout.split("\0") if folder and line)
