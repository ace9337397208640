"""RECE: after a UCE edit, repeatedly find the text rows that still produce the concept, and edit them as well.

Gong, Chen, Wei, Chen and Jiang, "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models", ECCV 2024,
arXiv 2407.12383. W° (o, d) are the model's key and value matrices, W the current ones, initially those of UCE (``legacy``,
``replace``). E(p) (77, d) are all rows of a text p; c is a concept, g its anchor. Each epoch, with sums over all matrices
of all layers:

    G = Σ WᵀW,  H = Σ WᵀW°                                                  (d, d)
    A = E(c) Mᵀ,  M = (G + rI)⁻¹ H      the adversarial rows (77, d): each row a minimises Σ ‖W a − W° e‖² + r‖a‖²
    R = (E(g) − A) Wᵀ                                                        (77, o)
    W ← W + α Rᵀ A S⁻¹,  S = λI + α AᵀA + β Σ_t E(t)ᵀE(t)                    α ``erase_scale``, β ``retain_scale``

All concepts are solved together. The texts t are the empty text and the retained concepts; their outputs under the current
W are preserved. This is ``regulariser: zero``; `overpaint.blocks.adversarial_rows` has the equations of the other forms.

Official code keeps the last epoch for artists and objects. For unsafe content it keeps the epoch whose images a detector
flags least often (``select: validation``). It inverts in float32 for each layer; here S is factored once per epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from overpaint.blocks.adversarial_rows import Regulariser, adversarial_rows
from overpaint.blocks.concept_scores import concept_scores, told
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.prior import Captions, check_captions, read_captions
from overpaint.blocks.ridge import factor, gram
from overpaint.blocks.templates import phrase_templates
from overpaint.blocks.text_rows import TextRows
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.grid.registry import component
from overpaint.methods.eraser import Eraser
from overpaint.methods.uce import UCE, shifts
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure, LowRank, Replacement
from overpaint.models.lazily import torch


@dataclass(kw_only=True)
class RECE(Eraser):
    """Hyper-parameters of RECE; ``conf/method/rece.yaml`` explains each."""

    epochs: int
    regulariser: Regulariser
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
        check_captions(self.validation_prompts)
        at_least(0, epochs=self.epochs, r=self.r, erase_scale=self.erase_scale, retain_scale=self.retain_scale)
        at_least(0, lamb=self.lamb)
        at_least(1, validation_images=self.validation_images)
        if self.select == "validation" and not self.validation_detector:
            raise UserError("select=validation needs validation_detector=NAME (overpaint list detectors)")
        if self.regulariser_text is not None and self.regulariser != "standard":
            raise UserError(f"regulariser_text needs regulariser=standard, got regulariser={self.regulariser}")

    @property
    def draws(self) -> bool:
        return self.select == "validation"

    @property
    def lengths(self) -> tuple[str, ...]:
        return ("epochs", "validation_images") if self.select == "validation" else ("epochs",)

    def detectors(self, request: Request) -> dict[str, dict[str, Any]]:
        asked = self.select == "validation" and self.validation_detector
        return {asked: told(asked, request.erase)} if asked else {}

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        uce = self.uce()
        rows, edited, shared = uce.problem(model, request)
        maps = [shared.text_map(shifts(edited))]

        E = torch.stack([rows.all(c.name) for c in request.erase])
        anchors = torch.stack([rows.all(text) for text in request.anchors(self.default_anchor)])
        empty = [""] * (len(E) if self.empty_texts == "one_a_concept" else 1)
        kept = gram((rows.all(text) for text in [*empty, *(c.name for c in request.retain)]), E[0])
        text = self.regulariser_text
        pull = None if text is None else TextRows(model, [text]).all(text)
        projections = model.projections("key", "value", stream="text")
        base = gram((p.weight.double() for p in projections), E[0])
        for epoch in range(self.epochs):
            P = maps[-1].matrix
            A = adversarial_rows(E, P.T @ base @ P, P.T @ base, self.r, self.regulariser, pull)
            trace_values(**{f"adv.{epoch}.{n}": found for n, found in enumerate(A)})
            shared = factor(A.flatten(0, 1), kept, self.lamb, self.erase_scale, self.retain_scale)
            maps.append(maps[-1].then(shared.text_map((anchors - A).flatten(0, 1))))

        epoch = self.epochs
        manifest: dict[str, Any] = {"condition": shared.condition}
        if self.select == "validation":
            rates = [self.rate(model, request, start.changes(projections)) for start in maps]
            epoch = rates.index(min(rates))
            manifest |= {"epoch": epoch, "rates": rates}
        return Erasure("rece", changes=maps[epoch].changes(projections), manifest=manifest)

    def uce(self) -> UCE:
        """The method that makes the initial edit."""
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

    def rate(self, model: DiffusionModel, request: Request, changes: dict[str, LowRank | Replacement]) -> float:
        """The fraction of validation images in which the detector still sees the concept."""
        assert self.validation_detector  # checked by __post_init__
        scores = concept_scores("validation_detector", self.validation_detector, request.erase, model.device)
        given = read_captions(self.validation_prompts)
        draws, seen = Draws(self.seed), []
        for concept in request.erase:
            prompts = given or [
                t.format(concept.phrase) for t in phrase_templates(concept.kind, self.validation_images)
            ]
            prompts = (prompts * self.validation_images)[: self.validation_images]
            seeds = [draws.integer("validation", 0, 2**31) for _ in prompts]
            with Erasure("rece", changes=changes).attached(model):
                judged = scores(concept, model.sample(prompts, seeds))
            seen += (judged[~np.isnan(judged)] >= self.validation_threshold).tolist()
        if not seen:
            raise UserError(f"validation_detector={self.validation_detector} failed on every validation image")
        return sum(seen) / len(seen)
