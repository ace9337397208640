"""Checkpoint: an erasure that somebody else has made, read from their file.

`file` names a published erasure in one of these formats. It is compared with the model's own weights, and the tensors that
differ are the erasure. Nothing is trained, and the request only says which concept the checkpoint is meant to erase.

- changed tensors, or a whole UNet or text encoder, under the names of diffusers, transformers or the original Stable
  Diffusion code (ESD, UCE, SalUn, AdvUnlearn, …): ``.safetensors``, or a pickle that holds weights only
- the folder of a diffusers pipeline or of one of its networks, or a hub id (MACE, RECE, …)
- a LoRA with the names of diffusers, peft or kohya, fused with strength ``lora_scale``
- the file of an SPM (``lora_unet_…`` with the concepts in its header): its prompts gate it as in SPM's own code
- a file that ``overpaint erase`` has written

With ``transfer`` the erasure was made on another model, ``base``, and is put on this one (`overpaint.models.transfer`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from overpaint.blocks.adapters import transformer_layers
from overpaint.errors import UserError
from overpaint.grid.assets import referred
from overpaint.grid.concepts import Request
from overpaint.grid.shipped import shipped
from overpaint.methods.eraser import Eraser
from overpaint.models import checkpoints, load_model
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure, load_erasure
from overpaint.models.sources import OURS, hub_snapshot, resolve
from overpaint.models.transfer import transferred


@dataclass(kw_only=True)
class Checkpoint(Eraser):
    """Hyper-parameters of a published erasure; ``conf/method/checkpoint.yaml`` explains each."""

    file: str
    stage: Literal["text_encoder", "conditioning", "denoiser"]
    lora_scale: float
    transfer: bool
    base: str | None
    trained_apart: bool

    version: ClassVar[int] = 3
    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    draws: ClassVar[bool] = False
    added: ClassVar[Mapping[str, Any]] = {"transfer": False, "base": None, "trained_apart": False}
    models: ClassVar[tuple[str, ...]] = ("base",)
    networks: ClassVar[tuple[str, ...]] = ("file",)

    def __post_init__(self):
        if not self.file:
            raise UserError("method=checkpoint needs checkpoint.file: a file, a folder or a hub id")
        if self.base is not None and not self.transfer:
            raise UserError(f"base={self.base} is the model that a transferred erasure was made on: set transfer=true")

    @property
    def acts_on(self) -> str:
        return self.stage

    @property
    def changes_weights(self) -> bool:
        return True  # unless its file holds an adapter: then the merge is refused when it is made

    @property
    def mergeable(self) -> bool:
        """Whether weights can be merged: not for a file of `overpaint erase` that holds a guard, or was made on one."""
        text = checkpoints.metadata(Path(self.file).expanduser()).get("overpaint", "{}")
        try:
            header = json.loads(text)
        except ValueError:  # `erase` reports it
            return True
        kinds = []
        while isinstance(header, dict):
            kinds.append(header.get("kind"))
            header = header.get("before")
        return "guard" not in kinds

    def check(self, family: str | None, request: Request, name: str, sequential: bool = False) -> None:
        super().check(family, request, name, sequential)
        ours, place = shipped("datasets"), Path(self.file)
        if place.parts[0] in OURS and not (ours / place).is_file():
            found = sorted(
                path.parent.name.removeprefix("gold_") for path in (ours / place.parts[0]).glob(f"gold_*/{place.name}")
            )
            concepts = "+".join(concept.name for concept in request.erase)
            raise UserError(
                f"method={name} has no model for concepts={concepts}; allowed: {', '.join(found) or 'none, use a clone'}"
            )
        if not referred(self.file):  # an asset that is missing is reported by its name
            path = checkpoints.local_checkpoint(self.file, f"checkpoint.file={self.file}")
            if path:
                checkpoints.check_files(path)
            else:
                checkpoints.check_on_hub(self.file, f"checkpoint.file={self.file}")
            plain = path and path.is_file() and path.suffix == ".safetensors" and not checkpoints.holds_lora(path)
            if path and plain and self.lora_scale != 1:
                raise checkpoints.no_lora(path, self.lora_scale)

    def notes_on(self, model: str) -> Sequence[str]:
        from overpaint.models.loading import outlined

        path = None if referred(self.file) else checkpoints.local_checkpoint(self.file, f"checkpoint.file={self.file}")
        source = resolve(self.base if self.transfer and self.base else model)
        folder = Path(source) if Path(source).is_dir() else hub_snapshot(source)
        if path is None or folder is None:
            return ()
        notes = checkpoints.pipeline_notes(path, folder)
        checkpoints.check_names(path, outlined(str(folder)), self.lora_scale)
        return notes

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        path = checkpoints.checkpoint_path(self.file, f"checkpoint.file={self.file}")
        header = checkpoints.metadata(path)
        if "overpaint" in header:
            made = load_erasure(path)
            if self.transfer:
                made = transferred(made, model, self.made_on(model))
            made.attach(model)()  # raises if it was made for other weights
            return replace(made, manifest={**made.manifest, "made_by": made.method})
        if checkpoints.is_membrane(header):
            return released_membrane(model, checkpoints.read_state(path), header, path)
        if not self.transfer:
            apart = self.trained_apart or Path(self.file).parts[0] in OURS  # such as a gold with another seed
            changes = checkpoints.changes_of(model, path, self.lora_scale, apart)
            return Erasure("checkpoint", changes=changes)
        base = self.made_on(model)
        if base is None:
            raise UserError(f"{path} does not say on which model it was made: its transfer needs checkpoint.base=MODEL")
        made = Erasure("checkpoint", changes=checkpoints.changes_of(base, path, self.lora_scale))
        return transferred(made, model, base)

    def made_on(self, model: DiffusionModel) -> DiffusionModel | None:
        """The model that a transferred erasure was made on, in the precision and on the device of ``model``."""
        if self.base is None:
            return None
        return load_model(self.base, str(model.dtype).removeprefix("torch."), str(model.device))


def released_membrane(
    model: DiffusionModel, state: checkpoints.State, header: Mapping[str, str], path: Path
) -> Erasure:
    """The erasure of a file that SPM's own code has written: one membrane, whose concept is ``prompts`` in the header.

    Raises:
        UserError: Its layers are not the model's, or one membrane erases several concepts.
    """
    if "," in header["prompts"]:
        raise UserError(
            f"{path} erases {header['prompts']} with one membrane; SPM files with one concept are supported"
        )
    parts, used = {}, set()
    for layer in transformer_layers(model):
        stored = f"lora_unet_{layer.replace('.', '_')}"
        for side in ("down", "up"):
            key = f"{stored}.lora_{side}.weight"
            if key not in state:
                raise UserError(f"{path} does not fit the model: it has no {key}")
            parts[f"0.{layer}.{side}"] = state[key].to(model.device, model.dtype)
            used.add(key)
        used.add(f"{stored}.alpha")
    if left := sorted(set(state) - used):
        raise UserError(f"{path} does not fit the model, which has no layer for {left[0]}")
    rank = len(parts[next(iter(parts))])
    alpha = float(next((tensor for name, tensor in state.items() if name.endswith(".alpha")), rank))
    settings = {
        "concepts": [header["prompts"].strip()],
        "scale": (alpha or rank) / rank,
        "transport": "released",
        "matching": "clipcos_tokenuni",
    }
    return Erasure("spm", "adapter", parts=parts, settings=settings)
