"""Moving artefacts between stores: from another store's folder, or from one archive file that `pack` wrote.

An archive is a plain tar file: ``artefacts/<stage>/<key>/<file>`` as in a store, each artefact's manifest first, and
``sources.json``. Contents are compressed already. Every artefact is copied into a workspace, its files are hashed there, and one
rename publishes it, so an interruption leaves no incomplete artefact.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from overpaint.errors import UserError
from overpaint.run.history import SOURCES, History
from overpaint.run.progress import announce, steps
from overpaint.run.store import MANIFEST, UNWRITABLE, Damage, Store, read_manifest

#: A stage or a key in an archive.
NAME = re.compile(r"\w[\w.-]*")
#: Largest ``sources.json`` and manifest that are read from an archive.
LARGEST = 1 << 26


@dataclass
class Moved:
    """The result of a move: how many artefacts were copied, how many were there already, and which are damaged."""

    copied: int = 0
    there: int = 0
    damaged: list[Damage] = field(default_factory=list)


def pack(store: Store, file: Path, keys: Mapping[str, Collection[str]]) -> Moved:
    """Write the artefacts with these keys, by stage, into one archive. Equal artefacts give equal archives."""
    moved = Moved()
    with tarfile.open(file, "w") as archive:
        sources = json.dumps(History(store).all, sort_keys=True).encode()
        archive.addfile(_member(SOURCES, len(sources)), io.BytesIO(sources))
        for stage, chosen in sorted(keys.items()):
            for _, key in zip(steps(len(chosen), f"{stage} artefacts"), sorted(chosen), strict=True):
                reason = store.damage(stage, key)
                if reason:
                    moved.damaged.append(Damage(stage, key, reason))
                    continue
                folder = store.path(stage, key)
                for name in [MANIFEST, *sorted(read_manifest(folder)["files"])]:
                    with (folder / name).open("rb") as content:
                        size = (folder / name).stat().st_size
                        archive.addfile(_member(f"artefacts/{stage}/{key}/{name}", size), content)
                moved.copied += 1
                archive.members.clear()  # type: ignore[attr-defined]  # or a million members would stay in memory
    return moved


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def merge(store: Store, source: Path) -> Moved:
    """Copy what a store lacks from another store or from an archive. Damaged artefacts are left out; ours are kept.

    Raises a `UserError` if ``source`` is neither, or the archive ends early; what was copied by then stays.
    """
    moved = Moved()
    try:
        if source.is_dir():
            _merge_folder(store, Store(source), moved)
        else:
            _merge_archive(store, source, moved)
    except OSError as error:
        full = error if error.errno in UNWRITABLE else store.disk_error(error)  # a merge writes nowhere else
        if full:
            raise store.unwritable(full) from error
        raise UserError(f"cannot read {source}: {error.strerror or error}") from error
    return moved


def _merge_folder(store: Store, other: Store, moved: Moved) -> None:
    if not (other.root / "artefacts").is_dir():
        raise UserError(f"{other.root} is no store: it has no folder artefacts")
    if other.root.resolve() == store.root.resolve():
        raise UserError(f"{other.root} is the store itself")
    for stage in other.stages():
        listing = other.listed(stage)
        moved.damaged += [Damage(stage, key, reason) for key, reason in listing.damaged.items()]
        for _, key in zip(steps(len(listing.keys), f"{stage} artefacts"), sorted(listing.keys), strict=True):
            source = other.path(stage, key)

            def fill(folder: Path, source: Path = source) -> None:
                for name in [MANIFEST, *read_manifest(source)["files"]]:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / name, folder / name)

            _take(store, stage, key, fill, moved)
    History(store).add_older(History(other).all)


def _merge_archive(store: Store, file: Path, moved: Moved) -> None:
    try:
        with tarfile.open(file, "r:") as archive:
            for place, members in groupby(_members(archive, file), key=lambda found: found[0]):
                announce(archive.offset, file.stat().st_size, "bytes")
                parts = [(PurePosixPath(*path), member) for (_, path, member) in members]
                if place is None:
                    content = archive.extractfile(parts[0][1])
                    History(store).add_older(History.parsed(content.read(LARGEST) if content else b""))
                    continue

                def fill(folder: Path, parts: list = parts) -> None:
                    for path, member in parts:
                        (folder / path).parent.mkdir(parents=True, exist_ok=True)
                        content = archive.extractfile(member)
                        if content:
                            with (folder / path).open("xb") as target:
                                shutil.copyfileobj(content, target)

                stage, key = place
                _take(store, stage, key, fill, moved)
            _check_end(archive)
    except tarfile.TarError as error:
        if not moved.copied and not moved.there:
            raise UserError(f"{file} is neither a store nor an archive of overpaint store pack ({error})") from error
        raise UserError(
            f"{file} is cut or damaged ({error}); {moved.copied} of its artefacts were copied and stay"
        ) from error


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise a `tarfile.TarError` if the archive was cut after its last member. Reading stops there without an error."""
    file: Any = archive.fileobj
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("unexpected end of data")


#: Stage and key of a member (``None``: it belongs to the store as a whole), its path in there, and the member.
Member = tuple[tuple[str, str] | None, tuple[str, ...], tarfile.TarInfo]


def _members(archive: tarfile.TarFile, file: Path) -> Iterator[Member]:
    """The members of an archive. Raises a `UserError` for one that `pack` never writes, such as a link or a path upwards."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # or a million members would stay in memory
        parts = tuple(member.name.split("/"))
        inside = not {"", ".", ".."} & {*parts} and "\0" not in member.name
        if member.isreg() and member.name == SOURCES:
            yield None, parts, member
        elif (
            member.isreg()
            and inside
            and len(parts) > 3
            and parts[0] == "artefacts"
            and all(map(NAME.fullmatch, parts[1:3]))
        ):
            yield (parts[1], parts[2]), parts[3:], member
        else:
            raise UserError(f"{file} holds {member.name!r}, which no archive of overpaint store pack holds")


def _take(store: Store, stage: str, key: str, fill: Callable[[Path], None], moved: Moved) -> None:
    """Publish an artefact that ``fill`` copies into an empty folder, if the store lacks it and the copy is whole."""
    if store.has(stage, key):
        moved.there += 1
        return
    with store.workspace() as workspace:
        copy = Store(workspace)
        folder = copy.path(stage, key)
        folder.mkdir(parents=True)
        incomplete = FileNotFoundError, FileExistsError, ValueError, KeyError, TypeError
        with suppress(*incomplete):  # the check says what is wrong
            fill(folder)
        reason = copy.damage(stage, key)
        if reason:
            moved.damaged.append(Damage(stage, key, reason))
        else:
            store.place(stage, key, folder)
            moved.copied += 1
