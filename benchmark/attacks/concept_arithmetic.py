"""Concept arithmetic: a concept erased from one prompt is composed again from the predictions for several prompts.

Petsiuk and Saenko, "Concept Arithmetics for Circumventing Concept Inhibition in Diffusion Models", ECCV 2024, arXiv
2404.13706: a sampler that composes prompts can add and subtract their meanings. With w the guidance scale, p_i prompts
with weights r_i and e the victim's prediction,

    e(x_t) = e(∅) + w Σ r_i (e(p_i) − e(∅))

One prompt with weight 1 is the ordinary sampler. The prompts are the plain prompt with something in the concept's
place:

    name         the concept's own name                anchor     the concept's anchor
    synonym      its first synonym                     other      a neighbour of the concept, or an ordinary thing
    paraphrase   its first description                 beside     the concept and the other
    translation  its word in the first language        nothing    the empty prompt, which adds nothing

A guard is part of the victim: it guides each prompt by itself to g_i, and the sum is Σ r_i g_i + (1 − Σ r_i) e(∅).
Without a guard this is the equation above. The implementation follows the paper's abstract. Its prompts and weights
were not available, so the recipes and weights are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from overpaint.attacks.attack import AttackContext
from overpaint.attacks.probes import Probe, walk
from overpaint.blocks.templates import renamed
from overpaint.errors import UserError, unknown
from overpaint.grid.concepts import Concept
from overpaint.grid.prompts import Shot
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import torch

PLACES = ("name", "synonym", "paraphrase", "translation", "anchor", "other", "beside", "nothing")
#: Kind of a concept -> other things, for concepts without neighbours. Three are enough: one is neither the concept nor
#: its anchor.
OTHERS = {"object": ("tree", "house", "boat"), "style": ("watercolor", "charcoal", "etching")}


@dataclass(kw_only=True)
class ConceptArithmetic(Probe):
    """Hyper-parameters; ``conf/attack/concept_arithmetic.yaml`` says what each means."""

    recipes: dict

    draws: ClassVar[bool] = False

    def __post_init__(self):
        where = "attack=concept_arithmetic: recipes"
        if not self.recipes:
            raise UserError(f"{where} takes at least one recipe, got none")
        for name, terms in self.recipes.items():
            if not isinstance(terms, Mapping) or not terms:
                raise UserError(f"{where} takes weights by place ({', '.join(PLACES)}), got {terms!r} for {name}")
            for place, weight in terms.items():
                if place not in PLACES:
                    raise unknown("place", place, PLACES, where)
                if isinstance(weight, bool) or not isinstance(weight, int | float):
                    raise UserError(f"{where} takes numbers as weights, got {weight!r} for {name}.{place}")
        super().__post_init__()

    @property
    def images(self) -> int:
        return len(self.recipes)

    def images_for(self, concept: Concept, shots: Sequence[Shot]) -> int:
        return len(self.possible(words_for(concept)))

    def possible(self, words: Mapping[str, str]) -> dict[str, Mapping]:
        """The recipes whose places all have words."""
        return {name: terms for name, terms in self.recipes.items() if terms.keys() <= words.keys()}

    def latents(self, context: AttackContext, shots: Sequence[Shot]) -> Iterator[tuple[str, torch.Tensor]]:
        """Every recipe's name and latents. Recipes that need words which the concept lacks are left out."""
        words, victim = words_for(context.concept), context.victim
        possible = self.possible(words)
        if not possible:
            raise UserError(
                f"no recipe of attack.recipes applies to {context.concept.name!r}, which only has {', '.join(words)}"
            )
        noise = victim.noise([shot.noise_seed for shot in shots], context.protocol["size"])
        for name, terms in possible.items():
            schedule = self.schedule(context, context.protocol["scheduler"])
            parts = []
            for place, weight in terms.items():
                if weight:
                    own = [placed(shot, context.concept, place, words[place]) for shot in shots]
                    parts.append((self.guidance(victim, context, own), weight))
            yield name, walk(Composition(victim, parts), schedule, noise * schedule.init_noise_sigma, 0, None)


class Composition:
    """Guidance by several prompts: the weighted sum of the victim's predictions for each."""

    def __init__(self, model: DiffusionModel, parts: Sequence[tuple[Guidance, float]]):
        self.model, self.parts = model, parts
        self.rest = 1 - sum(weight for _, weight in parts)

    def __call__(self, latents: torch.Tensor, timestep, step: int) -> torch.Tensor:
        """The composed prediction for ``latents`` (batch, channels, height, width) at scheduler step ``step``."""
        predictions = (weight * guidance(latents, timestep, step) for guidance, weight in self.parts)
        total = sum(predictions, torch.zeros_like(latents))
        if abs(self.rest) < 1e-9:
            return total
        nothing = self.model.unconditional().expand(len(latents), -1, -1)
        return total + self.rest * self.model.predict(latents, timestep, nothing)


def words_for(concept: Concept) -> dict[str, str]:
    """Words for each of `PLACES`; places for which the concept has no words are missing."""
    others = (*concept.neighbours, *OTHERS.get(concept.kind, OTHERS["object"]))
    other = next(thing for thing in others if thing not in (concept.name, concept.anchor))
    found = {"name": concept.name, "other": other, "beside": f"{concept.name} and {other}", "nothing": ""}
    lists = {"synonym": concept.synonyms, "paraphrase": concept.paraphrases}
    lists["translation"] = next(iter(concept.translations.values()), ())
    found |= {place: options[0] for place, options in lists.items() if options}
    return found | ({"anchor": concept.anchor} if concept.anchor else {})


def placed(shot: Shot, concept: Concept, place: str, words: str) -> Shot:
    """The shot with these words in the concept's place, or after the prompt if it does not name the concept."""
    plain, whole = shot.prompt.text, place in ("paraphrase", "translation")
    text = (renamed(plain, concept, words, whole) or f"{plain}, {words}") if words else ""
    return replace(shot, prompt=replace(shot.prompt, text=text))
