"""The contract of an eraser, and `erase`: from a method's name and a few words to an erasure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from overpaint.concepts import KINDS, Request
from overpaint.errors import UserError
from overpaint.meter import Meter
from overpaint.registry import component

if TYPE_CHECKING:
    from overpaint.erasure import Erasure
    from overpaint.models.diffusion import DiffusionModel


@dataclass(kw_only=True)
class Eraser(ABC):
    """A method. Fields are its hyper-parameters, whose defaults live in ``conf/method/<name>.yaml``.

    ``version`` is raised in the commit that can change its result; ``families`` and ``kinds`` say what it supports,
    ``multiple`` whether one request may name several concepts.
    """

    seed: int = 0

    version: ClassVar[int] = 1
    families: ClassVar[tuple[str, ...]] = ("sd",)
    kinds: ClassVar[tuple[str, ...]] = KINDS
    multiple: ClassVar[bool] = True

    @abstractmethod
    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        """Erase the requested concepts. The model comes back unchanged; the same seed gives the same erasure."""

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        """Put a guard or an adapter on the model and return what takes it off. Deltas need none."""
        raise TypeError(f"{cls.__name__} makes erasures of kind {erasure.kind!r} but says not how to install one")

    def check(self, model: DiffusionModel, request: Request, name: str) -> None:
        """Refuse what this method cannot do, with the reason."""
        if model.family not in self.families:
            raise UserError(f"method={name} works on {', '.join(self.families)}, not on {model.family}")
        for concept in request.erase:
            if concept.kind not in self.kinds:
                raise UserError(
                    f"method={name} erases {', '.join(self.kinds)}, not {concept.kind} (concept {concept.name!r})"
                )
        if len(request.erase) > 1 and not self.multiple:
            raise UserError(f"method={name} erases one concept a request, got {len(request.erase)}")


def erase(
    model: DiffusionModel,
    method: str,
    *,
    erase=None,
    anchor: str | list[str] | None = None,
    retain=(),
    kind: str = "object",
    request: Request | None = None,
    preset: str | None = None,
    seed: int = 0,
    **hyperparameters: Any,
) -> Erasure:
    """Erase concepts from a model and return the erasure; the model itself comes back unchanged.

    ``erase`` and ``retain`` are names (or `Concept`\\ s); ``anchor`` is what to paint instead, one for all or one each
    (``None``: the method's default). ``preset`` picks a documented setting of the method, ``hyperparameters`` override
    it; their names and defaults are those of ``conf/method/<method>.yaml``.
    """
    request = request or Request.of(erase, anchor, retain, kind)
    chosen = component("method", method)
    eraser = chosen.build(hyperparameters, preset, seed=seed)
    eraser.check(model, request, method)
    with Meter(str(model.device)) as meter:
        erasure = eraser.erase(model, request)
    erasure.manifest |= {
        "method": method,
        "version": eraser.version,
        "hyperparameters": asdict(eraser) if is_dataclass(eraser) else {},
        "erase": [_plain(c) for c in request.erase],
        "retain": [c.name for c in request.retain],
        "seconds": round(meter.seconds, 3),
        "peak_bytes": meter.peak_bytes,
        "artefact_bytes": erasure.artefact_bytes,
    }
    if erasure.changes:
        from overpaint.erasure import fingerprint

        parameters = model.named_parameters()
        erasure.manifest["base"] = fingerprint({name: parameters[name].data for name in erasure.changes})
    return erasure


def _plain(concept) -> Mapping[str, Any]:
    return {"name": concept.name, "kind": concept.kind, "anchor": concept.anchor}
