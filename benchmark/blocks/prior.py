"""Second moments of the text embeddings of many captions, by which a closed-form edit preserves their outputs.

The term Σ w ‖E W'ᵀ − E Wᵀ‖² over the rows E of all captions depends on them only through

    B = Σ EᵀE  (d, d),        since Σ w (E Wᵀ)ᵀ E = w W B.

B is the same for every layer. Official code (MACE, TRCE) also stores a sum for the outputs of each layer.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from overpaint.errors import unknown
from overpaint.grid.assets import content_digest, located, referred
from overpaint.grid.digests import is_file
from overpaint.grid.prompt_files import read_prompts
from overpaint.grid.shipped import shipped
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import fingerprint
from overpaint.models.lazily import torch

#: Captions per forward of the text encoder.
CAPTIONS_AT_ONCE = 64
#: Smallest number of captions to cache. With fewer, encoding them is faster than looking for a cached sum.
REMEMBERED_FROM = 100

#: Value of a method's ``prior_captions``: a shipped collection, a CSV file with a prompt column, the texts, or ``None``.
Captions = str | list[str] | None


def check_captions(captions: Captions) -> None:
    """Raise a `UserError` if there is no such collection or file. Methods call this before any work.

    An asset need not be on this machine: a grid that uses it can be planned, and a run is refused before it starts.
    """
    if isinstance(captions, str) and referred(captions):
        content_digest(captions)  # checks that there is such an asset with such a file
    else:
        captions_file(captions)


def captions_file(captions: Captions) -> Path | None:
    """The file of a shipped collection (``testbed/captions``), of an asset (``asset:NAME/FILE``) or at a path.

    ``None`` for texts.

    Raises:
        UserError: there is no such collection or file, or the asset is not on this machine.
    """
    if not isinstance(captions, str):
        return None
    found = located(captions)
    if found:
        return found
    folder = shipped("datasets")
    places = (folder / f"{captions}.csv", Path(captions))
    path = next(filter(is_file, places), None)
    if path is None:
        names = [file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.csv")]
        raise unknown(
            "caption collection",
            captions,
            [*names, "a CSV file with a prompt column, such as asset:coco_30k/coco_30k.csv"],
        )
    return path


def read_captions(captions: Captions) -> list[str]:
    """The captions of a method's ``prior_captions``: a shipped collection, a file, the texts themselves, or none."""
    path = captions_file(captions)
    return list(captions or ()) if path is None else [prompt.text for prompt in read_prompts(path)]


def caption_statistics(model: DiffusionModel, captions: Sequence[str]) -> tuple[torch.Tensor, int]:
    """B = Σ EᵀE (d, d), float64, over all positions of all captions including padding, and the number of captions.

    Captions are truncated to the model's length. Results of large collections are cached in the user's cache folder.
    """
    if not captions:
        return _zeros(model), 0
    ids = model.padded_ids(captions, truncate=True)
    file = _remembered(model, ids) if len(captions) >= REMEMBERED_FROM else None
    total = _read(file)
    if total is None:
        total = _sum(model, ids)
        _keep(total, file)
    return total.to(model.device), len(captions)


def _sum(model: DiffusionModel, ids: torch.Tensor) -> torch.Tensor:
    """Σ EᵀE over prompts with token ids (n, tokens), encoded in batches."""
    with torch.no_grad():
        blocks = (
            model.parts(model.encode_ids(batch))["clip"].double().flatten(0, 1) for batch in ids.split(CAPTIONS_AT_ONCE)
        )
        return sum((rows.T @ rows for rows in blocks), _zeros(model))


def _zeros(model: DiffusionModel) -> torch.Tensor:
    width = model.projections("key", stream="text")[0].weight.shape[1]
    return torch.zeros(width, width, dtype=torch.float64, device=model.device)


def _remembered(model: DiffusionModel, ids: torch.Tensor) -> Path:
    """The cache file. Its name is a hash of the encoder's weights, the token ids, the device type and torch's version."""
    from platformdirs import user_cache_path

    parameters = model.named_parameters()
    weights = fingerprint({name: parameters[name].data for name in model.text_encoder_names})
    digest = hashlib.sha256(f"{weights} {model.device.type} {torch.__version__}".encode())
    digest.update(ids.cpu().numpy().tobytes())
    return user_cache_path("overpaint") / "captions" / f"{digest.hexdigest()[:24]}.safetensors"


def _read(file: Path | None) -> torch.Tensor | None:
    """The cached sum, or ``None`` if there is no such file or it cannot be read."""
    from safetensors.torch import load_file

    try:
        return load_file(file)["B"] if file else None
    except (OSError, SafetensorError, KeyError):
        return None


def _keep(total: torch.Tensor, file: Path | None) -> None:
    """Write the sum under a temporary name and rename it, so that readers never see half a file.

    If the cache folder is not writable, the sum is not cached.
    """
    from safetensors.torch import save_file

    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            save_file({"B": total.cpu()}, Path(folder) / file.name)
            os.replace(Path(folder) / file.name, file)
    except (OSError, SafetensorError):
        return
