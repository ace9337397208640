"""Text-to-image models behind one interface: `load_model` is the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overpaint.models.diffusion import DiffusionModel


def load_model(source: str | Any, dtype: str | None = None, device: str | None = None) -> DiffusionModel:
    """Load a diffusers text-to-image pipeline as a `DiffusionModel`.

    Args:
        source: A local pipeline folder, a hub id, ``"testbed"`` for the shipped model, or a diffusers pipeline object.
            Only safetensors are read. A pipeline object is used as it is, not copied: an erasure that is attached to
            the model also acts on the pipeline.
        dtype: ``"float32"`` (default), ``"float16"``, ``"bfloat16"`` or ``"float64"``; a pipeline object keeps its own.
        device: A torch device, ``"cpu"`` by default; a pipeline object stays where it is.

    Raises:
        UserError: The pipeline is of an unsupported family, lacks parts or weights, has weights of wrong shapes or
            non-finite weights, or its parts do not fit each other.
    """
    from overpaint.models.loading import from_pipeline, load_pipeline

    if isinstance(source, str):
        return load_pipeline(source, dtype or "float32", device or "cpu")
    return from_pipeline(source, dtype, device)


__all__ = ["load_model"]
