"""Text-to-image models behind one interface: `load_model` is the way in."""

from __future__ import annotations


def load_model(path: str, dtype: str = "float32", device: str = "cpu"):
    """Load any diffusers text-to-image pipeline folder (or hub id) as a `DiffusionModel`.

    ``path`` is a local folder, a hub id, or ``"testbed"`` for the shipped model. Only safetensors are read.
    """
    from overpaint.models.loading import load_pipeline

    return load_pipeline(path, dtype, device)


__all__ = ["load_model"]
