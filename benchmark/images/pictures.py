"""Sources of real pictures: the options of ``conf/pictures``, or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from overpaint.blocks.pictures import Pictures, read_image
from overpaint.errors import UserError, nearest
from overpaint.grid.digests import IMAGE_SUFFIXES
from overpaint.grid.paths import path_of
from overpaint.grid.registry import component, components
from overpaint.run.store import file_hash


@cache
def pictures(name: str) -> Pictures:
    """The source that ``model.reference`` names: an option of ``conf/pictures``, else a folder."""
    return component("pictures", name).build() if name in components("pictures") else Folder(name)


@dataclass
class Folder(Pictures):
    """The image files of ``folder``, sorted by name. They are identified by their content, not by their path."""

    folder: str

    @cached_property
    def _files(self) -> list[Path]:
        path = path_of(self.folder, "model.reference")
        if not path.is_dir():
            meant = nearest(self.folder, components("pictures"))
            raise UserError(
                f"model.reference={self.folder} is not a folder of images{meant} (names: overpaint list pictures)"
            )
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"model.reference={self.folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        return files

    def identity(self, count: int) -> Mapping[str, Any]:
        for path in self._files[:count]:
            read_image(path, whole=False)
        return {"files": [file_hash(path) for path in self._files[:count]]}

    def available(self, count: int) -> int:
        return min(count, len(self._files))

    def references(self, count: int) -> list[tuple[Image.Image, str]]:
        return [(read_image(path), "") for path in self._files[:count]]
