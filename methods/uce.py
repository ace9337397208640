"""UCE: the keys and values of some text rows are mapped to those of an anchor, in closed form.

Gandikota, Orgad, Belinkov, Materzyńska and Bau, "Unified Concept Editing in Diffusion Models", WACV 2024,
arXiv 2308.14761. For every cross-attention key and value projection W (o, d), with key rows K (n, d) of the concepts to
erase, rows G (n, d) of their anchors and rows P (m, d) to preserve:

    R = (G − K) Wᵀ                                                    (n, o)   what the erased rows have to change by
    W' = W + α Rᵀ K A⁻¹,   A = λI + α KᵀK + β PᵀP                     α ``erase_scale``, β ``preserve_scale``, λ ``lamb``

All concepts are solved for at once. Two official codes carry the name, and they edit different rows:

``legacy``   (the paper's numbers) K and G are the rows from the last word piece to the end of the padding, cut to equal
             length; P are all positions of the empty prompt and of every retained concept; β = max(0.1, 1/number of
             retained texts). ``technique: tensor`` takes V = G Wᵀ minus its component along U = K Wᵀ,
             ⟨U, V⟩/‖U‖² U with one scalar a concept and matrix, as the wanted output instead of G Wᵀ.
``current``  (the repository since 2025) one row a concept, that of the last word piece; β = 1. Nothing protects the
             rows of the end and begin tokens, and the empty anchor means the output of the begin token.

Both codes invert A in float32 for every layer; here it is factored once in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from overpaint.concepts import Request
from overpaint.erasing import Eraser
from overpaint.erasure import Erasure
from overpaint.errors import at_least
from overpaint.methods.ridge import edit, factor, gram
from overpaint.methods.text_rows import TextRows
from overpaint.models.diffusion import DiffusionModel

PHRASES = {
    "off": (),
    "art": ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
    "object": ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
}


@dataclass(kw_only=True)
class UCE(Eraser):
    """Hyper-parameters of UCE; ``conf/method/uce.yaml`` says what each means."""

    variant: Literal["legacy", "current"]
    technique: Literal["replace", "tensor"]
    erase_scale: float
    preserve_scale: float | None
    lamb: float
    expand_prompts: Literal["off", "art", "object"]
    default_anchor: str

    def __post_init__(self):
        at_least(0, lamb=self.lamb, erase_scale=self.erase_scale, preserve_scale=self.preserve_scale or 0)

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        pairs = self.pairs(request)
        preserved = [c.name for c in request.retain]
        if self.variant == "legacy":
            preserved = list(dict.fromkeys(["", *preserved]))
        rows = TextRows(model, [text for pair in pairs for text in pair] + preserved)
        edited = [rows.tails(*p) if self.variant == "legacy" else tuple(map(rows.last_subject, p)) for p in pairs]
        kept = (rows.all(t) if self.variant == "legacy" else rows.last_subject(t) for t in preserved)
        K = torch.cat([key for key, _ in edited])

        shared = factor(K, gram(kept, K), self.lamb, self.erase_scale, self.preserving(len(preserved)))
        changes = edit(model.projections("key", "value"), shared, lambda W: self.residual(W, edited))
        return Erasure("uce", changes=changes, manifest={"condition": shared.condition, "rows": len(K)})

    def pairs(self, request: Request) -> list[tuple[str, str]]:
        """(concept, anchor) texts, with the expanded phrases of both behind each."""
        pairs = []
        for concept, anchor in zip(request.erase, request.anchors(self.default_anchor)):
            pairs.append((concept.name, anchor))
            pairs += [(p.format(concept.name), p.format(anchor)) for p in PHRASES[self.expand_prompts]]
        return pairs

    def preserving(self, texts: int) -> float:
        """The weight of preserved rows: as given, else the variant's own rule."""
        if self.preserve_scale is not None:
            return self.preserve_scale
        return max(0.1, 1 / texts) if self.variant == "legacy" else 1.0

    def residual(self, W: torch.Tensor, edited: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """R (n, o): wanted minus present outputs of the edited rows."""
        if self.technique == "replace":
            return torch.cat([(G - K) @ W.T for K, G in edited])
        return torch.cat([_away_from(K @ W.T, G @ W.T) for K, G in edited])


def _away_from(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The new outputs without their component along the old ones, minus the old ones."""
    return new - (old * new).sum() / (old * old).sum() * old - old
