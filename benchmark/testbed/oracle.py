"""The oracle: a small network that classifies images of the drawn world."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .canvas import STYLES
from .world import LABELLED

WIDTHS = {"a": (32, 64, 96), "b": (24, 48, 80)}
FEATURES = 96
FILES = {"a": "oracle.safetensors", "b": "oracle_b.safetensors"}


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(8, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.silu(self.norm(self.first(x))))


class Oracle(nn.Module):
    """Predicts independent probabilities of objects, faces, slime and watermark, and one style per image."""

    labels: ClassVar[list[str]] = [*LABELLED, *STYLES]

    def __init__(self, which: str = "a"):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in WIDTHS[which]:
            layers += [
                nn.Conv2d(before, width, 5 if before == 3 else 3, stride=2, padding=2 if before == 3 else 1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
                _Residual(width),
                nn.GroupNorm(8, width),
                nn.SiLU(),
            ]
            before = width
        self.trunk = nn.Sequential(*layers)
        self.neck = nn.Linear(2 * before, FEATURES)
        self.objects = nn.Linear(FEATURES, len(LABELLED))
        self.styles = nn.Linear(FEATURES, len(STYLES))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of objects (n, 24) and styles (n, 7) and features (n, 96), from images (n, 3, 64, 64) in [-1, 1]."""
        maps = self.trunk(images)
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
        features = nn.functional.silu(self.neck(pooled))
        return {"objects": self.objects(features), "styles": self.styles(features), "features": features}

    @torch.no_grad()
    def predict(self, images, batch: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (n, len(labels)) and features (n, 96) of PIL images or of uint8 (n, 64, 64, 3)."""
        if not isinstance(images, np.ndarray):
            images = [np.asarray(image.convert("RGB") if hasattr(image, "convert") else image) for image in images]
            images = np.stack(images) if images else np.zeros((0, 64, 64, 3), np.uint8)
        if images.dtype != np.uint8 or images.shape[1:] != (64, 64, 3):
            raise ValueError(f"the oracle reads uint8 pictures of 64x64 in RGB, got {images.dtype} {images.shape}")
        device = self.neck.weight.device
        probabilities, features = [np.zeros((0, len(self.labels)), np.float32)], [np.zeros((0, FEATURES), np.float32)]
        for first in range(0, len(images), batch):
            pixels = torch.from_numpy(images[first : first + batch].copy()).to(device)
            out = self(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
            probabilities.append(torch.cat([out["objects"].sigmoid(), out["styles"].softmax(1)], 1).cpu().numpy())
            features.append(out["features"].cpu().numpy())
        return np.concatenate(probabilities), np.concatenate(features)


def load_oracle(folder: str | Path, which: str = "a") -> Oracle:
    """One of the two independently trained oracles, in float32 and evaluation mode."""
    if which not in FILES:
        raise ValueError(f"there is no oracle {which!r}; choose one of {', '.join(FILES)}")
    with torch.device("meta"):  # does not initialise weights, so the global generator is not used
        oracle = Oracle(which)
    weights = {name: value.float() for name, value in load_file(Path(folder) / FILES[which]).items()}
    oracle.load_state_dict(weights, assign=True)
    return oracle.eval()
