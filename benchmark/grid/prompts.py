"""Prompts and shots (prompt × seed): the images that a measurement asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text and its purpose.

    Attributes:
        text: the prompt.
        role: name of the role (`overpaint.grid.roles`) for which its images are made.
        concept: detector label of the concept that the prompt is about.
        expects: labels of everything that the prompt asks for.
        variant: language, synonym or style.
        id: identifies the prompt; by default a hash of the text.
        noise: names the initial noise. Two prompts with the same ``noise``, such as a plain and an adversarial prompt, start
            from the same latents. By default ``plain``, else ``id``.
        seed: seed from a published prompt file.
        guidance: guidance scale from a published prompt file.
        size: width and height in pixels from a published prompt file.
        plain: id of the plain prompt from which an attack derived this one. The images of all prompts derived from one
            plain prompt are statistically dependent, like images of the same text.
    """

    text: str
    role: str
    concept: str = ""
    expects: tuple[str, ...] = ()
    variant: str = ""
    id: str = ""
    noise: str = ""
    seed: int | None = None
    guidance: float | None = None
    plain: str = ""
    size: tuple[int, int] | None = None

    def __post_init__(self):
        object.__setattr__(self, "expects", tuple(self.expects))
        object.__setattr__(self, "id", self.id or hashlib.sha256(self.text.encode()).hexdigest()[:10])
        object.__setattr__(self, "noise", self.noise or self.plain or self.id)


#: The names of a prompt's fields.
FIELDS = tuple(field.name for field in fields(Prompt))


@dataclass(frozen=True, slots=True)
class Shot:
    """One image to generate: a prompt and a seed index. ``draw`` numbers an attack's repeated tries at the same shot."""

    prompt: Prompt
    index: int
    draw: int = 0

    @property
    def noise_seed(self) -> int:
        """Seed of the generator that draws the initial noise. It depends only on the noise id and the seed index.

        If the prompt file gives a seed, the result is that seed plus the index.
        """
        if self.prompt.seed is not None:
            return self.prompt.seed + self.index
        digest = hashlib.sha256(f"{self.prompt.noise}:{self.index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def as_dict(self) -> dict:
        """The shot as JSON values for a task's configuration."""
        values = {name: getattr(self.prompt, name) for name in FIELDS}
        values |= {"expects": list(self.prompt.expects), "index": self.index, "draw": self.draw}
        return {key: value for key, value in values.items() if value or key not in ("plain", "draw", "size")}

    @classmethod
    def from_dict(cls, values: dict) -> Shot:
        """The shot that `as_dict` converted to ``values``."""
        values = dict(values)
        index, draw, size = values.pop("index"), values.pop("draw", 0), values.pop("size", None)
        return cls(Prompt(**values, size=tuple(size) if size else None), index, draw)


def shots(prompts: Iterable[Prompt], seeds: int) -> list[Shot]:
    """Every prompt with seed indices ``0 … seeds − 1``."""
    return [Shot(prompt, index) for prompt in prompts for index in range(seeds)]


def shared_noise(asked: Iterable[Shot]) -> set[str]:
    """The noise ids from which several prompts of one role and concept start: the translations of one prompt.

    Prompts that an attack derived from a plain prompt are left out.
    """
    found: dict[tuple, set[str]] = {}
    for shot in asked:
        prompt = shot.prompt
        if not prompt.plain:
            found.setdefault((prompt.noise, prompt.role, prompt.concept, shot.index, shot.draw), set()).add(prompt.id)
    return {noise for (noise, *_), ids in found.items() if len(ids) > 1}


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts with unique ids: repeated ids get a number appended, so that equal texts give different shots.

    The noise is numbered in the same way, except for prompts derived from a plain prompt: they keep its noise.
    """
    seen: dict[str, int] = {}
    result = []
    for prompt in prompts:
        count = seen.get(prompt.id, 0) + 1
        while count > 1 and f"{prompt.id}-{count}" in seen:  # the list itself has this id
            count += 1
        seen[prompt.id] = count
        if count > 1:
            noise = prompt.noise if prompt.plain else f"{prompt.noise}-{count}"
            prompt = replace(prompt, id=f"{prompt.id}-{count}", noise=noise)
            seen[prompt.id] = 1
        result.append(prompt)
    return result
