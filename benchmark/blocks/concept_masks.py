"""Masks of the pixels that show a concept, from the model's cross-attention or from a detector and a segmenter.

`Segmenter` is "Grounded SAM": Grounding DINO (Liu et al., ECCV 2024, arXiv 2303.05499) finds boxes for a word, and SAM
(Kirillov et al., ICCV 2023, arXiv 2304.02643) segments them.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from PIL import Image

from overpaint.blocks.draws import Draws
from overpaint.errors import AssetMissing, UserError
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import functional, torch

#: The timestep of the attention maps, as a fraction of the schedule. Outlines are decided around it.
NOISED_TO = 0.3


def attention_masks(
    model: DiffusionModel, latents: torch.Tensor, prompt: str, tokens: torch.Tensor, threshold: float, draws: Draws
) -> torch.Tensor:
    """Boolean masks (n, h, w) for latents (n, c, h, w) of images of one prompt.

    Each image is noised to t = 0.3 T. The attention to ``tokens`` (a boolean mask over the prompt's tokens) is averaged
    over heads and layers and min–max scaled per image. The mask is where the result exceeds ``threshold``.
    """
    t = torch.full((len(latents),), int(NOISED_TO * model.train_timesteps), device=model.device)
    latents = latents.to(model.dtype)
    with torch.no_grad(), model.attention_maps() as maps:
        embeds = model.encode([prompt]).expand(len(latents), -1, -1)
        model.predict(model.add_noise(latents, draws.noise("mask", latents.shape, latents), t), t, embeds)
        layers = []
        for found in maps.values():
            side = round(found.shape[-2] ** 0.5)
            layer = found[..., tokens].float().mean(dim=(1, 3)).unflatten(-1, (side, side))
            layers.append(functional.interpolate(layer[:, None], latents.shape[-2:], mode="bilinear")[:, 0])
    seen = reduce(torch.add, layers)
    low, high = seen.amin(dim=(1, 2), keepdim=True), seen.amax(dim=(1, 2), keepdim=True)
    return (seen - low) > threshold * (high - low)


def concept_tokens(model: DiffusionModel, prompt: str, concept: str, end_tokens: bool) -> torch.Tensor:
    """S (tokens,), boolean: the positions of the concept's tokens in the prompt and, with ``end_tokens``, of all end tokens."""
    ids = model.padded_ids([prompt])[0].tolist()
    _, *word, end = model.token_ids(concept)
    found = [end_tokens and i == end for i in ids]
    for start in range(len(ids)):
        if ids[start : start + len(word)] == word:
            found[start : start + len(word)] = [True] * len(word)
    if not any(found):
        raise UserError(f"the tokens of {concept!r} are not among those of {prompt!r}; use other templates or captions")
    return torch.tensor(found, device=model.device)


class Segmenter:
    """Masks of a named object: the union of the masks of all boxes that score at least ``box_threshold``.

    If there is no such box, the mask is the whole image. ``detector`` and ``segmenter`` are folders or hub ids of a
    zero-shot object detector and a SAM of the transformers library.
    """

    def __init__(self, detector: str, segmenter: str, box_threshold: float, device: torch.device):
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, SamModel, SamProcessor

        self.box_threshold, self.device = box_threshold, device
        self.detector, self.words = _load(detector, AutoModelForZeroShotObjectDetection, AutoProcessor, device)
        self.segmenter, self.points = _load(segmenter, SamModel, SamProcessor, device)

    def __call__(self, picture: Image.Image, name: str) -> torch.Tensor:
        """The boolean mask (height, width) at the image's resolution."""
        with torch.no_grad():
            boxes = self.boxes(picture, name)
            if not len(boxes):
                return torch.ones(picture.height, picture.width, dtype=torch.bool, device=self.device)
            inputs = self.points(picture, input_boxes=[boxes.tolist()], return_tensors="pt").to(self.device)
            found = self.segmenter(**inputs, multimask_output=False).pred_masks.cpu()
            sizes = inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
            (masks,) = self.points.image_processor.post_process_masks(found, *sizes)
            return masks[:, 0].any(dim=0).to(self.device)

    def boxes(self, picture: Image.Image, name: str) -> torch.Tensor:
        """Boxes (n, 4) as x_min, y_min, x_max, y_max in pixels."""
        inputs = self.words(images=picture, text=f"{name.lower()}.", return_tensors="pt").to(self.device)
        found = self.detector(**inputs)
        sure = found.logits[0].sigmoid().amax(dim=-1) > self.box_threshold
        middle, size = found.pred_boxes[0, sure].split(2, dim=-1)
        corners = torch.cat([middle - size / 2, middle + size / 2], dim=-1)
        return corners * torch.tensor([picture.width, picture.height] * 2, device=corners.device)


def _load(path: str, network: Any, processor: Any, device: torch.device) -> tuple[Any, Any]:
    try:
        loaded = network.from_pretrained(path, use_safetensors=True).to(device).eval().requires_grad_(False)
        return loaded, processor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise AssetMissing(
            f"masks=segmenter cannot load the network {path} (a folder or a hub id): "
            f"{str(error).splitlines()[0]}; masks=attention and masks=all need no network"
        ) from error
