"""Published erasures in the formats of other code, read as changes of a model's weights.

Pickled state dicts are read with ``weights_only=True``. Names may be those of diffusers, of transformers or of the original
Stable Diffusion code, with the prefixes that official repositories put in front.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open

from overpaint.errors import UserError
from overpaint.grid.assets import located
from overpaint.grid.paths import content_path
from overpaint.grid.shipped import shipped
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Replacement
from overpaint.models.lazily import torch
from overpaint.models.sources import PICKLES, chosen_weights, hub_snapshot, local_folder, told

State: TypeAlias = "Mapping[str, torch.Tensor]"

#: Networks of a pipeline folder that an erasure can change, each with the start of its parameters' names.
NETWORKS = {"unet": "", "text_encoder": "text_model.", "text_encoder_2": "text_encoder_2."}
#: What a name of the first factor of a LoRA contains: in kohya's files, in peft's, and in those of older diffusers.
DOWN = (".lora_down.", ".lora_A.", ".lora.down.", "_lora.down.")
#: The same for the second factor.
UP = (".lora_up.", ".lora_B.", ".lora.up.", "_lora.up.")
#: The file of a LoRA in the folder that diffusers or peft writes for it.
LORA_FILES = tuple(
    f"{stem}{suffix}" for stem in ("pytorch_lora_weights", "adapter_model") for suffix in (".safetensors", ".bin")
)
#: What peft writes beside a LoRA: its rank and its alpha. And what it puts before every name.
ADAPTER, WRAPPED = "adapter_config.json", "base_model.model."
#: Names that wrap a state dict in a pickle.
WRAPPERS = ("state_dict", "unet", "model", "module")
#: What the original Stable Diffusion code puts before the names of its denoiser and its text encoder.
ORIGINAL_DENOISER, ORIGINAL_TEXT = "model.diffusion_model.", "cond_stage_model.transformer."
#: Starts of names of tensors that are no weights, or belong to parts that no erasure changes.
IGNORED = ("first_stage_model.", "model_ema.", "alphas_cumprod", "betas", "sqrt_", "log_", "posterior_", "logvar")
#: Median relative distance of the matrices from the model's, above which a file belongs to another model. Independent
#: networks are at 1.4; published erasures and fine-tuned models are below 0.2.
FOREIGN = 0.5


def metadata(file: Path) -> dict[str, str]:
    """The text entries in the header of a safetensors file; empty for other files."""
    if file.suffix != ".safetensors" or not file.is_file():
        return {}
    try:
        with safe_open(str(file), framework="np") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is not a readable safetensors file: {error}") from error


def checkpoint_path(path: str, where: str) -> Path:
    """The file or folder of a checkpoint; a hub id is downloaded if the local cache lacks it. Data of this package are
    named from ``datasets/``, assets as ``asset:NAME/FILE``.

    Raises:
        UserError: There is no such file, folder or hub repository.
        AssetMissing: The asset is not on this machine.
    """
    return located(path) or local_checkpoint(path, where) or hub_snapshot(path) or local_folder(path)


def local_checkpoint(path: str, where: str) -> Path | None:
    """The file or folder of a checkpoint; ``None`` for a hub id. Raises a `UserError` for anything else.

    ``where`` is the setting as the user typed it: ``checkpoint.file=./esd``.
    """
    content_path(path, where.partition("=")[0])
    found = Path(path).expanduser()
    for place in (found, shipped("datasets") / path):
        if place.exists():
            return place
    if found.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1 or found.suffix:
        raise UserError(f"{where} does not exist (it takes a file, a folder or a hub id like owner/name)")
    return None


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by its stored name. Those of a folder's networks get the network's name in front.

    Args:
        path: a file, or the folder of a pipeline or of one network.

    Raises:
        UserError: Nothing readable is there.
    """
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    if not (path / "model_index.json").is_file():
        return _read_network(path)
    parts = [name for name in NETWORKS if (path / name).is_dir()]
    return {f"{part}.{name}": tensor for part in parts for name, tensor in _read_network(path / part).items()}


def _read_network(folder: Path) -> dict[str, torch.Tensor]:
    present = [file.name for file in folder.glob("*")]
    files, lacking = chosen_weights(present, lambda index: (folder / index).read_bytes(), str(folder))
    if lacking:
        raise UserError(f"{folder} lacks the weight file {lacking[0]}")
    if not files:
        files = [name for name in present if name in ("diffusion_pytorch_model.bin", "pytorch_model.bin")]
    if not files:
        files = [name for name in LORA_FILES if name in present][:1]
    if not files:
        raise UserError(
            f"{folder} holds no weights of a network (diffusion_pytorch_model or model .safetensors) or of a LoRA "
            "(pytorch_lora_weights or adapter_model .safetensors)"
        )
    return {name: tensor for file in files for name, tensor in _read_file(folder / file).items()}


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        with told(f"{file} is not a readable safetensors file"):
            return unpacked(load_file(file))
    check_suffix(file)
    with told(f"{file} cannot be read as weights only"):
        try:
            found: Any = torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError:
            raise UserError(
                f"{file} holds more than named tensors, which is not loaded because it could run code; save its state dict"
            ) from None
    while isinstance(found, Mapping) and not _tensors(found):
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    tensors = _tensors(found) if isinstance(found, Mapping) else {}
    if not tensors:
        raise UserError(f"{file} holds no named tensors")
    return tensors


def check_suffix(file: Path) -> None:
    """Raise a `UserError` if the name of a file is none of a checkpoint's."""
    if file.suffix not in (".safetensors", *PICKLES):
        raise UserError(
            f"{file} is not a checkpoint: checkpoint.file takes .safetensors, or {', '.join(PICKLES)} with weights only"
        )


def unpacked(stored: State) -> dict[str, torch.Tensor]:
    """The tensors with int8 ones multiplied by their scale: float32, one per row, stored as ``NAME.scale``."""
    found = {}
    for name, tensor in stored.items():
        if name.endswith(".scale") and name.removesuffix(".scale") in stored:
            continue
        scale = stored.get(f"{name}.scale")
        if tensor.dtype == torch.int8 and scale is not None:
            tensor = tensor.float() * scale.reshape(-1, *[1] * (tensor.dim() - 1))
        found[name] = tensor
    return found


def _tensors(found: Mapping) -> dict[str, torch.Tensor]:
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


def changes_of(model: DiffusionModel, path: Path, scale: float = 1.0) -> dict[str, Replacement]:
    """The changes that put a checkpoint on the model, by diffusers state-dict names.

    Tensors that equal the model's own, in the precision in which they are stored, are not changes.

    Args:
        path: a file or folder (`read_state`): changed tensors, a network, a pipeline, or a LoRA with the names of diffusers,
            peft or kohya.
        scale: factor of a LoRA.

    Raises:
        UserError: The checkpoint does not fit the model, belongs to other weights, or changes nothing, or a factor is given
            and it is no LoRA, or the file of a LoRA is named without the file of its alpha beside it.
    """
    state = read_state(path)
    if is_lora(state):
        wanted = _with_lora(model, _lora_of(model, state, path), scale, str(path))
    elif scale != 1:
        raise no_lora(path, scale)
    else:
        wanted = _named_as_in(model, state, str(path))
        _check_base(model, wanted, str(path))
    own = model.named_parameters()
    changes = {}
    for name, tensor in wanted.items():
        if not torch.equal(own[name].data.to(tensor), tensor):
            changes[name] = Replacement(tensor.to(own[name].data))
    if not changes:
        raise UserError(f"{path} changes nothing: all its tensors equal the model's")
    return changes


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors of these names are the factors of a LoRA."""
    return any(mark in name for name in names for mark in DOWN)


def holds_lora(file: Path) -> bool:
    """Whether a safetensors file is a LoRA, and neither an SPM nor a file of `overpaint erase`; reads its header only."""
    header = metadata(file)
    if "overpaint" in header or is_membrane(header):
        return False
    with safe_open(str(file), framework="np") as opened:
        return is_lora(opened.keys())


def is_membrane(header: Mapping[str, str]) -> bool:
    """Whether this is the header of a file that SPM's own code has written."""
    return "prompts" in header and "rank" in header


def no_lora(path: Path, scale: float) -> UserError:
    """The error for a strength of a LoRA that is given for another file."""
    return UserError(f"checkpoint.lora_scale={scale:g} is the strength of a LoRA, and {path} is none: leave it out")


def _named_as_in(model: DiffusionModel, state: State, where: str) -> dict[str, torch.Tensor]:
    """The tensors under the model's own names.

    Raises:
        UserError: A tensor has no place in the model, or another shape.
    """
    own, found, unknown = model.named_parameters(), {}, []
    for name, tensor in _diffusers_names(model, state).items():
        bare = name.removeprefix("module.")
        names = (bare, bare.removeprefix("unet."), bare.removeprefix("text_encoder."), f"text_model.{bare}",
                 f"text_model.{bare.removeprefix('text_encoder.')}")  # fmt: skip
        match = next((candidate for candidate in names if candidate in own), None)
        if match is None:
            unknown.append(name)
        elif own[match].shape != tensor.shape:
            shapes = f"{tuple(own[match].shape)} in the model and {tuple(tensor.shape)} here"
            raise UserError(f"{where} does not fit the model: {match} is {shapes}")
        elif not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(f"{where}: {name} does not hold finite numbers of a weight")
        else:
            found[match] = tensor
    unknown = [name for name in unknown if not name.startswith(IGNORED) and not name.endswith("position_ids")]
    if unknown:
        raise UserError(
            f"{where} does not fit the model, which has no parameter {unknown[0]} ({len(unknown)} of "
            f"{len(state)} names are unknown)"
        )
    if not found:
        raise UserError(f"{where} has no tensor that an erasure can change")
    return found


def _diffusers_names(model: DiffusionModel, state: State) -> State:
    """The tensors with the names of the original Stable Diffusion code replaced by those of diffusers."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    if not any(name.startswith((ORIGINAL_DENOISER, "input_blocks.")) for name in state):
        return state
    prefixed = any(name.startswith(ORIGINAL_DENOISER) for name in state)
    whole = {name if prefixed else f"{ORIGINAL_DENOISER}{name}": tensor for name, tensor in state.items()}
    with told("a checkpoint of the original Stable Diffusion code cannot be converted"):
        denoiser = convert_ldm_unet_checkpoint(dict(whole), dict(model.denoiser.config))
    text = {n.removeprefix(ORIGINAL_TEXT): t for n, t in whole.items() if n.startswith(ORIGINAL_TEXT)}
    rest = {n: t for n, t in whole.items() if not n.startswith((ORIGINAL_DENOISER, ORIGINAL_TEXT))}
    return {**denoiser, **text, **rest}


def _check_base(model: DiffusionModel, wanted: State, where: str) -> None:
    """Raise a `UserError` if the matrices are those of an unrelated model.

    A file with less than half of the matrices of every network is not judged: an edit may replace its few matrices entirely.
    """
    own = model.named_parameters()
    matrices = {name for name, parameter in own.items() if parameter.ndim > 1}
    denoiser = matrices & set(model.denoiser_names)
    given = matrices & wanted.keys()
    if all(2 * len(given & part) < len(part) for part in (denoiser, matrices - denoiser)):
        return
    distances = []
    for name in given:
        plain = own[name].data.float()
        distances.append(((wanted[name].to(plain) - plain).norm() / plain.norm().clamp(min=1e-12)).item())
    distance = float(torch.tensor(distances).median())
    if distance > FOREIGN:
        raise UserError(
            f"{where} was made for another model: its matrices differ from this model's by {distance:.2f} of their norm"
        )


def _lora_of(model: DiffusionModel, state: State, path: Path) -> dict[str, torch.Tensor]:
    """The factors of a LoRA with the names that diffusers reads, its second factors times alpha / rank.

    peft keeps alpha in a file beside the factors, and diffusers in the header of their file. peft's names do not say to which
    network they belong, so it is looked up.
    """
    if path.is_file() and (path.parent / ADAPTER).is_file() and path.name in LORA_FILES:
        raise UserError(f"{path}: {ADAPTER} beside it has the strength of this LoRA; give the folder, {path.parent}")
    networks = {name: getattr(model.pipeline, name, None) for name in NETWORKS}
    layers = {name: {place for place, _ in part.named_modules()} for name, part in networks.items() if part is not None}
    settings, found = _lora_settings(path), {}
    for stored, tensor in state.items():
        name = stored.removeprefix(WRAPPED)
        mark = next((mark for mark in (*DOWN, *UP) if mark in name), None)
        layer = name.partition(mark)[0] if mark else name
        network = next((each for each, places in layers.items() if layer in places), None)
        if network is not None:
            name = f"{network}.{name}"
        elif layer.partition(".")[0] in layers:
            network, _, layer = layer.partition(".")
        if mark in UP:
            tensor = tensor * _strength(settings.get(network or "") or settings.get("") or {}, layer, tensor.shape[1])
        found[name] = tensor
    return found


def _lora_settings(path: Path) -> dict[str, Any]:
    """What peft (under the name ``""``) or diffusers (by network) says of a LoRA: alpha, and which layers have another."""
    settings: dict[str, Any] = {}
    if (path / ADAPTER).is_file():
        with told(f"{path / ADAPTER} cannot be read"):
            return {"": dict(json.loads((path / ADAPTER).read_text(encoding="utf-8")))}
    file = path if path.is_file() else next((path / name for name in LORA_FILES if (path / name).is_file()), path)
    with told(f"the header of {file} cannot be read"):
        for key, value in json.loads(metadata(file).get("lora_adapter_metadata", "{}")).items():
            network, _, name = key.partition(".")
            settings.setdefault(network, {})[name] = value
    return settings


def _strength(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """The factor of a layer's low-rank change, as peft computes it; 1 if nothing is said of alpha."""
    alpha = settings.get("lora_alpha")
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = value
            break
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _with_lora(model: DiffusionModel, state: State, scale: float, where: str) -> dict[str, torch.Tensor]:
    """The model's weights after a LoRA is fused into copies of its networks by diffusers."""
    pipeline = model.pipeline
    networks = [name for name in NETWORKS if getattr(pipeline, name, None) is not None]
    copies = {name: copy.deepcopy(getattr(pipeline, name)) for name in networks}
    with told(f"{where} does not fit the model as a LoRA"):
        other = type(pipeline)(**(pipeline.components | copies))
        other.load_lora_weights(dict(state), adapter_name="checkpoint")
        layers = [m for part in copies.values() for m in part.modules() if "checkpoint" in getattr(m, "lora_A", ())]
        factors = sum(any(mark in name for mark in DOWN) for name in state)
        if len(layers) < factors:
            raise UserError(
                f"{where} does not fit the model: it has LoRA factors of {factors} layers, {len(layers)} fit"
            )
        other.fuse_lora(lora_scale=scale, adapter_names=["checkpoint"])
        other.unload_lora_weights()
    fused = copy.copy(model)
    fused.text_encoder, fused.denoiser = other.text_encoder, other.unet
    if hasattr(model, "text_encoder_2"):
        fused.text_encoder_2 = other.text_encoder_2  # type: ignore[attr-defined]
    return {name: parameter.data for name, parameter in fused.named_parameters().items()}
