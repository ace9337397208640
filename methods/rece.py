"""RECE: after a UCE edit, find the text rows that still bring the concept back, and edit those away too.

Gong, Chen, Wei, Chen and Jiang, "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models", ECCV 2024,
arXiv 2407.12383. W° (o, d) are the model's key and value matrices, W the present ones: UCE's (``legacy``, ``replace``) to
begin with. E(p) (77, d) are all rows of a text, E(c) of a concept, E(g) of its anchor. Every epoch, with sums over all
matrices of all layers,

    G = Σ WᵀW,  H = Σ WᵀW°                                                  (d, d)
    A = E(c) Mᵀ,  M = (G + rI)⁻¹ H      least Σ ‖W a − W° e‖² + r‖a‖² for each row e: the adversarial rows (77, d)
    R = (E(g) − A) Wᵀ                                                        (77, o), row for row
    W ← W + α Rᵀ A S⁻¹,  S = λI + α AᵀA + β Σ_t E(t)ᵀE(t)                    α ``erase_scale``, β ``retain_scale``

for all concepts at once; t are the empty text and the retained ones, whose outputs under the present W are kept. The
other forms of ``regulariser`` pull the rows elsewhere than to zero, or count the concept's own rows in:

    standard   to the rows of a text:         A = (E(c) Hᵀ + r E(text)) (G + rI)⁻¹
    first      to what W makes of E(c):       M = ((1 + r) G)⁻¹ (H + rG)
    second     to E(c):                       M = (G + rI)⁻¹ (H + rI)
    both                                      M = ((1 + r) G + rI)⁻¹ (H + rG + rI)

The official code keeps the last epoch for artists and objects, and for unsafe content the first whose pictures show the
least of it to a detector (``select: validation``). It inverts in float32 for every layer; here S is factored once an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from overpaint.concepts import Request
from overpaint.erasing import Eraser
from overpaint.erasure import Erasure, LowRank, Replacement
from overpaint.errors import UserError, at_least, unknown
from overpaint.methods.prior import Captions, read_captions
from overpaint.methods.ridge import Ridge, factor, factored, gram, reduced, stored
from overpaint.methods.templates import phrase_templates
from overpaint.methods.text_rows import TextRows
from overpaint.methods.uce import UCE, shifts
from overpaint.models.diffusion import DiffusionModel, Projection
from overpaint.registry import component
from overpaint.replay import Draws, show


@dataclass(kw_only=True)
class RECE(Eraser):
    """Hyper-parameters of RECE; ``conf/method/rece.yaml`` says what each means."""

    epochs: int
    regulariser: Literal["zero", "standard", "first", "second", "both"]
    regulariser_text: str | None
    r: float
    erase_scale: float
    retain_scale: float
    lamb: float
    empty_texts: Literal["one", "one_a_concept"]
    default_anchor: str
    uce_erase_scale: float
    uce_preserve_scale: float | None
    uce_lamb: float
    select: Literal["last", "validation"]
    validation_detector: str | None
    validation_threshold: float
    validation_prompts: Captions
    validation_images: int

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "conditioning"

    def __post_init__(self):
        at_least(0, epochs=self.epochs, r=self.r, erase_scale=self.erase_scale, retain_scale=self.retain_scale)
        at_least(0, lamb=self.lamb)
        at_least(1, validation_images=self.validation_images)
        if self.select == "validation" and not self.validation_detector:
            raise UserError("select=validation needs validation_detector: the name of what looks at the pictures")
        if self.regulariser_text is not None and self.regulariser != "standard":
            raise UserError(f"regulariser_text needs regulariser=standard, which pulls to it; got {self.regulariser}")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        uce = self.uce()
        rows, edited, shared = uce.problem(model, request)
        matrices = Matrices(model.projections("key", "value"))
        matrices.step(shared, shifts(edited))

        concepts = [rows.all(c.name) for c in request.erase]
        anchors = torch.cat([rows.all(text) for text in request.anchors(self.default_anchor)])
        empty = [""] * (len(concepts) if self.empty_texts == "one_a_concept" else 1)
        kept = gram((rows.all(text) for text in [*empty, *(c.name for c in request.retain)]), anchors)
        text = self.regulariser_text
        pull = None if text is None else TextRows(model, [text]).all(text)
        for epoch in range(self.epochs):
            found = self.adversaries(concepts, matrices, pull)
            show(**{f"adv.{epoch}.{n}": A for n, A in enumerate(found)})
            A = torch.cat(found)
            shared = factor(A, kept, self.lamb, self.erase_scale, self.retain_scale)
            matrices.step(shared, anchors - A)

        epoch, manifest = self.epochs, {"condition": shared.condition}
        if self.select == "validation":
            rates = [self.rate(model, request, matrices.changes(epoch)) for epoch in range(self.epochs + 1)]
            epoch = rates.index(min(rates))
            manifest |= {"epoch": epoch, "rates": rates}
        return Erasure("rece", changes=matrices.changes(epoch), manifest=manifest)

    def uce(self) -> UCE:
        """What makes the start."""
        settings = {
            "variant": "legacy",
            "technique": "replace",
            "expand_prompts": "off",
            "erase_scale": self.uce_erase_scale,
            "preserve_scale": self.uce_preserve_scale,
            "lamb": self.uce_lamb,
            "default_anchor": self.default_anchor,
        }
        return component("method", "uce").build(settings)

    def adversaries(
        self, embeds: list[torch.Tensor], matrices: Matrices, pull: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """A (77, d) for the rows E(c) (77, d) of each concept; ``pull`` are E(text), ``None`` stands for E(c)."""
        G = sum(W.T @ W for W in matrices.now.values())
        H = sum(W.T @ matrices.base[name] for name, W in matrices.now.items())
        rI = self.r * torch.eye(len(G), dtype=G.dtype, device=G.device)
        left, right = G + rI, H
        if self.regulariser in ("first", "both"):
            left, right = (1 + self.r) * G, H + self.r * G
        if self.regulariser == "second":
            right = H + rI
        if self.regulariser == "both":
            left, right = left + rI, right + rI
        cholesky, _ = factored(left, f"r={self.r:g} leaves the adversarial rows undetermined; take r > 0")
        found = []
        for E in embeds:
            wanted = E @ right.T
            if self.regulariser == "standard":
                wanted = wanted + self.r * (E if pull is None else pull)
            found.append(torch.cholesky_solve(wanted.T, cholesky).T)
        return found

    def rate(self, model: DiffusionModel, request: Request, changes: dict[str, LowRank | Replacement]) -> float:
        """The share of validation pictures in which the detector still sees the concept that was asked for."""
        detector = component("detector", self.validation_detector).build()
        given = read_captions(self.validation_prompts)
        draws, seen = Draws(self.seed), []
        for concept in request.erase:
            label = concept.label or concept.name
            prompts = given or [
                t.format(concept.phrase) for t in phrase_templates(concept.kind, self.validation_images)
            ]
            prompts = (prompts * self.validation_images)[: self.validation_images]
            seeds = [draws.integer("validation", 0, 2**31) for _ in prompts]
            with Erasure("rece", changes=changes).attached(model):
                scores = detector.score(model.sample(prompts, seeds))
            if label not in scores:
                labels = scores.columns.difference(["features", "failed"])
                raise unknown("label", label, labels, f"validation_detector={self.validation_detector}")
            seen += (scores[label] >= self.validation_threshold).tolist()
        return sum(seen) / len(seen)


class Matrices:
    """Keys and values from W° on, solve by solve: ``base`` and ``now`` (o, d), float64, by name."""

    def __init__(self, projections: list[Projection]):
        self.projections = projections
        self.base = {p.name: p.weight.double() for p in projections}
        self.now = dict(self.base)
        self._ups: dict[str, list[torch.Tensor]] = {p.name: [] for p in projections}
        self._downs: list[torch.Tensor] = []

    def step(self, shared: Ridge, shift: torch.Tensor) -> None:
        """Add W Sᵀ·down to every W, for a shift S (n, d) of the edited rows."""
        shift, down = reduced(shift, shared.down)
        self._downs.append(down)
        for name, W in self.now.items():
            up = W @ shift.T
            self._ups[name].append(up)
            self.now[name] = W + up @ down

    def changes(self, epoch: int) -> dict[str, LowRank | Replacement]:
        """What the first solve and ``epoch`` others after it make of the matrices."""
        down = torch.cat(self._downs[: epoch + 1])
        factors = {p.name: LowRank(torch.cat(self._ups[p.name][: epoch + 1], dim=1), down) for p in self.projections}
        return {p.name: stored(factors[p.name], p.weight) for p in self.projections}
