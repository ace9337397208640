"""State that a worker process keeps between tasks: the loaded model and the detectors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overpaint.errors import changed
from overpaint.grid.registry import component
from overpaint.images.pictures import pictures
from overpaint.models import load_model
from overpaint.models.erasure import load_erasure
from overpaint.models.intact import intact
from overpaint.models.sources import unchanged

if TYPE_CHECKING:
    from overpaint.blocks.pictures import Pictures
    from overpaint.detectors.detector import Detector
    from overpaint.extractors.extractor import Extractor
    from overpaint.models.diffusion import DiffusionModel
    from overpaint.models.erasure import Erasure, TensorChange


class Workbench:
    """Keeps the last model and all detectors and extractors in memory. ``loads`` counts how often model weights were read."""

    def __init__(self) -> None:
        self.loads = 0
        self._wanted: tuple[str, ...] | None = None
        self._model: DiffusionModel | None = None
        self._detectors: dict[str, Detector] = {}
        self._extractors: dict[str, Extractor] = {}

    def model(self, task_config: Mapping[str, Any], runtime: Mapping[str, Any]) -> DiffusionModel:
        """The task's model. It is read again only if the path, content, precision or device differs from the previous call, or
        if a method or an attack has changed its weights.

        Raises:
            UserError: the model's files have changed since the run was planned.
        """
        path = runtime["path"]
        wanted = (path, task_config["model"], task_config["precision"], runtime.get("device") or "cpu")
        model = self._model
        if model is None or model.changed_by or self._wanted != wanted:
            self._model = model = None  # free the old model before the new one is read
            repeatable(wanted[-1])
            model = load_model(path, *wanted[2:])
            if not unchanged(path, task_config["model"]):
                raise changed(f"model.path={path}")
            self._model = model
            self._wanted = wanted
            self.loads += 1
        return model

    @contextmanager
    def victim(
        self, task_config: Mapping[str, Any], runtime: Mapping[str, Any], erasure: Path | None, by: str = ""
    ) -> Iterator:
        """Context: the task's model with the erasure in folder ``erasure`` attached, or unedited if it is ``None``.

        With ``compiled`` in the task's configuration its network is compiled, unless the erasure adds layers to it. With
        ``by``, the name of an attack, the weights are checked at the end (`overpaint.models.intact`).
        """
        model = self.model(task_config, runtime)
        with intact(model, by) if by else nullcontext(), self._victim(model, task_config, erasure):
            yield model

    @contextmanager
    def _victim(self, model: DiffusionModel, task_config: Mapping[str, Any], erasure: Path | None) -> Iterator[None]:
        self._erasure = load_erasure(erasure / "erasure.safetensors") if erasure else None
        self._detach = self._erasure.attach(model) if self._erasure else lambda: None
        adapted = self._erasure and any(part.kind == "adapter" for part in self._erasure.sequence)
        try:
            with model.compiled() if task_config.get("compiled") and not adapted else nullcontext():
                yield
        finally:
            self._detach()
            self._erasure = None

    def unedited(self) -> AbstractContextManager[DiffusionModel]:
        """Context inside a `victim` block: the same model without the erasure, which is attached again at the end."""
        return self._with(None)

    def adapted(self, change: TensorChange) -> AbstractContextManager[DiffusionModel]:
        """Context inside a `victim` block: the victim with ``change(name, tensor)`` in place of its adapters' own tensors."""
        return self._with(self._erasure and self._erasure.adapted(change))

    @contextmanager
    def _with(self, other: Erasure | None) -> Iterator[DiffusionModel]:
        """Context: the model with another erasure, or without one, instead of the victim's."""
        model = self._model
        if model is None:
            raise RuntimeError("unedited() and adapted() are only of use inside a victim() block")
        self._detach()
        detach = other.attach(model) if other else lambda: None
        try:
            yield model
        finally:
            detach()
            self._detach = self._erasure.attach(model) if self._erasure else lambda: None

    def detector(self, name: str, settings: Mapping[str, Any], device: str | None = None) -> Detector:
        """The detector with these settings on a device. It is built on the first call."""
        chosen = component("detector", name)
        key = f"{name} on {device}: {sorted((k, str(v)) for k, v in settings.items())}"
        if key not in self._detectors:
            detector = chosen.build({k: v for k, v in settings.items() if k in chosen.defaults})
            detector.device = device or detector.device
            repeatable(detector.device)
            self._detectors[key] = detector
        return self._detectors[key]

    def extractor(self, name: str, settings: Mapping[str, Any], device: str | None) -> Extractor:
        """The extractor with these settings, with its network on this device. It is built on the first call."""
        chosen = component("extractor", name)
        key = f"{name}:{device}:{sorted((k, str(v)) for k, v in settings.items())}"
        if key not in self._extractors:
            extractor = chosen.build({k: v for k, v in settings.items() if k in chosen.defaults})
            extractor.device = device or "cpu"
            repeatable(extractor.device)
            self._extractors[key] = extractor
        return self._extractors[key]

    def drop_networks(self) -> bool:
        """Forget all detectors and extractors, which are built again when they are needed. Returns whether there were any."""
        found = bool(self._detectors or self._extractors)
        self._detectors.clear()
        self._extractors.clear()
        return found

    def pictures(self, name: str) -> Pictures:
        """The source of real pictures that ``model.reference`` names."""
        return pictures(name)

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that affect results, for manifests."""
        found = {}
        for name in ("overpaint", "torch", "diffusers", "peft", "transformers", "numpy", "safetensors"):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "unknown"
        return found


def repeatable(device: str = "cuda") -> None:
    """If ``device`` is a GPU, let GPUs compute exactly in this process: float32 is float32, and the same task gives the same
    result.

    By default, convolutions in float32 are computed in TF32, whose fraction has 10 bits, and some kernels add in any order.
    Kernels without a deterministic form are used with a warning.
    """
    if not device.startswith("cuda"):
        return
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS may add in another order
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only finds mistakes
