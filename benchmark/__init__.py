"""overpaint: a benchmark harness for concept erasure in text-to-image diffusion models.

>>> import overpaint
>>> model = overpaint.load_model("path-or-hub-id")
>>> erasure = overpaint.erase(model, "uce", erase=["church"], anchor="house")
>>> with erasure.attached(model):
...     images = model.sample(["a church"], seeds=[0])

Importing the package is cheap: torch, diffusers and pandas are imported by the functions that need them.
"""

from __future__ import annotations

from importlib import import_module

if __name__ != "overpaint":
    raise ImportError(f"this folder is the package 'overpaint'; do not import it as {__name__!r}")

__version__ = "0.1.0"

_PUBLIC = {
    "load_model": "overpaint.models",
    "erase": "overpaint.methods.eraser",
    "load_erasure": "overpaint.models.erasure",
    "Erasure": "overpaint.models.erasure",
    "Concept": "overpaint.grid.concepts",
    "UserError": "overpaint.errors",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'overpaint' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, so that notebooks complete them before they are imported."""
    return sorted({*globals(), *__all__})
