"""From a folder, a hub id or a pipeline object to a `DiffusionModel` whose weights are known to be the stored ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

from overpaint.errors import UserError, unknown
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.families import family
from overpaint.models.sources import WORDS, check_regular, has_words, local_folder, part_weights, read_index, told

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
#: Components that are not loaded.
UNUSED = {"safety_checker": None, "feature_extractor": None, "image_encoder": None, "requires_safety_checker": False}
#: Libraries that a pipeline's networks may come from. Any other would run code that the folder names.
LIBRARIES = ("diffusers", "transformers")
#: A tensor of published text encoders that is no weight. Newer versions of transformers do not report it.
BUFFER = "embeddings.position_ids"
#: What the libraries report of a network that they loaded -> how a message says it.
PROBLEMS = {
    "missing_keys": "the weights of {name} lack {n} tensors",
    "unexpected_keys": "the weights of {name} hold {n} tensors that its config.json has no place for",
    "mismatched_keys": "{n} tensors of {name} have other shapes than its config.json says",
}


def load_pipeline(path: str, dtype: str, device: str) -> DiffusionModel:
    """`load_model` for a path or hub id."""
    if dtype not in DTYPES:
        raise unknown("precision", dtype, DTYPES)
    where, folder = f"model.path={path}", local_folder(path)
    index, kind = described(folder, where)
    parts = {name: load_component(folder, name, index[name], where) for name in kind.components}
    with told(f"{where} cannot be loaded"):
        pipeline = assembled(index, parts).to(device, DTYPES[dtype])
    return checked(kind, pipeline, where)


def check_model(path: str) -> None:
    """Raise a `UserError` if `load_pipeline` does so in single precision. One network at a time is in memory."""
    where, folder = f"model.path={path}", local_folder(path)
    index, kind = described(folder, where)
    parts = {}
    for name in kind.components:
        part = load_component(folder, name, index[name], where)
        if isinstance(part, torch.nn.Module):
            with told(f"{where}: {name} cannot be loaded"):
                check_finite(part.float(), f"{where}: {name}")
                part.to("meta")  # keeps the shapes, which `fitting` looks at
        parts[name] = part
    with told(f"{where} cannot be loaded"):
        pipeline = assembled(index, parts)
    fitting(kind, pipeline, where)


@cache
def outlined(path: str) -> DiffusionModel:
    """The model of a pipeline folder without its weights: its networks are on the meta device, with names and shapes."""
    where, folder = f"model.path={path}", local_folder(path)
    index, kind = described(folder, where)
    parts = {}
    for name in kind.components:
        cls = getattr(import_module(index[name][0]), index[name][1])
        with told(f"{where}: {name} cannot be loaded"):
            if not issubclass(cls, torch.nn.Module):
                parts[name] = load_component(folder, name, index[name], where)
                continue
            with torch.device("meta"):
                if issubclass(cls, diffusers.ModelMixin):
                    parts[name] = cls.from_config(cls.load_config(folder / name, local_files_only=True))
                else:
                    parts[name] = cls(cls.config_class.from_pretrained(folder / name, local_files_only=True))
    with told(f"{where} cannot be loaded"):
        return fitting(kind, assembled(index, parts), where)


def described(folder: Path, where: str) -> tuple[dict[str, Any], type[DiffusionModel]]:
    """The index of a pipeline folder and the class of its family, if the index names all components."""
    index = read_index(folder, where)
    kind = family(index["_class_name"], f"{where}/model_index.json")
    silence()
    check_components(index, kind, where)
    return index, kind


def from_pipeline(pipeline: Any, dtype: str | None, device: str | None) -> DiffusionModel:
    """`load_model` for a pipeline object."""
    if isinstance(pipeline, PathLike):
        return load_pipeline(str(pipeline), dtype or "float32", device or "cpu")
    if not isinstance(pipeline, DiffusionPipeline):
        raise UserError(f"load_model takes a folder, a hub id or a diffusers pipeline, got {type(pipeline).__name__}")
    if dtype is not None and dtype not in DTYPES:
        raise unknown("precision", dtype, DTYPES)
    where = "load_model(pipeline)"
    kind = family(type(pipeline).__name__, where)
    for name in kind.components:
        if getattr(pipeline, name, None) is None:
            raise UserError(f"{where}: the pipeline has no {name}")
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    for name, part in networks.items():
        if any(".lora_A." in parameter for parameter, _ in part.named_parameters()):
            raise UserError(
                f"{where}: the pipeline's {name} has a LoRA beside its weights; call fuse_lora() and unload_lora_weights() first"
            )
    moved: Any = pipeline
    if dtype:
        moved = moved.to(DTYPES[dtype])
    if device:
        moved = moved.to(device)
    return checked(kind, moved, where)


def check_components(index: Mapping[str, Any], kind: type[DiffusionModel], where: str) -> None:
    """Raise a `UserError` if the index lacks a component that the family needs, or names one that it may not."""
    where = f"{where}/model_index.json"
    for name in kind.components:
        entry = index.get(name)
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            raise UserError(f"{where} names no {name}, which {index['_class_name']} needs")
        library, class_name = entry
        if library not in LIBRARIES:
            raise unknown("library", library, LIBRARIES, f"{where} ({name})")
        if not hasattr(getattr(import_module(library), class_name, None), "from_pretrained"):
            raise UserError(f"{where}: {library} has no class {class_name} that can be loaded ({name})")


def load_component(folder: Path, name: str, entry: list[str], where: str) -> Any:
    """One component of a pipeline folder; a network with exactly the weights that its files hold."""
    library, class_name = import_module(entry[0]), entry[1]
    cls, own = getattr(library, class_name), folder / name
    check_regular(own, f"{where}/{name}")
    if not issubclass(cls, torch.nn.Module):
        if name.startswith("tokenizer") and not has_words(own):
            raise UserError(f"{where}/{name} holds no words ({' or '.join(' with '.join(names) for names in WORDS)})")
        with told(f"{where}: {name} cannot be loaded"):
            return cls.from_pretrained(own, local_files_only=True)
    files = part_weights(folder, name, where)
    check_depth(own, files, f"{where}/{name}")
    with told(f"{where}: {name} cannot be loaded"):
        part, info = cls.from_pretrained(own, use_safetensors=True, local_files_only=True, output_loading_info=True)
        if info["missing_keys"]:
            part, info = renamed(part, files, info)
    for key, problem in PROBLEMS.items():
        found = sorted(name for name in map(str, info.get(key) or ()) if not name.endswith(BUFFER))
        if found:
            raise UserError(f"{where}: {problem.format(name=name, n=len(found))}, such as {found[0]}")
    return part


def assembled(index: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
    """The pipeline of these components with the settings of its index, and without a safety checker."""
    cls = getattr(diffusers, index["_class_name"])
    accepted = signature(cls.__init__).parameters
    settings = {name: value for name, value in index.items() if not isinstance(value, list)} | UNUSED
    return cls(**{name: value for name, value in settings.items() if name in accepted}, **parts)


def check_depth(folder: Path, files: list[Path], where: str) -> None:
    """Raise a `UserError` if a configuration asks for more layers than the weights have tensors: building it may never end."""
    count = 0
    for file in files:
        with safe_open(str(file), framework="np") as opened:
            count += len(opened.keys())
    with told(f"{where} cannot be loaded"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        asked = [value for key, value in dict(config).items() if "layers" in key and isinstance(value, int)]
    if max(asked, default=0) > count:
        raise UserError(f"{where}/config.json asks for {max(asked)} layers, and the weights have {count} tensors")


def renamed(
    part: torch.nn.Module, files: list[Path], info: Mapping[str, Any]
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network with its weights under the names of another version of transformers.

    Newer versions leave out the prefix ``text_model.`` of text encoders. Older versions do not read such files: they keep
    random weights and report all tensors as missing.
    """
    prefix = "text_model."
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    own = part.state_dict()
    names = {
        name: next((n for n in (name, f"{prefix}{name}", name.removeprefix(prefix)) if n in own), name)
        for name in stored
    }
    missing = own.keys() - names.values()
    if missing or any(own[name].shape != stored[key].shape for key, name in names.items() if name in own):
        return part, dict(info)
    part.load_state_dict({name: stored[key] for key, name in names.items() if name in own})
    return part, {"unexpected_keys": names.values() - own.keys()}


def checked(kind: type[DiffusionModel], pipeline: Any, where: str) -> DiffusionModel:
    """The model behind a pipeline, if its weights are finite and its parts fit each other."""
    for name in kind.components:
        part = getattr(pipeline, name)
        if isinstance(part, torch.nn.Module):
            check_finite(part, f"{where}: {name}")
    return fitting(kind, pipeline, where)


def fitting(kind: type[DiffusionModel], pipeline: Any, where: str) -> DiffusionModel:
    """The model behind a pipeline, if its parts fit each other. Its networks may be on the meta device."""
    try:
        model = kind(pipeline)
        model.check()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return model


def check_finite(part: torch.nn.Module, where: str) -> None:
    """Raise a `UserError` that names the first parameter with a non-finite value."""
    for name, parameter in part.named_parameters():
        if parameter.is_meta:
            raise UserError(f"{where} has no weights in memory ({name} is on the meta device)")
        if parameter.numel() and not all(bound.isfinite() for bound in parameter.detach().aminmax()):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise UserError(f"{where} has non-finite weights in {kind}, such as {name}")


def silence() -> None:
    """Turn the libraries' own warnings and progress bars off."""
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
