"""From a folder or hub id to a `DiffusionModel`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from overpaint.errors import UserError, unknown
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.sdxl import SDXLModel
from overpaint.models.sources import resolve

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
#: Pipeline class -> the class that speaks for its family.
FAMILIES = {"StableDiffusionPipeline": DiffusionModel, "StableDiffusionXLPipeline": SDXLModel}
#: Components that are not loaded, where a pipeline has them.
UNUSED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def load_pipeline(path: str, dtype: str, device: str) -> DiffusionModel:
    if dtype not in DTYPES:
        raise unknown("precision", dtype, DTYPES)
    source = resolve(path)
    local = Path(source).is_dir()
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    options = {}
    if local:
        index = json.loads((Path(source) / "model_index.json").read_text(encoding="utf-8"))
        name = index.get("_class_name")
        if name not in FAMILIES:
            raise unknown("pipeline class", str(name), FAMILIES, f"{path}/model_index.json")
        options = {key: value for key, value in UNUSED.items() if key in index}
    try:
        pipeline = DiffusionPipeline.from_pretrained(source, use_safetensors=True, local_files_only=local, **options)
    except OSError as error:
        raise UserError(f"cannot load model {path}: {str(error).splitlines()[0]}") from error
    if type(pipeline).__name__ not in FAMILIES:
        raise unknown("pipeline class", type(pipeline).__name__, FAMILIES, path)
    return FAMILIES[type(pipeline).__name__](pipeline.to(device, DTYPES[dtype]))
