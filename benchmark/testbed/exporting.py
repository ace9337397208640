"""Export of a checkpoint as a diffusers folder."""

import json
import os
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors import safe_open
from torch import nn
from transformers import CLIPTokenizer

from .denoiser import Denoiser, WordyDenoiser, build_scheduler


def assemble(out: Path) -> StableDiffusionPipeline:
    """The pipeline of the newest denoiser checkpoint in `out`, with its averaged weights, in float32."""
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    wordy = out / "denoiser_wordy.safetensors"
    module = (WordyDenoiser if wordy.exists() else Denoiser)(len(tokenizer))
    with safe_open(wordy if wordy.exists() else out / "denoiser.safetensors", "pt") as file:
        nn.utils.vector_to_parameters(file.get_tensor("ema"), module.parameters())
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(out / "vae"),
        text_encoder=module.text_encoder.eval(),
        tokenizer=tokenizer,
        unet=module.unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export_pipeline(out: Path, folder: Path) -> None:
    """Write `folder` in float16. A temporary folder is renamed, so that no reader sees an incomplete pipeline."""
    temporary, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline = assemble(out)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.half()
    pipeline.save_pretrained(temporary, safe_serialization=True)
    for path in temporary.rglob("config.json"):  # remove the local paths from which parts were loaded
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The exported pipeline in float32, on the CPU."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.float()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weight_bytes(folder: Path) -> int:
    """Total size in bytes of all weights below a folder."""
    return sum(os.path.getsize(path) for path in folder.rglob("*.safetensors"))
