"""UCE: a closed-form edit maps the cross-attention keys and values of the concept's text rows to those of an anchor.

Gandikota, Orgad, Belinkov, Materzyńska and Bau, "Unified Concept Editing in Diffusion Models", WACV 2024,
arXiv 2308.14761. Let K (n, d) be text rows of the concepts to erase, G (n, d) those of their anchors, and P (m, d) rows to
preserve. For each cross-attention key and value projection W (o, d):

    R = (G − K) Wᵀ                                                    (n, o), the change of the outputs of K
    W' = W + α Rᵀ K A⁻¹,   A = λI + α KᵀK + β PᵀP                     α ``erase_scale``, β ``preserve_scale``, λ ``lamb``

All concepts are solved together. There are two official codes (``variant``), which edit different rows:

``legacy``   The paper's code. K and G are the rows from the last token of the text to the end of the padding, truncated to
             equal length. P are all rows of the empty prompt and of every retained concept. β = max(0.1, 1/number of
             retained texts). With ``technique: tensor``, the wanted output is not V = G Wᵀ but V minus its component
             along U = K Wᵀ, ⟨U, V⟩/‖U‖² U, with one scalar per concept and matrix.
``current``  The 2025 repository. One row per concept, that of its last token; β = 1. Begin and end tokens are not
             preserved. An empty anchor means the output of the begin token.

``technique: exact`` is ours, with the rows of ``current``: the limit α → ∞ of ``replace``. K gets exactly the outputs of G, and
W' is otherwise as close to W as possible in the metric λI + βPᵀP (`overpaint.blocks.ridge`, Custom Diffusion's closed merge).

With ``attributes``, concepts are not erased but balanced between attributes (debiasing, as in ``current``). The wanted
output of row k_i is W k_i + Σ_a s_ia W u_a, where u_a is the row of the last token of attribute a:

    R = S U Wᵀ,    s_ia ← s_ia + η (desired_a − share_a)                  S (n, a) from zero, U (a, d), η ``step_size``

share_a is measured on images of the concept that the model generates with the latest W'. Concepts whose gaps are all
below ``tolerance`` take no step; the rounds end when this holds for all concepts. Each solve starts from W.

Official code inverts A in float32 for each layer; here A is factored once in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from overpaint.blocks.attributes import Classifier, attribute_classifier, attribute_detector
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.ridge import Ridge, edit, factor, gram
from overpaint.blocks.text_rows import TextRows
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.grid.registry import components
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel, Sampling
from overpaint.models.erasure import Erasure, LowRank, Replacement
from overpaint.models.lazily import torch
from overpaint.run.progress import steps

#: Rows K (n, d) of a text to edit, and the rows G (n, d) that it is mapped to.
Pair: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"

#: ``expand_prompts`` -> phrases about a concept, whose rows are edited besides those of its name.
PHRASES = {
    "off": (),
    "art": ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
    "object": ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
}


@dataclass(kw_only=True)
class UCE(Eraser):
    """Hyper-parameters of UCE; ``conf/method/uce.yaml`` explains each."""

    variant: Literal["legacy", "current"]
    technique: Literal["replace", "tensor", "exact"]
    erase_scale: float
    preserve_scale: float | None
    lamb: float
    expand_prompts: Literal["off", "art", "object"]
    default_anchor: str
    attributes: list[str] | None
    desired: list[float] | None
    classifier: str
    iterations: int
    tolerance: float
    step_size: float
    images: int
    steps: int
    guidance_scale: float

    version: ClassVar[int] = 2
    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "conditioning"

    def __post_init__(self):
        at_least(0, lamb=self.lamb, erase_scale=self.erase_scale, preserve_scale=self.preserve_scale)
        at_least(1, iterations=self.iterations, images=self.images, steps=self.steps)
        if self.technique == "exact" and self.variant == "legacy":
            raise UserError(
                "technique=exact needs variant=current, one row per concept; the many rows of variant=legacy depend on each "
                "other, so that their outputs cannot be exact"
            )
        if self.technique == "exact" and self.erase_scale != 1:
            raise UserError(
                f"technique=exact has no erase_scale, which would be infinite; got erase_scale={self.erase_scale:g}"
            )
        if self.attributes is not None:
            self.check_balance(self.attributes)

    @property
    def draws(self) -> bool:
        return self.attributes is not None  # debiasing paints images

    @property
    def lengths(self) -> tuple[str, ...]:
        return ("iterations", "images") if self.attributes is not None else ()

    @property
    def networks(self) -> tuple[str, ...]:
        return ("classifier",) if self.attributes is not None and self.classifier not in components("detector") else ()

    def check_balance(self, attributes: list[str]) -> None:
        """Raise a `UserError` for shares that do not match the attributes and for settings that debiasing does not use."""
        if len(attributes) < 2:
            raise UserError(f"attributes takes at least two attributes to balance, got {attributes}")
        if self.variant == "legacy":
            raise UserError("attributes needs variant=current; the debiasing of variant=legacy is not implemented")
        if self.technique != "replace" or self.expand_prompts != "off":
            raise UserError("attributes needs technique=replace and expand_prompts=off")
        shares = self.desired if self.desired is not None else [1 / len(attributes)] * len(attributes)
        if len(shares) != len(attributes) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise UserError(
                f"desired takes one share for each of {', '.join(attributes)} with the sum 1, got {self.desired}"
            )

    def detectors(self, request: Request) -> dict[str, dict[str, Any]]:
        return attribute_detector(self.classifier, self.attributes) if self.attributes is not None else {}

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        if self.attributes is not None:
            return self.debias(model, request, attribute_classifier(self.classifier, self.attributes, model.device))
        _, edited, shared = self.problem(model, request)
        projections = model.projections("key", "value", stream="text")
        if self.technique != "tensor":
            changes = shared.text_map(shifts(edited)).changes(projections)
        else:
            changes = edit(projections, shared, lambda W: projected_residuals(W, edited))
        return Erasure("uce", changes=changes, manifest={"condition": shared.condition, "rows": len(shared.edited)})

    def debias(self, model: DiffusionModel, request: Request, classify: Classifier) -> Erasure:
        """Balance the concepts between the attributes, as ``classify`` sees them in the model's images."""
        _, pairs, shared = self.problem(model, request)
        assert self.attributes is not None
        rows = TextRows(model, self.attributes, padding=False)
        projections = model.projections("key", "value", stream="text")
        U = torch.cat([rows.last_subject(attribute) for attribute in self.attributes])
        S = U.new_zeros(len(pairs), len(U))
        draws, gaps = Draws(self.seed), []

        def changes() -> dict[str, LowRank | Replacement]:
            return shared.text_map(S @ U).changes(projections)

        for _ in steps(self.iterations, "rounds of balancing"):
            with Erasure("uce", changes=changes()).attached(model):
                found = [self.gap(model, concept.name, len(U), classify, draws) for concept in request.erase]
                gap = torch.stack(found).to(S)
            trace_values(gap=gap, weights=S.clone())
            gaps.append(gap.tolist())
            if not gap.any():
                break
            S += self.step_size * gap
        manifest = {"condition": shared.condition, "rows": len(pairs), "gaps": gaps, "weights": S.tolist()}
        return Erasure("uce", changes=changes(), manifest=manifest)

    def gap(
        self, model: DiffusionModel, concept: str, attributes: int, classify: Classifier, draws: Draws
    ) -> torch.Tensor:
        """Desired minus measured share of each attribute (a,) in images of a concept; zero if all are below ``tolerance``."""
        seeds = [draws.integer("seed", 0, 2**31) for _ in range(self.images)]
        how: Sampling = {"steps": self.steps, "guidance_scale": self.guidance_scale, "scheduler": "pndm"}
        shown = torch.tensor(classify(model.sample([concept] * self.images, seeds, **how)))
        share = torch.bincount(shown, minlength=attributes).double() / self.images
        desired = torch.full_like(share, 1 / len(share)) if self.desired is None else share.new_tensor(self.desired)
        gap = desired - share
        return gap if gap.abs().max() >= self.tolerance else torch.zeros_like(gap)

    def problem(self, model: DiffusionModel, request: Request) -> tuple[TextRows, list[Pair], Ridge]:
        """The rows of all texts, (K, G) for each pair of texts, and A, factored."""
        pairs = self.pairs(request)
        preserved = [c.name for c in request.retain]
        if self.variant == "legacy":
            preserved = list(dict.fromkeys(["", *preserved]))
        texts = [text for pair in pairs for text in pair] + preserved
        rows = TextRows(model, texts, padding=self.variant == "legacy")
        if self.variant == "legacy":
            edited = [rows.tails(old, new) for old, new in pairs]
        else:
            edited = [(rows.last_subject(old), rows.last_subject(new)) for old, new in pairs]
        kept = (rows.all(t) if self.variant == "legacy" else rows.last_subject(t) for t in preserved)
        K = torch.cat([key for key, _ in edited])
        weight = math.inf if self.technique == "exact" else self.erase_scale
        return rows, edited, factor(K, gram(kept, K), self.lamb, weight, self.preserving(len(preserved)))

    def pairs(self, request: Request) -> list[tuple[str, str]]:
        """(concept, anchor) texts. Each pair is followed by the phrases of ``expand_prompts``.

        The ``current`` code expands the concept and the anchor; the ``legacy`` code maps the concept's phrases to the plain
        anchor.
        """
        pairs = []
        for concept, anchor in zip(request.erase, request.anchors(self.default_anchor), strict=True):
            pairs.append((concept.name, anchor))
            guide = "{}" if self.variant == "legacy" else None
            pairs += [(p.format(concept.name), (guide or p).format(anchor)) for p in PHRASES[self.expand_prompts]]
        return pairs

    def preserving(self, texts: int) -> float:
        """β: ``preserve_scale``, or the variant's own rule if it is ``None``."""
        if self.preserve_scale is not None:
            return self.preserve_scale
        return max(0.1, 1 / texts) if self.variant == "legacy" else 1.0


def shifts(edited: Sequence[Pair]) -> torch.Tensor:
    """G − K (n, d) of all pairs."""
    return torch.cat([G - K for K, G in edited])


def projected_residuals(W: torch.Tensor, edited: Sequence[Pair]) -> torch.Tensor:
    """R (n, o) of ``technique: tensor``, for the pairs' outputs under W (o, d)."""
    return torch.cat([_away_from(K @ W.T, G @ W.T) for K, G in edited])


def _away_from(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The new outputs (n, o) without their component along the old ones, minus the old ones."""
    return new - (old * new).sum() / (old * old).sum() * old - old
