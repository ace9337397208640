"""The base class of every method, `Eraser`, and the function `erase`, which runs a method by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, is_dataclass, replace
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, ClassVar

from overpaint.errors import UserError
from overpaint.grid.assets import referred, require
from overpaint.grid.choices import preset_for
from overpaint.grid.concept_sets import Merge
from overpaint.grid.concepts import KINDS, Request, for_concepts
from overpaint.grid.lengths import Shortenable
from overpaint.grid.registry import component
from overpaint.grid.typed import Seed, check_type
from overpaint.models.erasure import Erasure
from overpaint.models.intact import intact
from overpaint.models.meter import Meter

if TYPE_CHECKING:
    from overpaint.models.diffusion import DiffusionModel


#: Names of arguments of `erase`, which a hyper-parameter cannot have.
RESERVED = "model method erase anchor retain kind request preset sequential merge before".split()


@dataclass(kw_only=True)
class Eraser(Shortenable, ABC):
    """Base class of a method.

    A subclass is a keyword-only dataclass. Its fields are the hyper-parameters; their defaults are in
    ``conf/method/<name>.yaml``, and values are type-checked before ``__post_init__``, which checks ranges. A subclass
    implements `erase`, and `install` as well if its erasures are adapters or guards.

    Class attributes:
        version: part of the key of every result; raise it in a commit that can change results.
        families: the model families it supports (``model.family``).
        kinds: the kinds of concept it can erase.
        multiple: whether one request may contain several concepts.
        stacks: whether its guard can be installed on a model that already has one (then in ``model.guidance``); ``None`` if it
            makes no guards. With ``False``, a plan says which cells will fail.
        acts_on: the stage of the pipeline that it changes: ``"text_encoder"``, ``"conditioning"`` or ``"denoiser"``
            (`overpaint.grid.scope`). It is a property here, so that it may depend on hyper-parameters.
        mergeable: whether its erasures are changed weights, or adapters whose output is linear in their tensors named ``up``, so
            that they can be scaled and merged with other weights. It is a property here, for the same reason.
        changes_weights: whether its erasures are changed weights, which every rule merges; others can only be summed. It is a
            property here, for the same reason.
        draws: whether the result depends on the seed. A method that does not draw is run for one seed only. It is a
            property here, for the same reason.
        advice: sentences that a plan shows: what a user should know before these settings run.
        added: hyper-parameters that are newer than stored results, with the value that changes nothing. Keys leave them out at
            that value, so that stored results stay valid.
        models: hyper-parameters that name a model, whose content is part of keys.
        reads_prompts: whether its guard or gate reads the prompts of images.
        lengths, paced: the hyper-parameters that a budget may shorten (`overpaint.grid.lengths.Shortenable`).
    """

    seed: int = 0

    version: ClassVar[int] = 1
    families: ClassVar[tuple[str, ...]] = ("sd",)
    kinds: ClassVar[tuple[str, ...]] = KINDS
    multiple: ClassVar[bool] = True
    stacks: ClassVar[bool | None] = None
    added: ClassVar[Mapping[str, Any]] = {}
    models: ClassVar[tuple[str, ...]] = ()
    reads_prompts: ClassVar[bool] = False

    @property
    def acts_on(self) -> str:
        return "denoiser"

    @property
    def mergeable(self) -> bool:
        return True

    @property
    def changes_weights(self) -> bool:
        return self.install.__func__ is Eraser.install.__func__  # type: ignore[attr-defined]

    @property
    def advice(self) -> Sequence[str]:
        return ()

    def notes_on(self, model: str) -> Sequence[str]:
        """Sentences about this eraser on a model (its path), which is not loaded.

        Raises a `UserError` if their files do not fit each other.
        """
        return ()

    @property
    def draws(self) -> bool:
        return True

    @property
    def networks(self) -> tuple[str, ...]:
        """Hyper-parameters that name a network that the erasure loads from the hub. Its commit is part of keys."""
        return ()

    @abstractmethod
    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        """Return an erasure of ``request.erase`` that keeps ``request.retain``.

        The model must be unchanged afterwards, and all random numbers must come from ``self.seed``
        (`overpaint.blocks.draws.Draws`), so that the same seed gives the same erasure.
        """

    def detectors(self, request: Request) -> Mapping[str, Mapping[str, Any]]:
        """The detectors that look at images while this request is erased or afterwards, by name, with the settings they get.

        Their settings, versions and the hashes of their weights are part of the erasure's key.
        """
        return {}

    def __init_subclass__(cls, **arguments: Any):
        super().__init_subclass__(**arguments)
        fields = [name for name, kind in get_annotations(cls).items() if "ClassVar" not in str(kind)]
        for name in fields:
            if name in RESERVED:
                raise UserError(
                    f"{cls.__name__}.{name}: erase() has an argument of this name; call it {name}_ for example"
                )

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        """Install an adapter or a guard on the model; the returned function removes it. Deltas do not need this."""
        raise TypeError(f"{cls.__name__} makes erasures of kind {erasure.kind!r} but does not implement install()")

    def check(self, family: str | None, request: Request, name: str, sequential: bool = False) -> None:
        """Raise a `UserError` if this method does not support the model's family or the request.

        ``family`` is ``None`` for a hub model that is not known before it is downloaded.
        """
        if family and family not in self.families:
            raise UserError(f"method={name} supports the families {', '.join(self.families)}, not {family}")
        for concept in request.erase:
            if concept.kind not in self.kinds:
                raise UserError(
                    f"method={name} erases the kinds {', '.join(self.kinds)}, not {concept.kind} "
                    f"(concept {concept.name!r})"
                )
        if len(request.erase) > 1 and not self.multiple and not sequential:
            raise UserError(
                f"method={name} erases one concept per request, got {len(request.erase)}; "
                "erase them one after the other with concepts.sequential=true, or merge erasures of one concept each with "
                "concepts.merge=sum"
            )


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
    merge: Merge | Mapping[str, Any] | str | None = None,
    before: Erasure | None = None,
    **hyperparameters: Any,
) -> Erasure:
    """Erase concepts from a model and return the erasure. The model itself is unchanged.

    Args:
        model: a model from `overpaint.load_model`.
        method: the name of a method (``overpaint list methods``).
        erase: concepts to erase, as names or `Concept` objects.
        anchor: the text to paint instead: one for all concepts or a list with one each. ``None``: the method's default.
        retain: concepts to keep, as names or `Concept` objects.
        kind: the kind of the concepts that are given as names (``"object"``, ``"style"``, …).
        request: replaces ``erase``, ``anchor``, ``retain`` and ``kind``.
        preset: a preset of ``conf/method/<method>.yaml``, or its variant for these concepts (``paper_style`` for ``paper``);
            ``"auto"``: the most specific preset for the concepts, as in ``overpaint run`` on a model without a preset of its own.
            ``None``: the defaults alone.
        seed: seed of all random numbers that the method draws.
        sequential: erase the concepts one after the other, each from the model that the previous erasure left.
        merge: erase each concept on the unedited model, and merge these erasures: ``"sum"``, ``"mean"``, ``"ties"``,
            ``"closed"``, or a mapping such as ``{"rule": "ties", "keep": 0.1}`` (`overpaint.grid.concept_sets.Merge`).
        before: an erasure by any method that is attached to the model while this one is made.
        hyperparameters: override the defaults and the preset of ``conf/method/<method>.yaml``.

    Returns:
        The erasure. With ``sequential`` or ``before`` it includes the erasures below it.

    Raises:
        UserError: an unknown name, a bad value, a model or concept that the method does not support, or a method that changed
            the model itself, which must then be loaded again.
        AssetMissing: a hyper-parameter or a detector names an asset that is not on this machine.
    """
    if not hasattr(model, "family"):
        raise UserError(f"erase() takes a model of overpaint.load_model, got {type(model).__name__}")
    check_type(seed, Seed, "seed")
    request = request or Request.of(erase, anchor, retain, kind)
    chosen = component("method", method)
    suited = preset_for(chosen, preset, None, request.erase[0].kind, [concept.name for concept in request.erase])
    values = for_concepts(chosen.settle(hyperparameters, suited), request)
    require(referred(values))
    eraser = chosen.build(values, seed=seed)
    eraser.check(model.family, request, method, sequential or merge is not None)
    for name, settings in eraser.detectors(request).items():
        component("detector", name).build(settings).assets()  # raises now, not after hours of training
    if merge is not None:
        if sequential or before:
            raise UserError(
                "merge joins erasures that are made on the unedited model; it takes no sequential and no before"
            )
        rule = merge if isinstance(merge, Merge) else Merge.of(merge, "merge")
        with intact(model, f"method={method}"):
            return _merged(model, method, eraser, request, rule)
    requests = request.singly() if sequential else [request]
    with intact(model, f"method={method}"):
        erasure = _erased(model, method, eraser, requests[0], before)
        for part in requests[1:]:
            erasure = _erased(model, method, eraser, part, erasure)
    return erasure


def _erased(model: DiffusionModel, method: str, eraser: Eraser, request: Request, before: Erasure | None) -> Erasure:
    """Run one request on the model with ``before`` attached. The manifest's costs cover the whole sequence."""
    with before.attached(model) if before else nullcontext(), Meter(str(model.device)) as meter:
        erasure = eraser.erase(model, request)
    if not isinstance(erasure, Erasure):
        raise UserError(
            f"method={method} returned {type(erasure).__name__}; erase returns an Erasure (docs/extending.md)"
        )
    erasure.check_layout(model)
    seconds, peak_bytes = meter.seconds, meter.peak_bytes
    if before:
        seconds += before.manifest.get("seconds", 0)
        peak_bytes = max(peak_bytes, before.manifest.get("peak_bytes", 0))
        erasure = _on_top(erasure, _below(before))
    return _described(model, method, eraser, request, erasure, seconds, peak_bytes)


def _merged(model: DiffusionModel, method: str, eraser: Eraser, request: Request, merge: Merge) -> Erasure:
    """Run one request per concept on the unedited model and merge the erasures. The costs are those of all."""
    from overpaint.blocks.merging import merged

    parts = [_erased(model, method, eraser, part, None) for part in request.singly()]
    if len(parts) == 1:
        return parts[0]
    with Meter(str(model.device)) as meter:
        erasure = merged(model, parts, request, merge)
    seconds = meter.seconds + sum(part.manifest["seconds"] for part in parts)
    peak_bytes = max(meter.peak_bytes, *(part.manifest["peak_bytes"] for part in parts))
    erasure.manifest |= {"merge": merge.settings}
    if erasure.before:
        erasure.before = _below(erasure.before)
    return _described(model, method, eraser, request, erasure, seconds, peak_bytes)


def _on_top(erasure: Erasure, before: Erasure) -> Erasure:
    """The erasure, which may be a sequence itself, with ``before`` below its lowest level."""
    return erasure.after(_on_top(erasure.before, before) if erasure.before else before)


def _below(before: Erasure) -> Erasure:
    """An erasure as the lower part of a sequence, without what the manifest of the whole sequence says."""
    left_out = ("seconds", "peak_bytes", "base", "model", "artefact_bytes")
    manifest = {key: value for key, value in before.manifest.items() if key not in left_out}
    return replace(before, manifest=manifest, before=before.before and _below(before.before))


def _described(
    model: DiffusionModel,
    method: str,
    eraser: Eraser,
    request: Request,
    erasure: Erasure,
    seconds: float,
    peak_bytes: int,
) -> Erasure:
    """The erasure with its manifest and the weights that it was made for."""
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
    parameters = model.named_parameters()
    erasure.base = {name: parameters[name].data for name in erasure.names}
    erasure.manifest |= erasure.base_hashes(model)
    if erasure.before and erasure.kind == "guard":
        erasure.attach(model)()  # raises now, instead of during sampling, if two guards cannot be combined
    return erasure


def _plain(concept) -> Mapping[str, Any]:
    return {"name": concept.name, "kind": concept.kind, "anchor": concept.anchor}
