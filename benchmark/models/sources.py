"""Where a model comes from and which model it is: folders, hub ids and hashes, without importing torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from overpaint.errors import UserError
from overpaint.grid.paths import path_of
from overpaint.grid.read_once import remembered
from overpaint.grid.shipped import shipped
from overpaint.models.families import check_pipeline, family_name, family_source
from overpaint.run.store import file_hash

#: Models of this project, by the name of their folder in ``datasets/``.
OURS = ("testbed", "testbed_gold")
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
#: Folders of a pipeline that hold weights.
WEIGHTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
#: Names of a network's weight file, without suffix: of diffusers, and of transformers.
STEMS = ("diffusion_pytorch_model", "model")
#: The file of a tokenizer that is no JSON: which pieces a word is made of.
MERGES = "merges.txt"
#: The files that hold a tokenizer's words: one of these sets.
WORDS = (("tokenizer.json",), ("vocab.json", MERGES))
#: Names of models on the hub: ``owner/name``.
HUB_NAME = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)
#: Files of a network that is downloaded from the hub. The last two: tokenizers, templates of chats.
NETWORK_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")
#: Files below this size are hashed each time, larger ones are remembered.
REMEMBERED_FROM = 64 << 20
#: What ``model.path`` takes.
_TAKEN = f"a diffusers pipeline folder, a hub id like owner/name, or {' or '.join(OURS)}"
#: Seconds to wait for the hub.
HUB_TIMEOUT = 10


@remembered
def resolve(path: str) -> str:
    """The folder or hub id behind ``model.path``.

    Raises:
        UserError: There is no such folder, or it is not a readable diffusers pipeline of a known family.
    """
    if path in OURS:
        own = shipped("datasets") / path / "pipeline"
        if not own.is_dir():
            raise UserError(f"model.path={path} is in the repository but not in the installed package: use a clone")
        path = str(own)
    if not path:
        raise UserError(f"model.path= is empty: it takes {_TAKEN}")
    folder = path_of(path, "model.path")
    if folder.suffix in PICKLES:
        raise UserError(
            f"model.path={path} is a pickle checkpoint, which can run code when it is loaded; "
            "convert it to a diffusers folder with safetensors"
        )
    if folder.is_dir():
        for part in ("unet", "transformer"):
            weights = [p for p in (folder / part).glob("*") if p.suffix in (*PICKLES, ".safetensors")]
            if weights and not any(p.suffix == ".safetensors" for p in weights):
                raise UserError(
                    f"model.path={path} holds pickle weights only ({weights[0].name}); overpaint reads safetensors "
                    "(save the pipeline again with safe_serialization=True)"
                )
        check_pipeline(read_index(folder, f"model.path={path}")["_class_name"], f"model.path={path}/model_index.json")
        return str(folder)
    if folder.exists() or not HUB_NAME.fullmatch(path):
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"model.path={path} {what} (it takes {_TAKEN})")
    return path


@cache
def _pipeline(path: str) -> str | None:
    """The class name of a model's pipeline; ``None`` for a hub model that is neither in the local cache nor to be asked for."""
    source = resolve(path)
    if Path(source).is_dir():
        return read_index(Path(source), f"model.path={path}")["_class_name"]
    index = _hub_index(source)
    if not index.is_file():
        fingerprint_model(path)  # asks the hub, which downloads the index
        index = _hub_index(source)
    if not index.is_file():
        return None
    name = read_index(index.parent, f"model.path={path}")["_class_name"]
    check_pipeline(name, f"model.path={path}/model_index.json")
    return name


@cache
def image_size(path: str) -> int | None:
    """Side of a model's own images in pixels; ``None`` if its configuration is not on this machine or does not tell."""
    found, scale = _configurations(path), pixels_per_latent(path)
    try:
        return found["unet" if "unet" in found else "transformer"]["sample_size"] * scale
    except (KeyError, TypeError):
        return None


def pixels_per_latent(path: str) -> int | None:
    """The number of pixels that sides of a model's images are multiples of; ``None`` as in `image_size`."""
    try:
        return 2 ** (len(_configurations(path)["vae"]["block_out_channels"]) - 1)
    except (KeyError, TypeError):
        return None


@cache
def _configurations(path: str) -> dict[str, Any]:
    """The configurations of a model's networks, by name; empty if they are not on this machine."""
    source = resolve(path)
    folder = Path(source) if Path(source).is_dir() else hub_snapshot(source)
    parts = ("unet", "transformer", "vae") if folder else ()
    files = {part: Path(folder or "", part, "config.json") for part in parts}
    return {
        part: _json(file, f"model.path={path}/{part}/config.json") for part, file in files.items() if file.is_file()
    }


def _hub_index(name: str) -> Path:
    return _hub_folder(name) / "snapshots" / (hub_revision(name) or "-") / "model_index.json"


def model_family(path: str) -> str | None:
    """The family of a model, before it is loaded; ``None`` for a hub model if the hub cannot be asked."""
    pipeline = _pipeline(path)
    return family_name(pipeline, f"model.path={path}/model_index.json") if pipeline else None


def model_family_source(path: str) -> dict[str, str]:
    """`family_source` of a model's family; empty as long as the family is not known."""
    pipeline = _pipeline(path)
    return family_source(pipeline) if pipeline else {}


def read_index(folder: Path, where: str) -> dict[str, Any]:
    """The components of a pipeline folder, from its ``model_index.json``."""
    file = folder / "model_index.json"
    if not file.is_file():
        raise UserError(f"{where} is not a diffusers pipeline folder: it has no model_index.json")
    index = _json(file, f"{where}/model_index.json")
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise UserError(f"{where}/model_index.json names no pipeline class (_class_name)")
    return index


def part_weights(folder: Path, name: str, where: str) -> list[Path]:
    """The safetensors files that hold the weights of one network: one file, or all shards of an index."""
    present = [file.name for file in (folder / name).glob("*") if file.is_file()]
    found, lacking = chosen_weights(present, lambda index: (folder / name / index).read_bytes(), f"{where}/{name}")
    if lacking:
        raise UserError(f"{where}/{name} lacks the weight file {lacking[0]}")
    if not found:
        variant = next((file for file in sorted(present) if file.endswith(".safetensors")), None)
        raise UserError(
            f"{where}/{name} holds no safetensors weights ({' or '.join(f'{s}.safetensors' for s in STEMS)})"
            + (f"; {variant} is not read: save the pipeline without variant=" if variant else "")
        )
    for file in found:
        check_header(folder / name / file, f"{where}/{name}/{file}")
    if not (folder / name / "config.json").is_file():
        raise UserError(f"{where}/{name} has no config.json")
    return [folder / name / file for file in found]


def chosen_weights(names: Iterable[str], read, where: str) -> tuple[list[str], list[str]]:
    """The weight files among a folder's ``names`` that diffusers and transformers load, and shards that are missing.

    Variants such as ``model.fp16.safetensors`` are not loaded and do not count. ``read(name)`` gives a file's bytes.
    """
    present = set(names)
    for stem in STEMS:
        if f"{stem}.safetensors" in present:
            return [f"{stem}.safetensors"], []
        index = f"{stem}.safetensors.index.json"
        if index in present:
            shards = _shards(read(index), f"{where}/{index}")
            return [s for s in shards if s in present], [s for s in shards if s not in present]
    return [], []


def _shards(content: bytes, where: str) -> list[str]:
    try:
        shards = sorted(set(json.loads(content)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where} is not an index of weight files") from error
    if not shards or any(not isinstance(s, str) or s != PurePosixPath(s).name or s == ".." for s in shards):
        raise UserError(f"{where} names weight files outside its folder")
    return shards


def has_words(folder: Path) -> bool:
    """Whether a folder holds the words of a tokenizer. Without them, transformers makes a tokenizer that knows none."""
    return any(all((folder / name).is_file() for name in names) for names in WORDS)


def check_regular(folder: Path, where: str) -> None:
    """Raise a `UserError` if a folder holds a device, a pipe or a broken link: reading one may never end."""
    for file in folder.glob("*"):
        if not (file.is_file() or file.is_dir()):
            raise UserError(f"{where}/{file.name} is not a regular file")


def check_header(file: Path, where: str) -> None:
    """Raise a `UserError` if a safetensors file is truncated or malformed; reads its header only."""
    try:
        with safe_open(str(file), framework="np") as opened:
            opened.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{where} is not a readable safetensors file: {error}") from error


def _json(file: Path, where: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where} is not readable JSON: {error}") from error


@cache
def fingerprint_model(path: str) -> str:
    """A hash of the model's content: its weights and configuration files, wherever they are.

    A hub model has the hash of its repository's files, which the hub tells before they are downloaded. A hub model that
    is neither in the local cache nor to be asked for is identified by its name. A folder is also loaded once, one network
    after another, to tell what is wrong with it before anything runs.
    """
    source = resolve(path)
    folder = Path(source) if Path(source).is_dir() else hub_snapshot(source)
    if folder is None:
        hashes = _hub_hashes(source)
        return _digest(hashes) if hashes else f"hub:{source}"
    key = _content_of(folder)
    if path not in OURS:
        _check_once(key, path)
    return key


def unchanged(path: str, fingerprint: str) -> bool:
    """Whether a model still has the content with this `fingerprint_model`. A hub model does: its files are those of a commit."""
    folder = Path(resolve(path))
    return not folder.is_dir() or _content_of(folder) == fingerprint


def _content_of(folder: Path) -> str:
    return _digest({name: remembered_hash(folder / name) for name in content(_listing(folder), folder)})


def content(names: Iterable[str], folder: Path) -> list[str]:
    """The files among a pipeline's that decide what it computes, sorted; shards are named by indices in ``folder``."""
    paths = [PurePosixPath(name) for name in names]
    found = {"model_index.json"} & {str(p) for p in paths}
    found |= {str(p) for p in paths if len(p.parts) == 2 and _describes(p)}
    for part in WEIGHTS:
        inside = [p.name for p in paths if p.parent == PurePosixPath(part)]
        weights, _ = chosen_weights(
            inside, lambda index, part=part: (folder / part / index).read_bytes(), f"{folder / part}"
        )
        found |= {f"{part}/{name}" for name in weights}
    return sorted(found)


def _describes(file: PurePosixPath) -> bool:
    """Whether a file of a component configures a scheduler, a tokenizer or a network."""
    folder = file.parent.name
    if folder in WEIGHTS:
        return file.name == "config.json"
    json_file = file.suffix == ".json"
    return (folder == "scheduler" and json_file) or (
        folder.startswith("tokenizer") and (json_file or file.name == MERGES)
    )


def _listing(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in [*folder.glob("*"), *folder.glob("*/*")] if file.is_file()]


def _digest(hashes: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f"{name}:{hashes[name]};".encode())
    return digest.hexdigest()[:16]


def _check_once(key: str, path: str) -> None:
    """Load the model to check it, unless a model with this content has loaded before."""
    entry = f"sound|{key}|{version('diffusers')}|{version('transformers')}"
    if entry not in _remembered():
        from overpaint.models.loading import check_model

        check_model(path)
        _remember(entry, "yes")


def local_folder(path: str, where: str = "model.path") -> Path:
    """The pipeline folder of a model, downloaded first if it is a hub id that the local cache lacks.

    Raises a `UserError` that names the setting ``where`` if it cannot be downloaded.
    """
    source = resolve(path)
    if Path(source).is_dir():
        return Path(source)
    folder = hub_snapshot(source)
    if folder is None:
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()  # it warns of what the error below says
        try:
            folder = Path(DiffusionPipeline.download(source, use_safetensors=True, revision=hub_revision(source)))
        except Exception as error:  # of several libraries: no network, no such repository, no right to read it
            raise UserError(f"{where}={path} cannot be downloaded: {hub_reason(error, source)}") from error
    return folder


def hub_reason(error: BaseException, name: str) -> str:
    """Why files of the hub's repository ``name`` could not be read, with what to do about it.

    The libraries hide the reason in the chain of an error's causes.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    causes = [error]
    while before := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        causes.append(error := before)
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return f"it is gated: accept its terms at {constants.ENDPOINT}/{name}, and log in with: hf auth login"
        if isinstance(cause, RepositoryNotFoundError):
            return f"{constants.ENDPOINT} has no repository {name}, or it is private (then log in with: hf auth login)"
        if isinstance(cause, OfflineModeIsEnabled):
            return "files of it are not in the hub's cache, and HF_HUB_OFFLINE is set"
    lines = str(causes[-1]).splitlines()
    return lines[0] if lines else repr(causes[-1])


def hub_revision(name: str) -> str | None:
    """The commit that the local cache has as ``main`` of a hub repository, if any."""
    file = _hub_folder(name) / "refs" / "main"
    revision = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return revision if re.fullmatch(r"[0-9a-f]{40}", revision) else None


@cache
def hub_commit(name: str) -> str | None:
    """The commit of a hub repository's ``main``: that of the local cache, else what the hub says.

    ``None`` if neither is to be had, or if the text is not a hub id.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists():
        return None
    revision = hub_revision(name)
    if revision is None:
        from huggingface_hub import HfApi

        try:
            revision = HfApi().model_info(name, timeout=HUB_TIMEOUT).sha
        except Exception:  # of several libraries: offline, no such repository; loading the network tells which
            return None
    return revision


def hub_snapshot(name: str) -> Path | None:
    """The local snapshot of a hub repository's ``main``, if all of the pipeline is there: weights, scheduler and tokenizers."""
    revision = hub_revision(name)
    folder = _hub_folder(name) / "snapshots" / (revision or "-")
    try:
        index = read_index(folder, name)
        parts = [part for part in WEIGHTS if isinstance(index.get(part), list) and index[part][0]]
        for part in parts:
            part_weights(folder, part, name)
    except UserError:
        return None
    others = (part for part in index if part == "scheduler" or part.startswith("tokenizer"))
    used = [folder / part for part in others if isinstance(index[part], list) and index[part][0]]
    return folder if all(map(_configured, used)) else None


def has_network(name: str) -> bool:
    """Whether the local cache has a hub repository's ``main``: a whole pipeline, or a network with its configuration."""
    folder = _hub_folder(name) / "snapshots" / (hub_revision(name) or "-")
    network = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return network or hub_snapshot(name) is not None


def hub_network(name: str) -> Path:
    """The local snapshot of a hub repository, downloaded first: a pipeline, or else a network with its tokenizer.

    Raises a `UserError` if it cannot be downloaded.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        if not HfApi().file_exists(name, "model_index.json"):
            return Path(snapshot_download(name, allow_patterns=[f"*{suffix}" for suffix in NETWORK_SUFFIXES]))
    except Exception as error:  # of several libraries: no network, no such repository, no right to read it
        raise UserError(f"{name} cannot be downloaded: {hub_reason(error, name)}") from error
    return local_folder(name, "model")


def _configured(folder: Path) -> bool:
    """Whether a scheduler or tokenizer has its files."""
    if folder.name == "scheduler":
        return (folder / "scheduler_config.json").is_file()
    return (folder / "tokenizer_config.json").is_file() and has_words(folder)


def _hub_folder(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _hub_hashes(name: str) -> dict[str, str] | None:
    """Hashes of the files of a hub repository's ``main`` as the hub states them; ``None`` if the hub cannot be asked.

    The hub states the SHA-256 of large files, and small ones are downloaded, so that the hashes are those of a local copy.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        revision = hub_revision(name) or "main"
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT)
        stated = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or ()}
        folder = _hub_folder(name) / "snapshots" / str(info.sha)
        for each in stated:  # indices of shards first: `content` reads them
            if each.endswith(".safetensors.index.json"):
                hf_hub_download(name, each, revision=revision)
        chosen = content(stated, folder)
        return {
            each: stated[each] or file_hash(Path(hf_hub_download(name, each, revision=revision))) for each in chosen
        }
    except Exception:  # of several libraries: offline, no such repository; loading the model tells which
        return None


def remembered_hash(file: Path) -> str:
    """The SHA-256 of a file; a large file's is remembered by its path, size and modification time."""
    stat = file.stat()
    if stat.st_size < REMEMBERED_FROM:
        return file_hash(file)
    entry = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    known = _remembered().get(entry)
    if known is None:
        known = file_hash(file)
        _remember(entry, known)
    return known


def _memory() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("overpaint") / "hashes.json"


def _remembered() -> dict[str, str]:
    try:
        known = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(entry: str, value: str) -> None:
    """Add an entry under a lock, and replace the file in one step. Without a writable cache folder nothing is kept."""
    file = _memory()
    with suppress(OSError, Timeout):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock"), timeout=10):
            handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
            with os.fdopen(handle, "w", encoding="utf-8") as written:
                json.dump(_remembered() | {entry: value}, written)
            os.replace(name, file)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn any error inside the block into one sentence: the libraries raise what they like on a malformed folder."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MemoryError, UserError):
        raise
    except Exception as error:
        line, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        line = f"{line} {more[0]}" if more and line.endswith(":") else line
        raise UserError(f"{what}: {type(error).__name__} {line}"[:400]) from error
