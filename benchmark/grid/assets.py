"""Assets: weights and prompt files that other projects publish. Each is one YAML of ``conf/asset``; `overpaint fetch` gets them.

A setting names an asset as ``asset:NAME`` (its folder) or ``asset:NAME/FILE`` (one of its files). An asset is a folder of one
cache, ``$OVERPAINT_ASSETS`` or the platform's. A receipt in the folder holds the SHA-256 of every file as it was downloaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from typing_extensions import TypedDict

from overpaint.errors import AssetMissing, UserError, unknown
from overpaint.grid.digests import digest, file_digest
from overpaint.grid.read_once import remembered
from overpaint.grid.registry import component, components, conf_folders
from overpaint.grid.typed import Count, checked, construct

#: The file in an asset's folder that lists its files with their hashes. It is written last.
RECEIPT = "asset.json"
#: What a receipt says of each file, among other things.
RECEIVED = {"sha256", "stored_bytes"}
#: How settings refer to an asset: the folder, or one file.
REFERENCE = re.compile(r"asset:([\w.-]+)(?:/(.+))?")
#: Kinds of sources: a repository of the hub, files below a URL, a page to download from by hand, a Python package.
SOURCES = re.compile(r"hub:(datasets/)?[\w.-]+/[\w.-]+@[\w./-]+|https?://\S+|page:https?://\S+|package:[A-Za-z_]\w*")
#: Suffixes of pickled checkpoints. `overpaint fetch` stores their tensors as safetensors instead.
PICKLES = (".bin", ".ckpt", ".p", ".pkl", ".pt", ".pth")


class FileEntry(TypedDict, total=False):
    """One file of an asset. Without ``sha256``, the first download is trusted and its hash recorded."""

    sha256: str | None
    bytes: Count | None
    url: str  # where the file is, if it is not below the asset's source
    member: str  # the file's name inside the tar archive at ``url``


@dataclass(frozen=True)
class Asset:
    """Published files that components use.

    Attributes:
        source: ``hub:owner/name@revision`` (``hub:datasets/owner/name@revision`` for data), a URL that the names of files are
            appended to, ``page:URL`` for files that a person has to download, or ``package:NAME`` for files in a package.
        files: SHA-256 and size of each file by name.
        licence: the licence of the files, as their authors state it.
        purpose: the components that use them.
    """

    name: str
    summary: str
    source: str
    files: dict[str, dict[str, Any]]
    licence: str
    purpose: str

    def __post_init__(self):
        where = f"asset={self.name}"
        if not SOURCES.fullmatch(self.source):
            raise UserError(
                f"{where}: source takes hub:owner/name@revision, https://…, page:https://… or package:NAME, got {self.source!r}"
            )
        if not self.files or len(set(map(stored_name, self.files))) < len(self.files):
            raise UserError(f"{where}: files takes at least one file, and each under a name of its own")
        for name, entry in self.files.items():
            parts = PurePosixPath(name).parts
            if not parts or name == RECEIPT or name.startswith("/") or any(part in ("..", ".") for part in parts):
                raise UserError(f"{where}: files names {name!r}, which is not a path inside the asset's folder")
            sha256 = checked(FileEntry, entry, f"{where}: file {name}").get("sha256")
            if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
                raise UserError(f"{where}: file {name}: sha256 takes 64 hexadecimal digits or null, got {sha256!r}")

    @property
    def package(self) -> str | None:
        """The Python package that ships the files, if one does."""
        return self.source.removeprefix("package:") if self.source.startswith("package:") else None

    @property
    def bytes(self) -> int | None:
        """The size of all files; ``None`` if the size of one is unknown."""
        sizes = [entry.get("bytes") for entry in self.files.values()]
        return None if None in sizes else sum(size for size in sizes if size)

    @property
    def command(self) -> str:
        """The command that gets the asset."""
        return f"pip install {self.package}" if self.package else f"overpaint fetch asset={self.name}"

    @property
    def folder(self) -> Path:
        """Where the files are or will be."""
        if self.package:
            spec = find_spec(self.package)
            return Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else Path(self.package)
        return cache_folder() / self.name

    def path(self) -> Path:
        """The folder with the files. Raises `AssetMissing`, with the command that gets them, if one is missing."""
        said = self.absence
        if said:
            raise AssetMissing(said, self.name)
        return self.folder

    def file(self, name: str) -> Path:
        """The file of that name. A pickled checkpoint's path is that of its tensors in safetensors."""
        self.check_file(name)
        return self.path() / (name if self.package else stored_name(name))

    def check_file(self, name: str) -> None:
        """Raise a `UserError` if the asset has no file of that name."""
        if name not in self.files:
            raise unknown("file", name, self.files, f"asset={self.name}")

    def present(self) -> bool:
        """Whether all files are on this machine."""
        return not self._problem()

    @property
    def absence(self) -> str:
        """A sentence with the command that gets the asset, if it is not on this machine; else an empty string."""
        problem = self._problem()
        return f"asset={self.name} ({self.summary}) {problem}; get it with: {self.command}" if problem else ""

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of every file as it was published, by name. Raises `AssetMissing` if one is missing."""
        folder = self.path()
        if self.package:
            return {name: str(file_digest(str(folder / name))) for name in self.files}
        return {name: _receipt(folder)["files"][name]["sha256"] for name in self.files}

    def known_hashes(self) -> dict[str, str | None]:
        """`hashes`; of an asset that is not on this machine, those that its YAML gives."""
        return dict(self.hashes() if self.present() else {n: entry.get("sha256") for n, entry in self.files.items()})

    def _problem(self) -> str:
        """Why the asset cannot be used, as the end of a sentence; empty if it can."""
        if self.package:
            return self._package_problem()
        receipt = _receipt(self.folder)
        if not receipt:
            return f"is not in {cache_folder()}"
        if receipt.get("source") != self.source:
            return f"is in {cache_folder()} from another source ({receipt.get('source')})"
        for name, entry in self.files.items():
            known, stored = receipt["files"].get(name), self.folder / stored_name(name)
            if not known or not stored.is_file() or stored.stat().st_size != known["stored_bytes"]:
                return f"lacks {name} in {self.folder}"
            if entry.get("sha256") not in (None, known["sha256"]):
                return f"has another {name} in {self.folder}"
        return ""

    def _package_problem(self) -> str:
        if not find_spec(str(self.package)):
            return f"is in the package {self.package}, which is not installed"
        for name, entry in self.files.items():
            found = file_digest(str(self.folder / name))
            if found is None:
                return f"is not in the installed package {self.package}, which lacks {name}"
            if entry.get("sha256") not in (None, found):
                return f"is another file in the installed version of the package {self.package} ({name})"
        return ""


def asset(name: str) -> Asset:
    """The asset of that name. Raises a `UserError` for an unknown name or an unusable YAML file."""
    path = components("asset").get(name)
    return _asset(name, path.stat().st_mtime_ns if path and path.exists() else None, conf_folders())


@lru_cache(maxsize=256)
def _asset(name: str, changed: int | None, folders: tuple[Path, ...]) -> Asset:
    """`asset`, read once: each cell of a grid asks for the same ones. ``changed`` and ``folders`` are the key of the cache."""
    return construct(Asset, {**component("asset", name).config, "name": name}, f"asset={name}")


def cache_folder() -> Path:
    """The folder of all assets: ``$OVERPAINT_ASSETS``, else one in the platform's cache folder."""
    asked = os.environ.get("OVERPAINT_ASSETS")
    if asked:
        return Path(asked).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("overpaint") / "assets"


def stored_name(name: str) -> str:
    """The name under which a file is stored: a pickled checkpoint's is that of its tensors in safetensors."""
    path = PurePosixPath(name)
    if path.suffix not in PICKLES:
        return name
    return str(path.with_name("model.safetensors" if path.stem == "pytorch_model" else f"{path.stem}.safetensors"))


def _receipt(folder: Path) -> dict[str, Any]:
    """The receipt in an asset's folder; empty if there is none that can be used."""
    try:
        found = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    files = found.get("files") if isinstance(found, dict) else None
    whole = isinstance(files, dict) and all(isinstance(e, dict) and e.keys() >= RECEIVED for e in files.values())
    return found if whole else {}


def referred(value: Any) -> list[str]:
    """The names of the assets that a setting refers to, inside mappings and lists too."""
    if isinstance(value, str):
        found = REFERENCE.fullmatch(value)
        return [found[1]] if found else []
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple | set | frozenset):
        return []
    return list(dict.fromkeys(name for inside in value for name in referred(inside)))


def located(text: str) -> Path | None:
    """The path behind ``asset:NAME`` or ``asset:NAME/FILE``; ``None`` for another text. Raises `AssetMissing`."""
    found = REFERENCE.fullmatch(text)
    if not found:
        return None
    chosen = asset(found[1])
    return chosen.file(found[2]) if found[2] else chosen.path()


@remembered
def content_digest(text: str) -> str | None:
    """A hash of the content behind a text: of a file, or of an asset's files; ``None`` for another text.

    It does not depend on where the files are. An asset need not be on this machine: its YAML gives the hashes of its files.
    ``None`` for one of its files whose hash is known after the download only.
    """
    found = REFERENCE.fullmatch(text)
    if not found:
        return file_digest(text)
    chosen = asset(found[1])
    if found[2]:
        chosen.check_file(found[2])
    hashes = chosen.known_hashes()
    return hashes[found[2]] if found[2] else digest(hashes)


def absent(names: Iterable[str]) -> list[Asset]:
    """Those of these assets that are not on this machine."""
    return [chosen for chosen in map(asset, dict.fromkeys(names)) if not chosen.present()]


def require(names: Iterable[str]) -> None:
    """Raise `AssetMissing`, with the command that gets all of them, if one of these assets is missing."""
    missing = absent(names)
    if len(missing) == 1:
        missing[0].path()
    if missing:
        fetched = ",".join(chosen.name for chosen in missing if not chosen.package)
        commands = [chosen.command for chosen in missing if chosen.package]
        commands += [f"overpaint fetch asset={fetched}"] if fetched else []
        named = [chosen.name for chosen in missing]
        raise AssetMissing(f"the assets {', '.join(named)} are missing; get them with: {' && '.join(commands)}", *named)
