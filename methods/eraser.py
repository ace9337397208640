"""The contract of an eraser, and `erase`: from a method's name and a few words to an erasure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from overpaint.errors import UserError
from overpaint.grid.concepts import KINDS, Request
from overpaint.grid.registry import component
from overpaint.models.meter import Meter

if TYPE_CHECKING:
    from overpaint.models.diffusion import DiffusionModel
    from overpaint.models.erasure import Erasure


@dataclass(kw_only=True)
class Eraser(ABC):
    """A method. Fields are its hyper-parameters, whose defaults live in ``conf/method/<name>.yaml``.

    ``version`` is raised in the commit that can change its result; ``families`` and ``kinds`` say what it supports,
    ``multiple`` whether one request may name several concepts, ``stacks`` whether its guard can be put on a model that
    has one already (`install` finds it in ``model.guidance``), ``acts_on`` where on a prompt's way into the picture it
    stands (`overpaint.grid.scope.PROMPT_PATH`; a property where settings decide).
    """

    seed: int = 0

    version: ClassVar[int] = 1
    families: ClassVar[tuple[str, ...]] = ("sd",)
    kinds: ClassVar[tuple[str, ...]] = KINDS
    multiple: ClassVar[bool] = True
    stacks: ClassVar[bool] = False
    acts_on: ClassVar[str] = "denoiser"

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
    sequential: bool = False,
    before: Erasure | None = None,
    **hyperparameters: Any,
) -> Erasure:
    """Erase concepts from a model and return the erasure; the model itself comes back unchanged.

    ``erase`` and ``retain`` are names (or `Concept` objects); ``anchor`` is what to paint instead, one for all or one
    each (``None``: the method's default). ``preset`` picks a documented setting of the method, ``hyperparameters`` override
    it; their names and defaults are those of ``conf/method/<method>.yaml``. With ``sequential`` every concept is a
    request of its own, in order, each made on the last one's victim; ``before`` is an erasure, of any method, to start
    from. Either way the result is one erasure, which holds those below it.
    """
    request = request or Request.of(erase, anchor, retain, kind)
    chosen = component("method", method)
    eraser = chosen.build(hyperparameters, preset, seed=seed)
    requests = request.singly() if sequential else [request]
    for part in requests:
        eraser.check(model, part, method)
    for part in requests:
        before = _erased(model, method, eraser, part, before)
    return before


def _erased(model: DiffusionModel, method: str, eraser: Eraser, request: Request, before: Erasure | None) -> Erasure:
    """One request, made on the model with ``before`` on it; costs are those of the whole sequence."""
    from overpaint.models.erasure import fingerprint

    with before.attached(model) if before else nullcontext(), Meter(str(model.device)) as meter:
        erasure = eraser.erase(model, request)
    seconds, peak_bytes = meter.seconds, meter.peak_bytes
    if before:
        manifest = dict(before.manifest)
        seconds += manifest.pop("seconds", 0)
        peak_bytes = max(peak_bytes, manifest.pop("peak_bytes", 0))
        whole = {key: value for key, value in manifest.items() if key not in ("base", "artefact_bytes")}
        erasure = erasure.after(replace(before, manifest=whole))
    erasure.manifest |= {
        "method": method,
        "version": eraser.version,
        "hyperparameters": asdict(eraser) if is_dataclass(eraser) else {},
        "erase": [_plain(c) for c in request.erase],
        "retain": [c.name for c in request.retain],
        "seconds": round(seconds, 3),
        "peak_bytes": peak_bytes,
        "artefact_bytes": erasure.artefact_bytes,
    }
    if erasure.names:
        parameters = model.named_parameters()
        erasure.base = {name: parameters[name].data for name in erasure.names}
        erasure.manifest["base"] = fingerprint(erasure.base)
    if before and erasure.kind == "guard":
        erasure.attach(model)()  # two guards that do not get along are told now, not while sampling
    return erasure


def _plain(concept) -> Mapping[str, Any]:
    return {"name": concept.name, "kind": concept.kind, "anchor": concept.anchor}
