"""The content-addressed folder of results: published by one atomic rename, checked by hash when read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from overpaint.errors import UserError
from overpaint.grid.registry import check_type

MANIFEST = "manifest.json"


class CorruptArtefact(UserError):
    """An artefact whose files no longer match its manifest. It has been set aside; its task must run again."""

    exit_code = 1

    def __init__(self, key: str, reason: str):
        super().__init__(f"artefact {key} is corrupt ({reason}); it was set aside and `overpaint run` makes it again")
        self.key = key


def read_manifest(folder: Path) -> dict:
    """The manifest of an artefact's folder."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


class Store:
    """``ROOT/artefacts/<stage>/<key>/`` with a ``manifest.json`` each; ``tmp``, ``locks``, ``failures`` and
    ``corrupt`` beside it. An artefact is there in full or not at all."""

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().absolute()

    @classmethod
    def chosen(cls, root: str | None) -> Store:
        """The store a command works on: the given folder, else ``$OVERPAINT_STORE``, else ``./outputs``."""
        check_type(root, str | None, "store")
        return cls(root or os.environ.get("OVERPAINT_STORE") or "outputs")

    def prepare(self) -> None:
        """Make the folders; a store that cannot be written is one clear error before any work."""
        try:
            for name in ("artefacts", "tmp", "locks", "failures", "corrupt"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / "tmp"):
                pass
        except OSError as error:
            raise UserError(f"cannot write to the store {self.root}: {error.strerror}") from error

    def path(self, stage: str, key: str) -> Path:
        return self.root / "artefacts" / stage / key

    # --- reading -----------------------------------------------------------------------------------------------

    def has(self, stage: str, key: str) -> bool:
        """Whether the artefact is there with every file at its full size (hashes are checked when it is read)."""
        folder = self.path(stage, key)
        if not (folder / MANIFEST).is_file():
            return False
        try:
            files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
            whole = all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
        except (OSError, ValueError, KeyError):
            whole = False
        if not whole:
            self.set_aside(stage, key)
        return whole

    def manifest(self, stage: str, key: str) -> dict:
        """What is written about the artefact: configuration, versions, inputs, host, cost."""
        try:
            return json.loads((self.path(stage, key) / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.set_aside(stage, key)
            raise CorruptArtefact(key, "unreadable manifest") from error

    def read(self, stage: str, key: str) -> Path:
        """The artefact's folder, after checking every file against its hash."""
        folder = self.path(stage, key)
        for name, entry in self.manifest(stage, key)["files"].items():
            if not (folder / name).is_file() or file_hash(folder / name) != entry["sha256"]:
                self.set_aside(stage, key)
                raise CorruptArtefact(key, f"{name} does not match its hash")
        return folder

    def set_aside(self, stage: str, key: str) -> None:
        """Move a damaged artefact out of the way, keeping it for inspection."""
        target = self.root / "corrupt" / f"{stage}-{key}"
        shutil.rmtree(target, ignore_errors=True)
        try:
            self.path(stage, key).rename(target)
        except FileNotFoundError:
            return

    def keys(self, stage: str) -> Iterator[str]:
        folder = self.root / "artefacts" / stage
        if folder.is_dir():
            yield from sorted(p.name for p in folder.iterdir() if (p / MANIFEST).is_file())

    # --- writing -----------------------------------------------------------------------------------------------

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A temporary folder to make an artefact in; whatever is left in it disappears."""
        folder = Path(tempfile.mkdtemp(dir=self.root / "tmp"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, stage: str, key: str, folder: Path, manifest: dict) -> None:
        """Make a finished workspace the artefact of ``key``, in one rename. Losing a race for the key is fine."""
        files = {
            str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": file_hash(p)}
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }
        text = json.dumps(manifest | {"files": files}, indent=1, sort_keys=True, default=str)
        with (folder / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        target = self.path(stage, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        (self.root / "failures" / f"{key}.json").unlink(missing_ok=True)

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """True inside the block if this process alone may make ``key``; False if another one is making it now.

        The lock is the operating system's: it goes with its process, however that ends.
        """
        lock = FileLock(self.root / "locks" / f"{key}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def record_failure(self, key: str, label: str, trace: str) -> Path:
        """Keep a failed task's traceback; the next run tries the task again."""
        path = self.root / "failures" / f"{key}.json"
        path.write_text(json.dumps({"task": label, "traceback": trace}, indent=1), encoding="utf-8")
        return path

    def failed_since(self, key: str, moment: float) -> bool:
        """Has the task's failure been recorded since ``moment`` (seconds since 1970)?"""
        try:
            return (self.root / "failures" / f"{key}.json").stat().st_mtime >= moment
        except FileNotFoundError:
            return False

    def sweep(self) -> None:
        """Remove workspaces that a killed process left behind more than a day ago."""
        import time

        for folder in (self.root / "tmp").iterdir():
            if folder.is_dir() and time.time() - folder.stat().st_mtime > 86400:
                shutil.rmtree(folder, ignore_errors=True)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
