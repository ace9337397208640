"""Where a model comes from and which model it is: paths and hashes, without importing torch."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path

from overpaint.errors import UserError
from overpaint.grid.shipped import shipped
from overpaint.run.store import file_hash

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
WEIGHTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")


def resolve(path: str) -> str:
    """The folder (or hub id) behind a model name, refusing what cannot or should not be read."""
    if path == "testbed":
        path = str(shipped("datasets") / "testbed" / "pipeline")
    folder = Path(path).expanduser()
    if folder.suffix in PICKLES:
        raise UserError(
            f"model.path={path} is a pickle checkpoint, which can run code when it is loaded; "
            "convert it to a diffusers folder with safetensors"
        )
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UserError(f"model.path={path} is not a diffusers pipeline folder: it has no model_index.json")
        for part in ("unet", "transformer"):
            weights = [p for p in (folder / part).glob("*") if p.suffix in (*PICKLES, ".safetensors")]
            if weights and not any(p.suffix == ".safetensors" for p in weights):
                raise UserError(
                    f"model.path={path} holds pickle weights only ({weights[0].name}); overpaint reads safetensors "
                    "(save the pipeline again with safe_serialization=True)"
                )
        return str(folder)
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
        raise UserError(
            f"model folder {path} does not exist (model.path takes a diffusers folder, a hub id like owner/name, "
            "or testbed)"
        )
    return path


@cache
def fingerprint_model(path: str) -> str:
    """A hash of the model's content: its weights and configuration files, wherever they lie.

    Hashes of large files are remembered by (size, modification time) in the user's cache folder. A hub id that is
    not in the local cache yet is identified by its name.
    """
    source = resolve(path)
    folder = Path(source) if Path(source).is_dir() else _hub_snapshot(source)
    if folder is None:
        return f"hub:{source}"
    files = [folder / "model_index.json", *folder.glob("scheduler/*.json"), *folder.glob("tokenizer*/*.json")]
    for part in WEIGHTS:
        files += [*(folder / part).glob("*.safetensors"), folder / part / "config.json"]
    digest = hashlib.sha256()
    for file in sorted(f for f in files if f.is_file()):
        digest.update(f"{file.relative_to(folder)}:{_remembered_hash(file)};".encode())
    return digest.hexdigest()[:16]


def _hub_snapshot(name: str) -> Path | None:
    """The newest local snapshot of a hub repository, if there is one."""
    home = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    snapshots = (home.expanduser() / f"models--{name.replace('/', '--')}" / "snapshots").glob("*")
    return max(snapshots, key=lambda p: p.stat().st_mtime, default=None)


def _remembered_hash(file: Path) -> str:
    stat = file.stat()
    if stat.st_size < 64 << 20:
        return file_hash(file)
    from platformdirs import user_cache_path

    memory = user_cache_path("overpaint") / "hashes.json"
    known = json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}
    entry = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    if entry not in known:
        known[entry] = file_hash(file)
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(json.dumps(known), encoding="utf-8")
    return known[entry]
