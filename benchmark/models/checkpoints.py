"""Published erasures in the formats of other code, read as changes of a model's weights.

Pickled state dicts are read with ``weights_only=True``. Names may be those of diffusers, of transformers or of the original
Stable Diffusion code, with the prefixes that official repositories put in front.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from overpaint.errors import UserError
from overpaint.grid.assets import located
from overpaint.grid.paths import content_path
from overpaint.grid.shipped import shipped
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Replacement
from overpaint.models.lazily import torch
from overpaint.models.sources import (
    PICKLES,
    check_header,
    chosen_weights,
    hub_commit,
    hub_snapshot,
    local_folder,
    remembered_hash,
    told,
)

State: TypeAlias = "Mapping[str, torch.Tensor]"

#: Networks of a pipeline folder that an erasure can change, each with the start of its parameters' names.
NETWORKS = {"unet": "", "text_encoder": "text_model.", "text_encoder_2": "text_encoder_2."}
#: The file that makes a folder a pipeline, and its scheduler's.
INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
#: Settings of a scheduler that say what the network was trained to predict, with the value of a file that leaves one out.
TRAINED_WITH = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False, "beta_schedule": None, "beta_start": None,
                "beta_end": None, "num_train_timesteps": None}  # fmt: skip
#: What the header of a safetensors file calls floating-point numbers.
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3")
#: Names of an autoencoder's layers in older versions of diffusers -> in newer ones.
AUTOENCODER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
#: What a name of the first factor of a LoRA contains: in kohya's files, in peft's, and in those of older diffusers.
DOWN = (".lora_down.", ".lora_A.", ".lora.down.", "_lora.down.", ".lora_linear_layer.down.")
#: The same for the second factor.
UP = (".lora_up.", ".lora_B.", ".lora.up.", "_lora.up.", ".lora_linear_layer.up.")
#: What kohya puts before the name of a layer, by network.
KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
#: The file of a LoRA in the folder that diffusers or peft writes for it.
LORA_FILES = tuple(
    f"{stem}{suffix}" for stem in ("pytorch_lora_weights", "adapter_model") for suffix in (".safetensors", ".bin")
)
#: What peft writes beside a LoRA: its rank and its alpha. And what it puts before every name.
ADAPTER, WRAPPED = "adapter_config.json", "base_model.model."
#: What names of layers contain in the LoRAs of older diffusers.
PROCESSOR = ".processor."
#: Names of the tensors with which a LoRA is a DoRA: in kohya's files and in peft's.
MAGNITUDES = (".dora_scale", ".lora_magnitude_vector")
#: Names that wrap a state dict in a pickle, beside those of `NETWORKS`. And a network there that no erasure changes.
WRAPPERS, UNCHANGED = ("state_dict", "model", "module"), "vae"
#: What the original Stable Diffusion code puts before the names of its denoiser and its text encoder.
ORIGINAL_DENOISER, ORIGINAL_TEXT = "model.diffusion_model.", "cond_stage_model.transformer."
#: Layers of a UNet with another name in the original code: those outside of its blocks, and those of a residual block.
ORIGINAL_LAYERS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ORIGINAL_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
#: A UNet's name of a parameter in a block: side, level (none in the middle), kind of layer, its number, and the rest.
BLOCK = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
#: The first of these blocks, whose length is that of all.
FIRST = ("down", "0", "resnets")
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
    return (
        located(path)
        or local_checkpoint(path, where)
        or hub_snapshot(path)
        or local_folder(path, where.partition("=")[0])
    )


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


def check_on_hub(name: str, where: str) -> None:
    """Raise a `UserError` if a hub repository is neither in the local cache nor, as far as the hub can be asked, on the hub."""
    if hub_commit(name) is None:
        raise UserError(
            f"{where} is no file or folder here, and the hub has no such repository or cannot be asked for it (it takes a file, "
            "a folder or a hub id like owner/name)"
        )


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by its stored name. Those of a folder's networks get the network's name in front.

    Args:
        path: a file, or the folder of a pipeline or of one network.

    Raises:
        UserError: Nothing readable is there.
    """
    return {f"{prefix}{name}": tensor for file, prefix in _files(path) for name, tensor in _read_file(file).items()}


def _files(path: Path) -> list[tuple[Path, str]]:
    """The weight files of a checkpoint, each with what comes before the names of its tensors."""
    if path.is_file():
        return [(path, "")]
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    parts = [name for name in NETWORKS if (path / name).is_dir()]
    if not (path / INDEX).is_file():
        return [(file, "") for file in _network_files(path, parts)]
    if not parts:
        raise UserError(f"{path} is a pipeline without {', '.join(NETWORKS)}, the networks that an erasure can change")
    return [(file, f"{part}.") for part in parts for file in _network_files(path / part)]


def _network_files(folder: Path, parts: Sequence[str] = ()) -> list[Path]:
    """The weight files of a network or of a LoRA. ``parts`` are the networks that the folder has folders for."""
    present = [file.name for file in folder.glob("*")]
    files, lacking = chosen_weights(present, lambda index: (folder / index).read_bytes(), str(folder))
    if lacking:
        raise UserError(f"{folder} lacks the weight file {lacking[0]}")
    if not files:
        files = [name for name in present if name in ("diffusion_pytorch_model.bin", "pytorch_model.bin")]
    if not files:
        files = [name for name in LORA_FILES if name in present][:1]
    if not files and parts:
        raise UserError(f"{folder} has {parts[0]}/ and no {INDEX}: give {folder / parts[0]}, or add the file")
    if not files:
        raise UserError(
            f"{folder} holds no weights of a network (diffusion_pytorch_model or model .safetensors) or of a LoRA "
            "(pytorch_lora_weights or adapter_model .safetensors)"
        )
    return [folder / file for file in files]


def _read_file(file: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        with told(f"{file} is not a readable safetensors file"):
            return unpacked(load_file(file))
    check_suffix(file)
    with told(f"{file} cannot be read as weights only"):
        try:
            found: Any = torch.load(file, map_location=device, weights_only=True)
        except UnpicklingError:
            raise UserError(
                f"{file} holds more than named tensors, which is not loaded because it could run code; save its state dict"
            ) from None
    tensors = _unwrapped(found, file)
    if not tensors:
        raise UserError(f"{file} holds no named tensors")
    return tensors


def _unwrapped(found: Any, file: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a pickle, out of what wraps them. Those of several networks get the network's name in front.

    Raises:
        UserError: It holds several sets of tensors that are not those of `NETWORKS`.
    """
    if not isinstance(found, Mapping):
        return {}
    if tensors := _tensors(found):
        return tensors
    parts = {key: _unwrapped(found[key], file) for key in (*NETWORKS, *WRAPPERS) if key in found}
    parts = {key: tensors for key, tensors in parts.items() if tensors}
    others = [
        key for key, value in found.items() if key not in (*parts, UNCHANGED) and isinstance(value, Mapping)
        and any(tensor.is_floating_point() and tensor.ndim for tensor in _tensors(value).values())
    ]  # fmt: skip
    named = [*parts, *others]
    if parts and len(named) > 1 and not set(named) <= NETWORKS.keys():
        raise UserError(
            f"{file} holds several sets of tensors, {', '.join(map(str, named))}; save only those of the erasure, "
            f"or name them {', '.join(NETWORKS)}"
        )
    if len(parts) == 1 and next(iter(parts)) in ("unet", *WRAPPERS):
        return next(iter(parts.values()))
    return {
        f"{part}.{name.removeprefix('module.').removeprefix(WRAPPED)}": tensor
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def check_files(path: Path) -> None:
    """Raise a `UserError` if a checkpoint's files are missing, empty, truncated or of another format; reads no tensors."""
    for file, _ in _files(path):
        check_suffix(file)
        if file.suffix == ".safetensors":
            check_header(file, str(file))
            with safe_open(str(file), framework="np") as opened:
                empty = not opened.keys() and "overpaint" not in (opened.metadata() or {})
            if empty:
                raise UserError(f"{file} holds no tensors")
            continue
        with told(f"{file} cannot be read"), file.open("rb") as stream:
            start = stream.read(2)
        if not (is_zipfile(file) if start == b"PK" else start.startswith(b"\x80")):
            what = "empty" if not start else "truncated" if start == b"PK" else "no file that torch.save has written"
            raise UserError(
                f"{file} is {what}: checkpoint.file takes .safetensors, or {', '.join(PICKLES)} of torch.save"
            )


def check_scheduler(path: Path, own: Mapping[str, Any], whose: str = "the model") -> None:
    """Raise a `UserError` if a pipeline was trained with another noise or prediction than the scheduler ``own`` has."""
    file = path / SCHEDULER
    if not file.is_file():
        return
    theirs = _settings(file)
    for key, default in TRAINED_WITH.items():
        here, there = theirs.get(key, default), own.get(key, default)
        if here != there and None not in (here, there):
            raise UserError(
                f"{file} has {key}={here}, and {whose} has {there}, which an erasure does not change: "
                f"model.path={path} evaluates the whole pipeline"
            )


def _settings(file: Path) -> dict[str, Any]:
    with told(f"{file} is not readable JSON"):
        return dict(json.loads(file.read_text(encoding="utf-8")))


def check_names(path: Path, model: DiffusionModel, scale: float) -> None:
    """Raise a `UserError` if names or shapes of a checkpoint are not those of the model, which may be on the meta device.

    Numbers are not looked at. Files of `overpaint erase` and of SPM, which are no changed weights, are not checked.
    """
    state: dict[str, torch.Tensor] = {}
    for file, prefix in _files(path):
        header = metadata(file)
        if "overpaint" in header or is_membrane(header):
            return
        found = _outlines(file) if file.suffix == ".safetensors" else _read_file(file, "meta")
        state |= {f"{prefix}{name}": tensor for name, tensor in found.items()}
    if is_lora(state):
        _lora_of(model, state, path)
    elif scale != 1:
        raise no_lora(path, scale)
    else:
        _named_as_in(model, state, str(path))


def _outlines(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file without content: their shapes and types, from its header."""
    with safe_open(str(file), framework="np") as opened:
        entries = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        scales = {name for name in entries if name.endswith(".scale") and name.removesuffix(".scale") in entries}
        return {
            name: torch.empty(
                entry.get_shape(), device="meta",
                dtype=torch.float32 if entry.get_dtype() in FLOATS or f"{name}.scale" in scales else torch.int64,
            )
            for name, entry in entries.items() if name not in scales
        }  # fmt: skip


def pipeline_notes(path: Path, model: Path) -> list[str]:
    """What is left out of a pipeline's folder on the model of another one. Raises as `check_scheduler` does."""
    if not path.is_dir():
        return []
    if (model / SCHEDULER).is_file():
        check_scheduler(path, _settings(model / SCHEDULER))
    if not (path / INDEX).is_file() or not (path / "vae").is_dir() or _same_weights(path / "vae", model / "vae"):
        return []
    return [
        f"the VAE of {path} is another than the model's and is not used: model.path={path} evaluates the whole pipeline"
    ]


def _same_weights(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same autoencoder, but for rounding and the names of older versions of diffusers."""
    files = [_network_files(place) for place in (folder, other)]
    if [remembered_hash(file) for file in files[0]] == [remembered_hash(file) for file in files[1]]:
        return True
    ours, theirs = ({_renamed(n): t for file in found for n, t in _read_file(file).items()} for found in files)
    return ours.keys() == theirs.keys() and all(
        tensor.numel() == ours[name].numel() and _differ_by_rounding(ours[name], tensor.reshape(ours[name].shape))
        for name, tensor in theirs.items()
    )


def _renamed(name: str) -> str:
    old = next((old for old in AUTOENCODER if old in name), "")
    return name.replace(old, AUTOENCODER[old]) if old else name


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


def changes_of(
    model: DiffusionModel, path: Path, scale: float = 1.0, trained_apart: bool = False
) -> dict[str, Replacement]:
    """The changes that put a checkpoint on the model, by diffusers state-dict names.

    Tensors that equal the model's own, but for the rounding to half precision of either, are not changes.

    Args:
        path: a file or folder (`read_state`): changed tensors, a network, a pipeline, or a LoRA with the names of diffusers,
            peft or kohya.
        scale: factor of a LoRA.
        trained_apart: whether the weights may be unrelated to the model's: those of a model with another initialisation.

    Raises:
        UserError: The checkpoint does not fit the model, belongs to other weights or to another scheduler, or changes nothing, or
            a factor is given and it is no LoRA, or it is a DoRA, or the file of a LoRA is named without the file of its alpha.
    """
    state = read_state(path)
    check_scheduler(path, model.pipeline.scheduler.config)
    if is_lora(state):
        wanted = _with_lora(model, _lora_of(model, state, path), scale, str(path))
    elif scale != 1:
        raise no_lora(path, scale)
    else:
        wanted = _named_as_in(model, state, str(path))
        if not trained_apart:
            _check_base(model, wanted, str(path))
    own = model.named_parameters()
    changes = {}
    for name, tensor in wanted.items():
        if not _differ_by_rounding(own[name].data, tensor):
            changes[name] = Replacement(tensor.to(own[name].data))
    if not changes:
        raise UserError(f"{path} changes nothing: all its tensors equal the model's")
    return changes


def _differ_by_rounding(own: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether two tensors are equal, or one tensor that was rounded to the precision of each."""
    if torch.equal(own.to(tensor), tensor) or torch.equal(tensor.to(own), own):
        return True
    if {own.dtype, tensor.dtype} != {torch.float16, torch.bfloat16}:
        return False
    distance = (own.float() - tensor.to(own.device).float()).abs()  # neither of the two holds the other's numbers
    return bool((distance <= _half_steps(own) + _half_steps(tensor).to(own.device)).all())


def _half_steps(tensor: torch.Tensor) -> torch.Tensor:
    """Half of the distance from each number to the next one in the tensor's precision: the largest error of rounding."""
    numbers = torch.finfo(tensor.dtype)
    _, exponent = torch.frexp(tensor.float())
    steps = torch.ldexp(torch.full_like(exponent, numbers.eps, dtype=torch.float32), exponent - 1)
    return steps.clamp(min=numbers.smallest_normal * numbers.eps) / 2


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors of these names are the factors of a LoRA."""
    return any(mark in name for name in names for mark in (*DOWN, *UP))


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
        UserError: A tensor has no place in the model or another one's place, or another shape.
    """
    own, found, unknown = model.named_parameters(), {}, []
    for name, tensor in _diffusers_names(model, state):
        bare = name.removeprefix("module.")
        names = (bare, bare.removeprefix("unet."), bare.removeprefix("text_encoder."), f"text_model.{bare}",
                 f"text_model.{bare.removeprefix('text_encoder.')}")  # fmt: skip
        match = next((candidate for candidate in names if candidate in own), None)
        if match is None:
            unknown.append(name)
        elif own[match].shape != tensor.shape:
            shapes = f"{tuple(own[match].shape)} in the model and {tuple(tensor.shape)} here"
            raise UserError(f"{where} does not fit the model: {match} is {shapes}")
        elif not _finite(tensor):
            raise UserError(f"{where}: {name} does not hold finite numbers of a weight")
        elif match in found:
            raise UserError(f"{where} does not fit the model: it has two tensors for {match}")
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


def _diffusers_names(model: DiffusionModel, state: State) -> list[tuple[str, torch.Tensor]]:
    """Every tensor with its name, those of the original Stable Diffusion code with the name that diffusers gives it.

    Names are replaced one by one (diffusers' converter counts the blocks, which a file of changed tensors need not have).
    """
    ours, found = _original_names(model), []
    for name, tensor in state.items():
        bare = name.removeprefix("module.").removeprefix("unet.").removeprefix(ORIGINAL_DENOISER)
        found.append((ours.get(bare, name.removeprefix(ORIGINAL_TEXT)), tensor))
    return found


def _original_names(model: DiffusionModel) -> dict[str, str]:
    """``{name in the original Stable Diffusion code: name in diffusers}`` of the denoiser's parameters."""
    names = list(model.denoiser_names)
    blocks = len({match[4] for name in names if (match := BLOCK.match(name)) and match.group(1, 2, 3) == FIRST})
    attended = {
        match[2] for name in names if (match := BLOCK.match(name)) and match.group(1, 3) == ("up", "attentions")
    }
    return {_original_name(name, blocks, attended): name for name in names}


def _original_name(name: str, blocks: int, attended: set[str]) -> str:
    """The original code's name of a parameter of a UNet with ``blocks`` residual blocks on each level of its way down.

    ``attended`` are the levels of the way up with attention. Names without another one are returned as they are.
    """
    found = BLOCK.match(name)
    if found is None:
        layer = next((layer for layer in ORIGINAL_LAYERS if name.startswith(f"{layer}.")), "")
        return ORIGINAL_LAYERS[layer] + name.removeprefix(layer) if layer else name
    side, level, kind, number, rest = found.groups()
    first = int(level or 0) * (blocks + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + blocks + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{first + blocks}.{2 if level in attended else 1}.{rest}"
    attention = int(kind == "attentions")
    if not attention:
        layer, _, rest = rest.partition(".")
        rest = f"{ORIGINAL_RESIDUAL.get(layer, layer)}.{rest}"
    if side == "mid":
        return f"middle_block.{2 * int(number) + attention}.{rest}"
    place = f"input_blocks.{first + 1 + int(number)}" if side == "down" else f"output_blocks.{first + int(number)}"
    return f"{place}.{attention}.{rest}"


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
            f"{where} was made for another model: its matrices differ from this model's by {distance:.2f} of their norm (at "
            f"most {FOREIGN:g}); choose its model with model=…, or accept it with checkpoint.trained_apart=true"
        )


def _lora_of(model: DiffusionModel, state: State, path: Path) -> dict[str, torch.Tensor]:
    """The factors of a LoRA with the names that diffusers reads, its second factors times alpha / rank.

    kohya keeps alpha in a tensor for each layer, peft in a file beside the factors, and diffusers in the header of their file.
    peft's names do not say to which network they belong, so it is looked up.
    """
    if path.is_file() and (path.parent / ADAPTER).is_file() and path.name in LORA_FILES:
        raise UserError(f"{path}: {ADAPTER} beside it has the strength of this LoRA; give the folder, {path.parent}")
    networks = {name: getattr(model.pipeline, name, None) for name in NETWORKS}
    modules = {name: dict(part.named_modules()) for name, part in networks.items() if part is not None}
    places = {name: set(part) for name, part in modules.items()}
    settings = _lora_settings(path)
    _check_factors(state, settings, str(path))
    alphas = {name.removesuffix(".alpha"): tensor for name, tensor in state.items() if name.endswith(".alpha")}
    found, layers, scaled, kohyas = {}, {}, set(), _kohyas_layers(state, places)
    for stored, tensor in state.items():
        if stored.endswith(".alpha"):
            continue
        name = stored.removeprefix(WRAPPED)
        mark = next((mark for mark in (*DOWN, *UP) if mark in name), None)
        layer = name.partition(mark)[0] if mark else name
        network, place = kohyas.get(layer) or _place(layer, places)
        layers[stored] = modules[network].get(place) if network in modules else None
        by_diffusers = PROCESSOR in layer or (layer.startswith(tuple(KOHYA)) and "text_encoder_2" in modules)
        if layers[stored] is None and not by_diffusers:
            raise UserError(f"{path} does not fit the model as a LoRA: the model has no layer for {stored}")
        if network is not None:
            rest = name.removeprefix(layer).replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")
            name = f"{network}.{place}{rest}"
            layer = layer.removeprefix(f"{network}.")
        if mark in UP:
            told_of, rank = stored.partition(mark)[0], tensor.shape[1]
            if told_of in alphas:
                scaled.add(told_of)
                strength = _alpha(alphas[told_of], f"{path}: {told_of}.alpha") / rank
            else:
                strength = _strength(settings.get(network or "") or settings.get("") or {}, layer, rank)
            if strength != 1:
                tensor = (tensor.float() * strength).to(model.dtype)
        found[name] = tensor
    _check_pairs(state, layers, str(path))
    if left := sorted(alphas.keys() - scaled):
        raise UserError(
            f"{path} does not fit the model as a LoRA: it has {left[0]}.alpha without the factors of this layer"
        )
    return found


def _kohyas_layers(state: State, places: Mapping[str, set[str]]) -> dict[str, tuple[str, str]]:
    """Network and name of the known layers of a LoRA in kohya's names; empty if SDXL has one in the names of its own code."""
    layers = {name.partition(".")[0] for name in state if name.startswith(tuple(KOHYA))}
    flat = {
        network: {place.replace(".", "_"): place for place in found} | {
            f"text_model_{place.replace('.', '_')}": place for place in found if network != "unet"}
        for network, found in places.items()
    }  # fmt: skip
    found = {}
    for layer in layers:
        prefix = next(prefix for prefix in KOHYA if layer.startswith(prefix))
        place = flat.get(KOHYA[prefix], {}).get(layer.removeprefix(prefix))
        if place is not None:
            found[layer] = (KOHYA[prefix], place)
        elif "text_encoder_2" in places:
            return {}
    return found


def _place(layer: str, places: Mapping[str, set[str]]) -> tuple[str | None, str]:
    """The network of a LoRA's layer, ``None`` if it is not known, and the layer's name in this network.

    transformers 4 put ``text_model.`` in front of the names of a text encoder's layers, and transformers 5 does not.

    Older versions of diffusers named layers of the denoiser ``attn1.processor.to_q``. Diffusers reads such a name if ``unet.``
    precedes it.
    """
    network, _, rest = layer.partition(".")
    if PROCESSOR in layer and network not in places:
        return "unet", layer
    asked = [(network, rest)] if network in places else [(each, layer) for each in places]
    for each, name in asked:
        for place in (name, name.removeprefix("text_model."), f"text_model.{name}"):
            if place in places[each]:
                return each, place
    return (network, rest) if network in places else (None, layer)


def _check_factors(state: State, settings: Mapping[str, Any], where: str) -> None:
    """Raise a `UserError` for a DoRA, for tensors that are no factors of a LoRA, and for factors with non-finite values."""
    if any(mark in name for name in state for mark in MAGNITUDES) or any(
        isinstance(said, Mapping) and said.get("use_dora") for said in settings.values()
    ):
        raise UserError(
            f"{where} is a DoRA, which also scales each row of a weight; only a plain LoRA is read: fuse it and save its network"
        )
    for name, tensor in state.items():
        if name.endswith(".alpha"):
            continue
        if not any(mark in name for mark in (*DOWN, *UP)):
            raise UserError(f"{where} does not fit the model as a LoRA: {name} is no factor of a LoRA and no alpha")
        if tensor.ndim < 2:
            raise UserError(
                f"{where}: {name} is a bias beside the factors of a LoRA (lora_bias); only a LoRA without biases is read"
            )
        if not tensor.numel():
            raise UserError(f"{where}: {name} is empty")
        if not _finite(tensor):
            raise UserError(f"{where}: {name} does not hold finite numbers of a weight")


def _check_pairs(state: State, layers: Mapping[str, torch.nn.Module | None], where: str) -> None:
    """Raise a `UserError` for a factor without the other one, and for factors that do not fit each other or their layer.

    ``layers`` are the layers of the model by the stored names of their factors; ``None`` for names that only diffusers knows.
    """
    for stored, layer in layers.items():
        mark = next(mark for mark in (*DOWN, *UP) if mark in stored)
        other = stored.replace(mark, dict(zip((*DOWN, *UP), (*UP, *DOWN), strict=True))[mark])
        if other not in state:
            raise UserError(f"{where} does not fit the model as a LoRA: it has {stored} without {other}")
        if mark in UP:
            continue
        down, up = tuple(state[stored].shape), tuple(state[other].shape)
        if down[0] != up[1]:
            raise UserError(
                f"{where} does not fit the model as a LoRA: {stored} has rank {down[0]} and {other} has {up[1]}"
            )
        weight = getattr(layer, "weight", None)
        if weight is None:
            continue
        for name, found, wanted in ((stored, down, (down[0], *weight.shape[1:])),
                                    (other, up, (weight.shape[0], up[1], *[1] * (weight.ndim - 2)))):  # fmt: skip
            if found != wanted:
                raise UserError(
                    f"{where} does not fit the model as a LoRA: {name} is {found}, and the model's layer takes {wanted}"
                )


def _finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds finite floating-point numbers; those of a tensor without content are not looked at."""
    return tensor.is_floating_point() and (tensor.is_meta or bool(tensor.isfinite().all()))


def _alpha(tensor: torch.Tensor, where: str) -> float:
    """The number in kohya's tensor of a layer's alpha."""
    if tensor.numel() != 1 or not (tensor.is_meta or tensor.isfinite().all()):
        raise UserError(f"{where} is not a finite number")
    return 1.0 if tensor.is_meta else float(tensor)


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


@contextmanager
def _silent() -> Iterator[None]:
    """Without what diffusers logs of a LoRA that does not fit, which is said in the error."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _with_lora(model: DiffusionModel, state: State, scale: float, where: str) -> dict[str, torch.Tensor]:
    """The model's weights after a LoRA, with alpha / rank in its factors, is fused into copies of its networks by diffusers."""
    pipeline = model.pipeline
    networks = [name for name in NETWORKS if getattr(pipeline, name, None) is not None]
    copies = {name: copy.deepcopy(getattr(pipeline, name)) for name in networks}
    with told(f"{where} does not fit the model as a LoRA"), _silent():
        other = type(pipeline)(**(pipeline.components | copies))
        other.load_lora_weights(dict(state), adapter_name="checkpoint")
        layers = [m for part in copies.values() for m in part.modules() if "checkpoint" in getattr(m, "lora_A", ())]
        factors = sum(any(mark in name for mark in DOWN) for name in state)
        if len(layers) < factors:
            raise UserError(
                f"{where} does not fit the model: it has LoRA factors of {factors} layers, {len(layers)} fit"
            )
        for layer in layers:  # diffusers guesses alpha, and gives ranks and alphas of some layers to none
            layer.scaling["checkpoint"] = 1.0
        other.fuse_lora(lora_scale=scale, adapter_names=["checkpoint"])
        other.unload_lora_weights()
    fused = copy.copy(model)
    fused.text_encoder, fused.denoiser = other.text_encoder, other.unet
    if hasattr(model, "text_encoder_2"):
        fused.text_encoder_2 = other.text_encoder_2  # type: ignore[attr-defined]
    return {name: parameter.data for name, parameter in fused.named_parameters().items()}
