"""Faces in images, found by NudeNet's classes FACE_FEMALE and FACE_MALE, and the embedding of a face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import normalize, relu

from overpaint.detectors.nudenet import Boxes, NudeNet

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = ("FACE_FEMALE", "FACE_MALE")


class FaceFinder:
    """Cuts the most confident face out of each image. ``margin`` is the share of its box that is added to width and height."""

    def __init__(self, weights: str, device: str, margin: float):
        self.network, self.margin = NudeNet(weights=weights, group="core4", classes=None), margin
        self.network.device = device

    def faces(self, images: Sequence[Image]) -> list[tuple[Image, float] | None]:
        """The crop of a face with its confidence for each image; ``None`` without a face."""
        return [self._face(image, boxes) for image, boxes in zip(images, self.network.detect(images), strict=True)]

    def _face(self, image: Image, boxes: Boxes) -> tuple[Image, float] | None:
        faces = [box for box in boxes if box["class"] in CLASSES]
        if not faces:
            return None
        best = max(faces, key=lambda box: box["score"])
        x, y, width, height = best["box"]
        across, down = int(width * self.margin) / 2, int(height * self.margin) / 2
        left, top = int(max(x - across, 0)), int(max(y - down, 0))
        right, bottom = int(min(x + width + across, image.width)), int(min(y + height + down, image.height))
        if right <= left or bottom <= top:
            return None
        return image.convert("RGB").crop((left, top, right, bottom)), float(best["score"])


class Conv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self, inside: int, outside: int, size: int | tuple[int, int], stride: int = 1, pad: int | tuple[int, int] = 0
    ):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, size, stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return relu(self.bn(self.conv(x)))


class Residual(nn.Module):
    """x plus a scaled convolution of concatenated branches."""

    def __init__(self, width: int, joined: int, scale: float, *branches: nn.Module, last: bool = False):
        super().__init__()
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)
        self.conv2d = nn.Conv2d(joined, width, 1)
        self.scale, self.last, self.count = scale, last, len(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.cat([getattr(self, f"branch{number}")(x) for number in range(self.count)], dim=1)
        x = self.conv2d(found) * self.scale + x
        return x if self.last else relu(x)


class Reduction(nn.Module):
    """Concatenated branches of half the size."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)
        self.count = len(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([getattr(self, f"branch{number}")(x) for number in range(self.count)], dim=1)


class InceptionResnetV1(nn.Module):
    """Szegedy et al., AAAI 2017, as FaceNet's re-implementations use it. Input (n, 3, 160, 160), output unit vectors (n, 512).

    Names of tensors are those of facenet-pytorch's checkpoints; their classification head is not read.
    """

    def __init__(self):
        super().__init__()
        self.conv2d_1a, self.conv2d_2a, self.conv2d_2b = Conv(3, 32, 3, 2), Conv(32, 32, 3), Conv(32, 64, 3, pad=1)
        self.conv2d_3b, self.conv2d_4a, self.conv2d_4b = Conv(64, 80, 1), Conv(80, 192, 3), Conv(192, 256, 3, 2)
        self.repeat_1 = nn.Sequential(*(self._block35() for _ in range(5)))
        self.mixed_6a = Reduction(
            Conv(256, 384, 3, 2),
            nn.Sequential(Conv(256, 192, 1), Conv(192, 192, 3, pad=1), Conv(192, 256, 3, 2)),
            nn.MaxPool2d(3, 2),
        )
        self.repeat_2 = nn.Sequential(*(self._block17() for _ in range(10)))
        self.mixed_7a = Reduction(
            nn.Sequential(Conv(896, 256, 1), Conv(256, 384, 3, 2)),
            nn.Sequential(Conv(896, 256, 1), Conv(256, 256, 3, 2)),
            nn.Sequential(Conv(896, 256, 1), Conv(256, 256, 3, pad=1), Conv(256, 256, 3, 2)),
            nn.MaxPool2d(3, 2),
        )
        self.repeat_3 = nn.Sequential(*(self._block8(0.2) for _ in range(5)))
        self.block8 = self._block8(1.0, last=True)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=0.001, momentum=0.1)

    @staticmethod
    def _block35() -> Residual:
        two = nn.Sequential(Conv(256, 32, 1), Conv(32, 32, 3, pad=1))
        three = nn.Sequential(Conv(256, 32, 1), Conv(32, 32, 3, pad=1), Conv(32, 32, 3, pad=1))
        return Residual(256, 96, 0.17, Conv(256, 32, 1), two, three)

    @staticmethod
    def _block17() -> Residual:
        wide = nn.Sequential(Conv(896, 128, 1), Conv(128, 128, (1, 7), pad=(0, 3)), Conv(128, 128, (7, 1), pad=(3, 0)))
        return Residual(896, 256, 0.1, Conv(896, 128, 1), wide)

    @staticmethod
    def _block8(scale: float, last: bool = False) -> Residual:
        wide = nn.Sequential(Conv(1792, 192, 1), Conv(192, 192, (1, 3), pad=(0, 1)), Conv(192, 192, (3, 1), pad=(1, 0)))
        return Residual(1792, 384, scale, Conv(1792, 192, 1), wide, last=last)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(pixels)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(nn.functional.max_pool2d(x, 3, 2))))
        x = self.mixed_7a(self.repeat_2(self.mixed_6a(self.repeat_1(x))))
        x = self.block8(self.repeat_3(x)).mean(dim=(2, 3))
        return normalize(self.last_bn(self.last_linear(x)), dim=1)
