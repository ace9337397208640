"""Attacks that search a prompt through the victim's denoising, and draw a picture with every prompt they settle on.

Each plain image is attacked by itself. It is drawn first: where the victim still shows the concept, there is nothing to
attack. Otherwise the unedited model draws the same prompt from the same start noise, and the search looks for words that
make the victim's network e denoise that picture's latents x_0, noised to x_t, as one that knows the concept would:

    loss = mean (e(x_t, t, E(words)) − y)²      y = ε, the true noise, or e°(x_t, t, E°(prompt)), the unedited model's

``prediction`` says what e is: the network's output for the words (``conditional``), or what the sampler would make of it
(``guided``), guards included, against the unedited model's sampler.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from PIL.Image import Image

from overpaint.attacks.attack import Assault, Attack, Ledger, Painted, Scene
from overpaint.attacks.prompt_lists import attacked
from overpaint.attacks.token_variables import Frame
from overpaint.models.diffusion import DiffusionModel
from overpaint.prompts import Shot
from overpaint.replay import Draws

#: Predictions of the unedited model that are made at once.
BATCH = 8


class Tries:
    """The pictures made for one plain image, in order."""

    def __init__(self, scene: Scene, shot: Shot):
        self.scene, self.shot = scene, shot
        self.painted: list[Painted] = []

    def make(self, text: str, variant: str, embeds: torch.Tensor | None = None, seed: int | None = None) -> Painted:
        """A picture of a text through the victim, judged; from the plain image's start noise unless a seed is given.

        ``embeds`` (1, tokens, width) are drawn in the place of the text's own.
        """
        shot = replace(attacked(self.shot, text, self.scene.concept, variant), draw=len(self.painted))
        if seed is not None:
            shot = replace(shot, prompt=replace(shot.prompt, seed=seed - shot.index))
        (image,) = self.scene.paint([text], [shot.noise_seed], embeds=embeds, guidance=shot.prompt.guidance)
        verdict = self.scene.judge([image])[0] if self.scene.judge else None
        self.painted.append(Painted(shot, image, verdict))
        return self.painted[-1]

    @property
    def succeeded(self) -> bool:
        """Did the last picture show the concept, as far as the judge can say?"""
        verdict = self.painted[-1].verdict
        return verdict is not None and verdict.success


class Lesson(NamedTuple):
    """Noised latents (n, c, h, w), their timesteps (n,) and what a knowing network says of them (n, c, h, w)."""

    noised: torch.Tensor
    timesteps: torch.Tensor
    wanted: torch.Tensor


@dataclass(kw_only=True)
class Search(Attack):
    """An attack that draws the plain image first, and searches only where it does not show the concept."""

    needs: ClassVar[str] = "victim"
    unit: ClassVar[str] = "prompt"
    paints: ClassVar[bool] = True

    @abstractmethod
    def search(self, scene: Scene, tries: Tries, draws: Draws) -> None:
        """Search for ``tries.shot`` and make pictures of what is found."""

    def run(self, scene: Scene) -> Assault:
        ledger, painted = Ledger(), []
        with ledger.counting(scene.victim):
            for shot in scene.shots:
                tries = Tries(scene, shot)
                tries.make(shot.prompt.text, "plain")
                if not tries.succeeded:
                    self.search(scene, tries, Draws.of(self.seed, shot.prompt.id, shot.index))
                painted += tries.painted
        ledger.images = len(painted)
        return Assault([p.shot for p in painted], ledger=ledger, painted=painted)


@dataclass(kw_only=True)
class PromptSearch(Search):
    """What the searches for words share; ``drawn_from`` says whether pictures are drawn from the found words' text,
    which can read back as other tokens, or from the tokens themselves."""

    prediction: Literal["conditional", "guided"]
    drawn_from: Literal["text", "ids"]

    def draw(self, tries: Tries, frame: Frame, ids: torch.Tensor, variant: str, seed: int | None = None) -> Painted:
        """A picture of the frame filled with words (1, k)."""
        victim, text, embeds = tries.scene.victim, frame.text(ids[0].tolist()), None
        if self.drawn_from == "ids":
            ended = Frame(victim, frame.words, frame.places)  # and padded as the sampler does
            with torch.no_grad():
                embeds = ended.encode(ids, victim.token_table[ids])
        return tries.make(text, variant, embeds, seed)

    def original(self, scene: Scene, shot: Shot) -> Image:
        """The unedited model's picture of the same prompt from the same start noise."""
        with scene.unedited():
            return scene.paint([shot.prompt.text], [shot.noise_seed], guidance=shot.prompt.guidance)[0]

    def lesson(
        self, scene: Scene, shot: Shot, x0: torch.Tensor, times: Sequence[int], draws: Draws, target: str
    ) -> Lesson:
        """Latents x0 (1, c, h, w) noised to each of the times, with y for the ``target``: ``noise`` or ``original``."""
        victim = scene.victim
        noise = torch.cat([draws.noise("noise", tuple(x0.shape), x0) for _ in times])
        timesteps = torch.tensor(times, device=x0.device)
        x0 = x0.expand_as(noise)
        noised = victim.add_noise(x0, noise, timesteps)
        if target == "noise":
            return Lesson(noised, timesteps, victim.denoising_target(x0, noise, timesteps))
        with scene.unedited() as model, torch.no_grad():
            named = model.encode([shot.prompt.text])
            parts = zip(noised.split(BATCH), timesteps.split(BATCH))
            said = [self.predicted(model, scene, shot, x, t, named.expand(len(x), -1, -1)) for x, t in parts]
        return Lesson(noised, timesteps, torch.cat(said))

    def predicted(
        self, model: DiffusionModel, scene: Scene, shot: Shot, noised: torch.Tensor, timesteps, embeds: torch.Tensor
    ) -> torch.Tensor:
        """e for latents (n, c, h, w) at timesteps (n,) and text embeddings (n, tokens, width)."""
        look = self.sampled if self.prediction == "guided" else self.conditional
        return look(model, scene, shot, noised, timesteps, embeds)

    def conditional(self, model: DiffusionModel, scene: Scene, shot: Shot, noised, timesteps, embeds) -> torch.Tensor:
        """The network's output for the prompt."""
        return model.predict(noised, timesteps, embeds)

    def sampled(self, model: DiffusionModel, scene: Scene, shot: Shot, noised, timesteps, embeds) -> torch.Tensor:
        """What the model's sampler makes of it: guidance, and a guard where one is attached."""
        with torch.no_grad():
            nothing = model.unconditional().expand_as(embeds)
        # guards may ask how far sampling has come; a batch is taken to be where its first row is
        step = int((1 - float(timesteps[0]) / len(model.alphas_cumprod)) * scene.protocol["steps"])
        guidance = model.guidance(model, embeds, nothing, guidance_scale(scene, shot), [shot.prompt.text] * len(embeds))
        return guidance(noised, timesteps, step)


def guidance_scale(scene: Scene, shot: Shot) -> float:
    """The prompt's own guidance scale where a prompt file gives one, else the protocol's."""
    return shot.prompt.guidance or scene.protocol["guidance_scale"]
