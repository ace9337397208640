"""The content-addressed folder of results. One atomic rename publishes an artefact; readers never see half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

from filelock import FileLock, Timeout

from overpaint.errors import UserError, message
from overpaint.grid.paths import path_of, permit
from overpaint.grid.typed import check_type, shown
from overpaint.run import leases
from overpaint.run.index import LAYOUT, Entry, Index
from overpaint.run.notes import beating, file_system_time, living, temporary
from overpaint.run.progress import steps

MANIFEST = "manifest.json"
#: Seconds to wait for another process that rewrites a file of the store.
PATIENCE = 30
#: Format of the manifests that this version writes; it reads this and older ones. Manifests of version 0.1 have none.
FORMAT = 1
#: Folders of a store.
FOLDERS = ("artefacts", "index", "tmp", "locks", "leases", "failures", "corrupt")
#: A stage's index is written again if it lacks this many artefacts, and 5 %. Fewer are checked each time.
WORTH_WRITING = 200
#: Keys are looked up one by one if they are fewer than this, or at most this share of a stage's artefacts.
FEW, SHARE = 50, 0.05
#: Threads that check artefacts: a network file system takes milliseconds to answer, and answers many at once.
CHECKING = 8
#: Files up to this many bytes are hashed on every reading; larger ones when they are written and when damage is suspected.
SMALL = 1 << 20
#: Errors of the operating system that say that the store takes no more data.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: Free bytes below which a store counts as full when something has found a full disk. Its files are gone again by then.
ROOM = 10 << 30
#: Numbers of an `OSError` that say that there is no such file, or (no number) that a parser cannot read it.
NO_FILE = (None, errno.ENOENT, errno.EISDIR)
#: Errors of the operating system about names that this package never writes.
NEVER_WRITTEN = (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR)


#: Says what is wrong with the contents of the artefact of this key, or ``None``.
Contents: TypeAlias = "Callable[[Store, str], str | None]"


class CorruptArtefact(UserError):
    """An artefact whose files do not match its manifest. Reading leaves it in place; `Store.make_room` moves it."""

    def __init__(self, stage: str, key: str, reason: str):
        super().__init__(
            f"artefact {stage}/{key} is damaged ({reason}); the `overpaint run` that made it makes it again, and "
            f"`overpaint store verify {stage} --set-aside` moves it away"
        )
        self.stage, self.key = stage, key


@dataclass(frozen=True)
class Listing:
    """The artefacts of a stage at one moment: ``keys`` of whole ones, and what is wrong with others (``damaged``)."""

    store: Store
    stage: str
    keys: set[str]
    damaged: Mapping[str, str]
    index: Index

    def column(self, name: str) -> dict[str, Any]:
        """A field of `overpaint.run.index.Entry` of every whole artefact, by key."""
        found = self.index.column(name)
        lost = self.keys - found.keys()  # in a part of the index that cannot be read
        self.index.add(Entry.of(key, 0, self.store.manifest(self.stage, key)) for key in lost)
        return found.copy() if len(found) == len(self.keys) else {key: found[key] for key in self.keys}


class Damage(NamedTuple):
    """A damaged artefact and what is wrong with it."""

    stage: str
    key: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """A task's last failure: the run it belongs to, and how often the task has failed since it last succeeded."""

    task: str
    run: str
    attempt: int
    traceback: str

    @property
    def mark(self) -> tuple[str, int]:
        """The run and the attempt, which distinguish one failure of a task from the next."""
        return self.run, self.attempt

    @property
    def reason(self) -> str:
        """The last line of the traceback: the error. An error that the user can fix is its sentence alone."""
        last = next((line.strip() for line in reversed(self.traceback.splitlines()) if line.strip()), "")
        return re.sub(r"^overpaint\.errors\.\w+: ", "", last)


def read_manifest(folder: Path) -> dict:
    """The manifest of an artefact's folder. Raises a `ValueError` if it is not a JSON object in a regular file."""
    file = folder / MANIFEST
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is not a regular file")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not a JSON object")
    return found


class Store:
    """``ROOT/artefacts/<stage>/<key>/`` with a ``manifest.json`` each; ``tmp``, ``locks``, ``failures`` and ``corrupt``
    lie beside it.

    The manifest makes an artefact whole: it lists every file with its size and hash. Locks only save work. Correctness
    with two processes on one key rests on the rename alone.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().absolute()
        self._indices: dict[str, Index] = {}

    @classmethod
    def chosen(cls, root: str | None) -> Store:
        """The store that a command works on: the given folder, else ``$OVERPAINT_STORE``, else ``./outputs``.

        Raises a `UserError` if there is no folder by that name and there cannot be one.
        """
        check_type(root, str | None, "store")
        if root == "":
            raise UserError("store is empty: give the folder of a store, or leave store= out")
        chosen = root or os.environ.get("OVERPAINT_STORE") or "outputs"
        key = "OVERPAINT_STORE" if not root and os.environ.get("OVERPAINT_STORE") else "store"
        place = path_of(chosen, key)
        existing = next(folder for folder in (place, *place.parents) if os.path.lexists(folder))
        for folder in (existing, *(place / name for name in FOLDERS)):
            if os.path.lexists(folder) and not folder.is_dir():
                raise UserError(f"{key}={chosen}: {folder} is not a folder")
        return cls(place)

    def prepare(self) -> None:
        """Make the folders. Raises a `UserError` if the store cannot be written to."""
        try:
            for name in FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe = self._temporary()
            probe.write_text("", encoding="utf-8")
            probe.unlink()
        except OSError as error:
            raise self.unwritable(error) from error

    def unwritable(self, error: OSError) -> UserError:
        """The error for a full disk or a store without write permission."""
        return UserError(f"cannot write to the store {self.root}: {error.strerror or error}")

    def disk_error(self, error: BaseException) -> OSError | None:
        """The full disk, read-only or vanished file system of this store behind an exception, if that is its cause.

        Libraries with their own input and output code say so in words only. Errors about files elsewhere do not count, nor do
        errors without a file name while the store itself has room: a cache or the system's temporary folder is full.
        """
        if not (self.root / "tmp").is_dir():
            return OSError(errno.ENOENT, "its folders are gone")
        chain, seen = [error], error.__cause__ or error.__context__
        while seen and seen not in chain:
            chain.append(seen)
            seen = seen.__cause__ or seen.__context__
        for link in chain:
            if isinstance(link, OSError) and link.errno in UNWRITABLE:
                return link if self._mine(link.filename) else None
        full = os.strerror(errno.ENOSPC)
        said = any(full in message(link) for link in chain)
        return OSError(errno.ENOSPC, full) if said and self._mine(None) else None

    def _mine(self, file: object) -> bool:
        if isinstance(file, str | os.PathLike):
            return Path(file).absolute().is_relative_to(self.root)
        return not self._has_room()

    def _has_room(self) -> bool:
        """Whether the store takes data, also as much as a large model has."""
        probe = self._temporary()
        try:
            probe.write_bytes(bytes(1 << 20))
            return shutil.disk_usage(self.root).free > ROOM
        except OSError:
            return False
        finally:
            with suppress(OSError):
                probe.unlink()

    def path(self, stage: str, key: str) -> Path:
        """The folder of an artefact, whether it is there or not."""
        return self.root / "artefacts" / stage / key

    def has(self, stage: str, key: str) -> bool:
        """Whether the artefact is there with every file at its full size."""
        return self.path(stage, key).exists() and not self.damage(stage, key, hash_up_to=-1)

    def stored(self, stage: str, keys: Iterable[str]) -> set[str]:
        """Those of the keys that `has`; of many keys in one look at the stage's folder (`present`)."""
        asked = set(keys)
        if len(asked) >= FEW and len(asked) > SHARE * len(self._index(stage).column("changed")):
            return asked & self.present(stage)
        with ThreadPoolExecutor(CHECKING) as threads:
            whole = threads.map(lambda key: self.has(stage, key), asked)
            return {key for key, is_whole in zip(asked, whole, strict=True) if is_whole}

    def _index(self, stage: str) -> Index:
        return self._indices.setdefault(stage, Index(self.root / "index" / f"{stage}.{LAYOUT}.parquet"))

    def present(self, stage: str) -> set[str]:
        """The keys of a stage's whole artefacts.

        A file whose size was changed in place after it was checked once is found when it is read.
        """
        return self.listed(stage).keys

    def listed(self, stage: str) -> Listing:
        """The whole artefacts of a stage, from the names and times of its folders, the index, and a check of what is new."""
        index = self._index(stage)
        there, known = self._folders(stage), index.column("changed")
        new = [key for key, changed in there.items() if known.get(key) != changed]
        with ThreadPoolExecutor(CHECKING) as threads:
            checked = dict(zip(new, threads.map(lambda key: self._checked(stage, key), new), strict=True))
        index.add(Entry.of(key, there[key], m) for key, (reason, m) in checked.items() if reason is None)
        if len(index.added) >= max(WORTH_WRITING, len(there) // 20):
            with suppress(OSError):  # a full disk, or a store of somebody else: the next one checks again
                index.file.parent.mkdir(exist_ok=True)
                self.write(index.file, index.content(there.__contains__))
                index.written()
        damaged = {key: reason for key, (reason, _) in checked.items() if reason is not None}
        return Listing(self, stage, there.keys() - damaged.keys(), damaged, index)

    def stages(self) -> list[str]:
        """The stages that have a folder of artefacts."""
        artefacts = self.root / "artefacts"
        return sorted(place.name for place in artefacts.iterdir() if place.is_dir()) if artefacts.is_dir() else []

    def _folders(self, stage: str) -> dict[str, int]:
        """The times of change of a stage's folders by name."""
        try:
            with os.scandir(self.root / "artefacts" / stage) as places:
                return {place.name: time_ for place in places if (time_ := _time_of_change(place)) is not None}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    def manifest(self, stage: str, key: str) -> dict:
        """What is written about the artefact: configuration, versions, inputs, host, cost."""
        try:
            return read_manifest(self.path(stage, key))
        except (FileNotFoundError, ValueError):
            raise CorruptArtefact(stage, key, "unreadable manifest") from None

    def read(self, stage: str, key: str) -> Path:
        """The artefact's folder after a check of every file's size, and of the hash of small files."""
        reason = self.damage(stage, key, hash_up_to=SMALL)
        if reason:
            raise CorruptArtefact(stage, key, reason)
        return self.path(stage, key)

    @contextmanager
    def reading(self, stage: str, key: str) -> Iterator[Path]:
        """The folder as `read` gives it, for a block that parses its files; what cannot be parsed is a `CorruptArtefact`."""
        folder = self.read(stage, key)
        try:
            yield folder
        except (ValueError, RecursionError, NotImplementedError, OSError) as error:
            self.suspect(stage, key)
            if isinstance(error, OSError) and error.errno not in NO_FILE:
                raise
            reason = next(iter(str(error).splitlines()), "")
            raise CorruptArtefact(stage, key, f"{type(error).__name__}: {reason}") from error

    def suspect(self, stage: str, key: str) -> None:
        """Hash every file of an artefact; raises `CorruptArtefact` if it is damaged."""
        reason = self.damage(stage, key)
        if reason:
            raise CorruptArtefact(stage, key, reason)

    def verify(self, stage: str | None = None, contents: Mapping[str, Contents] | None = None) -> Iterator[Damage]:
        """Hash every file of every artefact, of one stage or of all. Yields the damaged ones as they are found; moves none.

        ``contents`` also checks whole artefacts of a stage: a function of the store and a key that says what is wrong.
        """
        threads = ThreadPoolExecutor(CHECKING)
        try:
            for name in [stage] if stage else self.stages():
                keys = sorted(self._folders(name))
                check = (contents or {}).get(name)
                reasons = threads.map(self._verified, [name] * len(keys), keys, [check] * len(keys))
                for _, key, reason in zip(steps(len(keys), f"{name} artefacts"), keys, reasons, strict=True):
                    if reason:
                        yield Damage(name, key, reason)
        finally:
            threads.shutdown(cancel_futures=True)  # those that nobody waits for any more

    def _verified(self, stage: str, key: str, check: Contents | None) -> str | None:
        return self.damage(stage, key) or (check(self, key) if check else None)

    def damage(self, stage: str, key: str, hash_up_to: float = float("inf")) -> str | None:
        """What is wrong with an artefact's files, or ``None``; files of up to ``hash_up_to`` bytes are hashed.

        Raises a `UserError` for an artefact of a newer version, which this one cannot judge.
        """
        return self._checked(stage, key, hash_up_to)[0]

    def _checked(self, stage: str, key: str, hash_up_to: float = -1) -> tuple[str | None, dict]:
        """What is wrong with an artefact's files (`damage`), and its manifest if nothing is."""
        folder = self.path(stage, key)
        try:
            manifest = read_manifest(folder)
            self._refuse_newer(stage, key, manifest)
            for name, entry in manifest["files"].items():
                if not _is_inside(name) or ((folder / name).exists() and not (folder / name).is_file()):
                    return f"its manifest names {shown(name)}, which is no file of it", {}
                size, whole = (folder / name).stat().st_size, entry["bytes"]
                if size != whole:
                    return f"{name} has {size} of {whole} bytes", {}
                if size <= hash_up_to and file_hash(folder / name) != entry["sha256"]:
                    return f"{name} does not match its hash", {}
        except (FileNotFoundError, NotADirectoryError) as error:
            return f"{Path(error.filename).name} is missing", {}
        except (ValueError, KeyError, TypeError, AttributeError):
            return "unreadable manifest", {}
        except OSError as error:
            if error.errno in NEVER_WRITTEN:
                return "unreadable manifest", {}
            # permissions, a network file system that is gone: no damage
            raise UserError(f"cannot read {error.filename or folder}: {error.strerror}") from error
        return None, manifest

    def _refuse_newer(self, stage: str, key: str, manifest: Mapping[str, Any]) -> None:
        """Raise a `UserError` if a newer version of this package wrote the manifest."""
        written = manifest.get("format", FORMAT)
        if isinstance(written, int) and written > FORMAT:
            raise UserError(
                f"artefact {stage}/{key} of {self.root} was written by a newer version of overpaint (format {written}, this "
                f"one reads up to {FORMAT}): update overpaint, or give another store"
            )

    def set_aside(self, stage: str, key: str) -> bool:
        """Move a damaged artefact into ``corrupt`` for inspection. False if the store cannot be written to."""
        target = self.root / "corrupt" / f"{stage}-{key}"
        for _ in range(10):  # another process may set the same one aside at this moment
            try:
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                self.path(stage, key).rename(target)
            except FileNotFoundError:
                return True
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                    continue
                return False
            return True
        return False

    def remove(self, stage: str, key: str) -> None:
        """Delete an artefact. Nobody sees a part of it: it leaves its place by one rename."""
        away = self._temporary()
        try:
            with suppress(FileNotFoundError):
                self.path(stage, key).rename(away)
        except OSError as error:
            raise self.unwritable(error) from error
        shutil.rmtree(away, ignore_errors=True)

    def make_room(self, damaged: CorruptArtefact) -> None:
        """Set a damaged artefact aside, so that its task runs again. Raises a `UserError` if that is not possible."""
        if not self.set_aside(damaged.stage, damaged.key):
            raise UserError(f"{damaged}, but the store cannot be written to")

    def keys(self, stage: str) -> Iterator[str]:
        """The keys of a stage's artefacts that have a manifest, whole or damaged."""
        folder = self.root / "artefacts" / stage
        if folder.is_dir():
            yield from sorted(p.name for p in folder.iterdir() if (p / MANIFEST).is_file())

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A temporary folder to make an artefact in; anything left in it disappears.

        Its name says who owns it, and it gives a sign of life every minute for other machines.
        """
        folder = self._temporary()
        try:
            folder.mkdir()
            with beating(folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed processes left: leases, locks that nobody holds, and temporary files and folders.

        An owner on this machine is gone when its process is, one on another machine after a day of silence.
        """
        now = file_system_time(self.root)
        for place in (self.root / "tmp").glob("*"):
            with suppress(OSError):  # published or removed by its owner just now
                if living(place, now):
                    continue
                if place.is_dir():
                    shutil.rmtree(place, ignore_errors=True)
                else:
                    place.unlink()
        for place in (self.root / "locks").glob("*.lock"):
            with self.claim(place.stem):  # which removes its file
                pass
        leases.sweep(self.root)

    def _temporary(self) -> Path:
        return temporary(self.root)

    def publish(self, stage: str, key: str, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Make a finished workspace the artefact of ``key`` by one rename. If another process was first, its stays."""
        files = {
            str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": file_hash(p)}
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }
        text = json.dumps({**manifest, "format": FORMAT, "files": files}, indent=1, sort_keys=True, default=str)
        with (folder / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.place(stage, key, folder)

    def place(self, stage: str, key: str, folder: Path) -> None:
        """Rename a whole folder with its manifest to the artefact of ``key``. If there is a whole one already, it stays."""
        target = self.path(stage, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        permit(folder, folder / MANIFEST)
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():
                raise
            if not self.has(stage, key):  # the existing folder is incomplete
                self.set_aside(stage, key)
                folder.rename(target)
        self.forget_failure(key)

    def write(self, path: Path, content: str | bytes) -> None:
        """Write a file of the store whole or not at all."""
        partial = self._temporary()
        try:
            with partial.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def alone(self, path: Path) -> Iterator[None]:
        """A block in which no other process reads and rewrites this file of the store; others wait, where locks work."""
        # The lock is not deleted: another process may be waiting for it.
        lock = FileLock(path.with_suffix(".lock"), fallback_to_soft=False)
        with suppress(OSError, Timeout):
            if self.root.is_dir():  # else the store is gone, and filelock would make a folder in its place
                lock.acquire(timeout=PATIENCE)
        try:
            yield
        finally:
            with suppress(OSError):
                lock.release()

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """True if this process may make ``key``; False if another one is making it now.

        The lock is the operating system's and ends with its process. Where locks do not work everybody gets the claim:
        work may be done twice, results stay right.
        """
        path = self.root / "locks" / f"{key}.lock"
        # the library's substitute for missing locks, a file, would stay when its process dies
        lock, mine = FileLock(path, fallback_to_soft=False), False
        try:
            try:
                if path.parent.is_dir():  # else the store is gone, and filelock would make folders in its place
                    lock.acquire(blocking=False)
                mine = True
            except Timeout:
                pass
            except OSError:  # no locks here
                mine = True
            yield mine
        finally:
            if mine:
                with suppress(OSError):  # a locked file cannot be removed on Windows
                    path.unlink()
                with suppress(OSError):
                    lock.release()

    def record_failure(self, key: str, task: str, run: str, traceback: str) -> Path:
        """Keep a failed task's traceback; returns the file."""
        before, path = self.failure(key), self.root / "failures" / f"{key}.json"
        failure = Failure(task, run, before.attempt + 1 if before else 1, traceback)
        self.write(path, json.dumps(asdict(failure), indent=1))
        return path

    def failure(self, key: str) -> Failure | None:
        """The task's last failure; ``None`` if it has not failed since it last succeeded."""
        try:
            found = json.loads((self.root / "failures" / f"{key}.json").read_text(encoding="utf-8"))
            run, attempt = str(found.get("run", "")), int(found.get("attempt", 1))
            return Failure(str(found["task"]), run, attempt, str(found["traceback"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def forget_failure(self, key: str) -> None:
        """Remove the record of a task's failure."""
        (self.root / "failures" / f"{key}.json").unlink(missing_ok=True)

    def failures(self) -> dict[str, Failure]:
        """Every recorded failure by its task's key."""
        folder = self.root / "failures"
        keys = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else ()
        return {key: failure for key in keys if (failure := self.failure(key))}


def _time_of_change(place: os.DirEntry) -> int | None:
    """The time of change of a folder; ``None`` for a file, and for a folder that was removed at this moment."""
    try:
        return place.stat().st_ctime_ns if place.is_dir() else None
    except FileNotFoundError:
        return None


def _is_inside(name: str) -> bool:
    """Whether a manifest's file name stays inside the artefact's folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
