"""Downloads of assets: resumed after an interruption, verified, and published by one rename.

Files are collected in a folder ``.NAME.partial`` of the cache. Its rename makes them an asset. A lock on the asset makes a second
process wait for the first one.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import pickle
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from filelock import FileLock

from overpaint.errors import UserError
from overpaint.grid.assets import PICKLES, RECEIPT, Asset, cache_folder, stored_name
from overpaint.grid.digests import digest
from overpaint.models.sources import hub_reason
from overpaint.run.store import file_hash

#: Seconds without an answer or a byte after which a connection counts as lost.
TIMEOUT = 30
#: A lost connection is opened again this often in a row without a new byte.
TRIES = 3
#: Bytes read at once.
CHUNK = 1 << 20
#: Suffixes of files beside an unfinished download: its bytes, and the server's mark of the version that they belong to.
PART, MARK = ".part", ".mark"
#: Suffixes of the receipt of one finished file, and of an archive that holds files.
DONE, ARCHIVE = ".done", ".archive"

#: Called with the file's name, the bytes so far, and the file's size if it is known.
Report = Callable[[str, int, int | None], None]


class DownloadFailed(UserError):
    """A file that could not be downloaded or verified."""


@dataclass(frozen=True)
class Source:
    """Where to read a file: its URL with headers, its size, and its hash if the server states it."""

    url: str
    headers: Mapping[str, str]
    bytes: int | None = None
    sha256: str | None = None


def fetch_asset(asset: Asset, report: Report) -> Path:
    """Download the files of an asset that are not on this machine, verify them, and return their folder.

    Raises:
        AssetMissing: the files are in a Python package that is not installed.
        DownloadFailed: no connection, a full disk, a wrong checksum, or files that only a person can download.
    """
    if asset.package or asset.present():
        return asset.path()
    root = cache_folder()
    with _disk(asset, root):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{asset.name}.lock"):
            if not asset.present():
                _collect(asset, root / f".{asset.name}.partial", report)
    return asset.path()


def _collect(asset: Asset, partial: Path, report: Report) -> None:
    """Fill the partial folder with the asset's files and their receipt, and publish it."""
    files = {name: _file(asset, name, partial, report) for name in asset.files}
    text = json.dumps({"asset": asset.name, "source": asset.source, "files": files}, indent=1)
    for name in asset.files:
        (partial / f"{name}{DONE}").unlink()
    for archive in partial.glob(f"*{ARCHIVE}"):
        archive.unlink()
    (partial / RECEIPT).write_text(text, encoding="utf-8")
    old = partial.with_name(f".{asset.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with suppress(FileNotFoundError):
        asset.folder.rename(old)
    partial.rename(asset.folder)
    shutil.rmtree(old, ignore_errors=True)


def _file(asset: Asset, name: str, partial: Path, report: Report) -> dict[str, Any]:
    """The receipt of one file, after it was found, copied or downloaded, verified, and a pickle was converted."""
    target, expected = partial / name, asset.files[name].get("sha256")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_name(f"{target.name}{DONE}")  # an earlier, interrupted command finished this file
    stored = partial / stored_name(name)
    known = _known(made) if stored.is_file() else {}
    if known and expected in (None, known["sha256"]) and known["source"] == asset.source:
        report(name, known["bytes"], known["bytes"])
        return known
    found = _at_hand(asset, name, expected)
    if found:
        shutil.copyfile(found, target)
    elif asset.source.startswith("page:") and "url" not in asset.files[name]:
        raise DownloadFailed(
            f"asset={asset.name}: {name} has to be downloaded by hand from {asset.source.removeprefix('page:')} "
            f"({asset.licence}); put it at {asset.folder / name} and run the command again"
        )
    else:
        source, member = _source(asset, name), asset.files[name].get("member")
        expected = expected or source.sha256
        if member:
            archive = partial / f"{digest(source.url)[:16]}{ARCHIVE}"
            if not archive.is_file():
                _download(asset, name, source, archive, report)
            _extract(asset, archive, member, target)
        else:
            _download(asset, name, source, target, report)
    sha256, size = file_hash(target), target.stat().st_size
    if expected not in (None, sha256):
        target.unlink()
        raise DownloadFailed(
            f"asset={asset.name}: {name} has the SHA-256 {sha256}, expected {expected}; the download was removed, "
            "run the command again"
        )
    report(name, size, size)
    if target.suffix in PICKLES:
        _convert(asset, target, stored)
    known = {"sha256": sha256, "bytes": size, "stored_bytes": stored.stat().st_size, "source": asset.source}
    made.write_text(json.dumps(known), encoding="utf-8")
    return known


def _known(made: Path) -> dict[str, Any]:
    """The receipt of a finished file; empty if there is none, or if a crash left only a part of it."""
    try:
        return json.loads(made.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _at_hand(asset: Asset, name: str, expected: str | None) -> Path | None:
    """A file that is on this machine already: put into the asset's folder by a person, or in the hub's own cache.

    A file of unknown hash is taken only where no download would check it: for a page, or from the same revision of the hub.
    """
    given = asset.folder / name
    if given.is_file() and (file_hash(given) == expected if expected else asset.source.startswith("page:")):
        return given
    if asset.source.startswith("hub:"):
        from huggingface_hub import try_to_load_from_cache

        kind, repository, revision = _repository(asset)
        cached = try_to_load_from_cache(repository, name, revision=revision, repo_type=kind)
        if isinstance(cached, str) and expected in (None, file_hash(Path(cached))):
            return Path(cached)
    return None


def _repository(asset: Asset) -> tuple[str | None, str, str]:
    """Kind, name and revision of a repository of the hub."""
    repository, _, revision = asset.source.removeprefix("hub:").partition("@")
    kind = "dataset" if repository.startswith("datasets/") else None
    return kind, repository.removeprefix("datasets/"), revision


def _source(asset: Asset, name: str) -> Source:
    """Where to read a file of the asset."""
    url = asset.files[name].get("url")
    if url or not asset.source.startswith("hub:"):
        return Source(url or f"{asset.source.rstrip('/')}/{quote(name)}", {})
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    kind, repository, revision = _repository(asset)
    place = hf_hub_url(repository, name, revision=revision, repo_type=kind)
    try:
        told = get_hf_file_metadata(place, timeout=TIMEOUT)
    except Exception as error:  # of several libraries: offline, no network, no such repository, no right to read it
        raise _unreachable(asset, name, place, hub_reason(error, repository)) from error
    same_host = urlsplit(told.location).netloc == urlsplit(place).netloc
    headers = build_hf_headers() if same_host else {}  # a signed address of another host takes no token
    sha256 = told.etag if told.etag and len(told.etag) == 64 else None  # the hub's mark of a large file is its hash
    return Source(told.location, headers, told.size, sha256)


def _download(asset: Asset, name: str, source: Source, target: Path, report: Report) -> None:
    """Download a file to ``target``. An interrupted download is continued where the server allows it."""
    part, idle = target.with_name(target.name + PART), 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _read(source, part, lambda done, size: report(name, done, size)):
                break
            reason = "the connection was closed"
        except urllib.error.HTTPError as error:
            if error.code != 416:  # the server has no bytes after ours: start again
                raise _unreachable(asset, name, source.url, f"HTTP {error.code} {error.reason}") from error
            reason = "the server refused to continue the download"
            part.unlink(missing_ok=True)
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error) or type(error).__name__)
        after = part.stat().st_size if part.is_file() else 0
        idle = 0 if after > before else idle + 1
        if idle >= TRIES:
            raise _unreachable(asset, name, source.url, reason)
    part.rename(target)
    target.with_name(target.name + MARK).unlink(missing_ok=True)


def _read(source: Source, part: Path, report: Callable[[int, int | None], None]) -> bool:
    """Read the rest of a file into ``part``; false if the connection ended before the file did."""
    mark = part.with_suffix(MARK)
    done = part.stat().st_size if part.is_file() else 0
    known = mark.read_text(encoding="utf-8") if mark.is_file() else ""
    headers = {**source.headers, "Accept-Encoding": "identity", "User-Agent": "overpaint"}
    if done and known:  # If-Range: the whole file if it has changed since
        headers |= {"Range": f"bytes={done}-", "If-Range": known}
    request = urllib.request.Request(source.url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        continued = answer.status == 206
        done = done if continued else 0
        length = answer.headers.get("Content-Length")
        size = done + int(length) if length else source.bytes
        _room(part, (size or 0) - done)
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        mark.write_text("" if tag.startswith("W/") else tag, encoding="utf-8")
        with part.open("ab" if continued else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                report(done, size)
            file.flush()
            os.fsync(file.fileno())
    return size is None or done == size


def _extract(asset: Asset, archive: Path, member: str, target: Path) -> None:
    """Copy one file out of a tar archive."""
    try:
        with tarfile.open(archive) as opened:
            inside = opened.extractfile(member)
            if inside is None:
                raise KeyError(member)
            with inside, target.open("wb") as file:
                shutil.copyfileobj(inside, file)
    except (tarfile.TarError, KeyError, EOFError, zlib.error) as error:
        archive.unlink()
        raise DownloadFailed(
            f"asset={asset.name}: {member} cannot be read from the downloaded archive: {error}"
        ) from error


def _unreachable(asset: Asset, name: str, url: str, reason: str) -> DownloadFailed:
    return DownloadFailed(
        f"asset={asset.name}: {name} cannot be downloaded from {urlsplit(url).netloc}: {reason}; run the command again "
        f"to continue, or copy the folder {asset.folder} from a machine that has it"
    )


def _room(place: Path, needed: int) -> None:
    """Raise the error of a full disk before a download that does not fit."""
    if needed > shutil.disk_usage(place.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _disk(asset: Asset, root: Path) -> Iterator[None]:
    """Context: errors of the disk are reported in one sentence."""
    try:
        yield
    except OSError as error:
        raise DownloadFailed(
            f"asset={asset.name} cannot be written to {root}: {error.strerror or error}; OVERPAINT_ASSETS selects another folder"
        ) from error


def _convert(asset: Asset, source: Path, target: Path) -> None:
    """Store the tensors of a pickled checkpoint as safetensors, and delete the pickle.

    Nothing in the pickle is run: torch reads tensors and plain containers only, and an array is read by `_Arrays`. Names of
    tensors in nested mappings are joined by dots.
    """
    import torch
    from safetensors.torch import save_file

    try:
        if source.suffix == ".p":
            content = {"array": torch.from_numpy(_Arrays(source.open("rb")).load())}
        else:
            content = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, TypeError, AttributeError) as error:
        source.unlink()
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DownloadFailed(
            f"asset={asset.name}: {source.name} is not a checkpoint of tensors only: {first}"
        ) from error
    tensors = dict(_tensors(content))
    if not tensors:
        source.unlink()
        raise DownloadFailed(f"asset={asset.name}: {source.name} holds no tensors")
    save_file(tensors, target, metadata={"format": "pt"})
    source.unlink()


def _tensors(content: Any, name: str = ""):
    import torch

    if isinstance(content, torch.Tensor):
        yield name or "tensor", content.detach().contiguous().clone()
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


class _Arrays(pickle.Unpickler):
    """Reads a pickled NumPy array and nothing else."""

    ALLOWED = frozenset(
        {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray")}
        | {("numpy", "dtype")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        if name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # NumPy 1 and 2 have it in different modules
        return super().find_class(module, name)
