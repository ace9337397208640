"""Attacks that search a prompt through the victim's denoising, and draw a picture with every prompt they settle on.

Each plain image is attacked by itself. It is drawn first: where the victim still shows the concept, there is nothing to
attack. Otherwise the unedited model draws the same prompt from the same start noise, and the search looks for words that
make the victim's network e denoise that picture's latents x_0, noised to x_t, as one that knows the concept would:

    loss = mean (e(x_t, t, E(words)) − y)²      y = ε, the true noise, or e°(x_t, t, E°(prompt)), the unedited model's

``prediction`` says what e is: the network's output for the words (``conditional``), or what the sampler would make of it
(``guided``), guards included, against the unedited model's sampler.

Searches that know nothing of each other go side by side, one row each in what the network is given (`Hunt`): the larger
batch is faster, and each one is, but for rounding, what it would be alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from PIL.Image import Image

from overpaint.attacks.attack import Assault, Attack, Ledger, Painted, Provenance, Scene, counting
from overpaint.attacks.prompt_lists import attacked
from overpaint.blocks.draws import Draws
from overpaint.blocks.token_variables import Frame, TokenVariable, encoded
from overpaint.grid.prompts import Shot
from overpaint.models.diffusion import DiffusionModel

#: Predictions of the unedited model that are made at once.
BATCH = 8


class Tries:
    """The pictures made for one plain image, in order, the draws of its search and what that spent."""

    def __init__(self, scene: Scene, shot: Shot, draws: Draws):
        self.scene, self.shot, self.draws = scene, shot, draws
        self.painted: list[Painted] = []
        self.ledger = Ledger()

    def make(self, text: str, variant: str, embeds: torch.Tensor | None = None) -> Painted:
        """A picture of a text, or of embeddings (1, tokens, width) in its place (`make_pictures`)."""
        return make_pictures([self], [text], variant, embeds)[0]

    @property
    def succeeded(self) -> bool:
        """Did the last picture show the concept, as far as the judge can say?"""
        verdict = self.painted[-1].verdict
        return verdict is not None and verdict.success


def make_pictures(
    tries: Sequence[Tries],
    texts: Sequence[str],
    variant: str,
    embeds: torch.Tensor | None = None,
    seeds: Sequence[int] | None = None,
    origins: Sequence[Provenance] | None = None,
) -> list[Painted]:
    """The next picture of each, judged: of its text through the victim, from the plain image's start noise or a seed's.

    ``embeds`` (n, tokens, width) are drawn in the place of the texts' own; ``origins`` say how a search came to the texts.
    """
    scene, shots = tries[0].scene, []
    for own, text, seed in zip(tries, texts, seeds or [None] * len(tries)):
        shot = replace(attacked(own.shot, text, scene.concept, variant), draw=len(own.painted))
        shots.append(shot if seed is None else replace(shot, prompt=replace(shot.prompt, seed=seed - shot.index)))
    images = paint(tries, shots, embeds)
    verdicts = scene.judge(images) if scene.judge else [None] * len(images)
    made = [
        Painted(shot, image, verdict, provenance=origin)
        for shot, image, verdict, origin in zip(shots, images, verdicts, origins or [None] * len(images))
    ]
    for own, painted in zip(tries, made):
        own.painted.append(painted)
    return made


def paint(tries: Sequence[Tries], shots: Sequence[Shot], embeds: torch.Tensor | None = None) -> list[Image]:
    """One shot's image each, at the expense of its tries; those of one guidance scale are made at once."""
    scene, images = tries[0].scene, {}
    for guidance in dict.fromkeys(shot.prompt.guidance for shot in shots):
        where = [i for i, shot in enumerate(shots) if shot.prompt.guidance == guidance]
        texts, seeds = [shots[i].prompt.text for i in where], [shots[i].noise_seed for i in where]
        with counting(scene.victim, [tries[i].ledger for i in where]):
            made = scene.paint(texts, seeds, embeds=None if embeds is None else embeds[where], guidance=guidance)
        images |= dict(zip(where, made))
    return [images[i] for i in range(len(shots))]


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
    def search(self, scene: Scene, hunted: Sequence[Tries]) -> None:
        """Search for each of ``hunted``, and make pictures of what is found."""

    def run(self, scene: Scene) -> Assault:
        return self.run_together([scene])[0]

    def run_together(self, scenes: Sequence[Scene]) -> list[Assault]:
        hunted = [[self.tries(scene, shot) for shot in scene.shots] for scene in scenes]
        everyone, size = [tries for own in hunted for tries in own], min(self.together, scenes[0].batch_size)
        for part in (everyone[start : start + size] for start in range(0, len(everyone), size)):
            make_pictures(part, [tries.shot.prompt.text for tries in part], "plain")
            left = [tries for tries in part if not tries.succeeded]
            if left:
                self.search(scenes[0], left)
        return [self.assault(own) for own in hunted]

    def tries(self, scene: Scene, shot: Shot) -> Tries:
        return Tries(scene, shot, Draws.of(self.seed, shot.prompt.id, shot.index))

    def assault(self, hunted: Sequence[Tries]) -> Assault:
        painted = [picture for tries in hunted for picture in tries.painted]
        spent = [tries.ledger.as_dict() for tries in hunted]
        ledger = Ledger(**{key: sum(each[key] for each in spent) for key in Ledger().as_dict()})
        ledger.images = len(painted)
        return Assault([p.shot for p in painted], ledger=ledger, painted=painted)


@dataclass
class Hunt:
    """One search for words: its pictures so far, its prompt's frame, what is learned, and x_0 (1, c, h, w).

    ``lesson`` is what the next steps are taken on, ``view`` what it sees through the victim (`PromptSearch.view`), ``losses``
    those of the steps since the last picture, each ().
    """

    tries: Tries
    frame: Frame
    variable: TokenVariable
    x0: torch.Tensor
    view: Callable[..., torch.Tensor]
    lesson: Lesson | None = None
    losses: list[torch.Tensor] = field(default_factory=list)

    def provenance(self, ids: Sequence[int], text: str) -> Provenance:
        """How it came to these words (k,) in its frame, whose text this is; the next one's steps are counted anew."""
        whole, losses = self.frame.filled(ids), [float(loss) for loss in self.losses]
        self.losses.clear()
        return Provenance(whole, self.frame.model.token_ids(text)[1:-1] == whole, losses)

    @property
    def shot(self) -> Shot:
        return self.tries.shot

    @property
    def draws(self) -> Draws:
        return self.tries.draws

    @property
    def ledger(self) -> Ledger:
        return self.tries.ledger

    def looked(self, scene: Scene, noised: torch.Tensor, t: torch.Tensor, embeds: torch.Tensor, step: int):
        """What it sees of one row, at its own expense."""
        with self.ledger.counting(scene.victim):
            return self.view(noised, t, embeds, step)


@dataclass(kw_only=True)
class PromptSearch(Search):
    """What the searches for words share; ``drawn_from`` says whether pictures are drawn from the found words' text,
    which can read back as other tokens, or from the tokens themselves."""

    prediction: Literal["conditional", "guided"]
    drawn_from: Literal["text", "ids"]

    together: ClassVar[int] = 8

    @abstractmethod
    def frame(self, victim: DiffusionModel, text: str) -> Frame:
        """The places for words in a prompt, of which the end is cut where they would not fit."""

    def shortened(self, scene: Scene) -> int:
        texts, victim = dict.fromkeys(shot.prompt.text for shot in scene.shots), scene.victim
        read = [self.frame(victim, text).words for text in texts]
        return sum(len(victim.tokenizer(text).input_ids) - 2 > len(words) for text, words in zip(texts, read))

    def draw(
        self, hunts: Sequence[Hunt], ids: Sequence[torch.Tensor], variant: str, seeds: Sequence[int] | None = None
    ) -> list[Painted]:
        """A picture for each hunt: its frame filled with words (1, k)."""
        words, embeds = [own[0].tolist() for own in ids], None
        texts = [hunt.frame.text(own) for hunt, own in zip(hunts, words)]
        if self.drawn_from == "ids":
            victim = hunts[0].frame.model
            ended = [Frame(victim, h.frame.words, h.frame.places) for h in hunts]  # and padded as the sampler does
            with torch.no_grad(), counting(victim, [hunt.ledger for hunt in hunts]):
                embeds = encoded(ended, ids, [victim.token_table[own] for own in ids])
        origins = [hunt.provenance(*each) for hunt, *each in zip(hunts, words, texts)]
        return make_pictures([hunt.tries for hunt in hunts], texts, variant, embeds, seeds, origins)

    def originals(self, scene: Scene, hunted: Sequence[Tries]) -> list[Image]:
        """The unedited model's pictures of the same prompts from the same start noise."""
        with scene.unedited():
            return paint(hunted, [tries.shot for tries in hunted])

    def taught(self, scene: Scene, hunt: Hunt, times: Sequence[int], target: str) -> None:
        """Give a hunt its next `lesson`."""
        with hunt.ledger.counting(scene.victim):
            hunt.lesson = self.lesson(scene, hunt.shot, hunt.x0, times, hunt.draws, target)

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
            named = model.encode([shot.prompt.text], truncate=True)
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

    def view(self, scene: Scene, shot: Shot) -> Callable[..., torch.Tensor]:
        """e(x_t (1, c, h, w), t (1,), embeds (1, tokens, width), step of the search)."""
        return lambda noised, t, embeds, step: self.predicted(scene.victim, scene, shot, noised, t, embeds)

    def losses(
        self,
        scene: Scene,
        hunts: Sequence[Hunt],
        index: int,
        ids,
        rows,
        reader: DiffusionModel | None = None,
        first: int = 0,
    ) -> torch.Tensor:
        """Each hunt's loss (n,) at row ``index`` of its lesson, which is step ``first + index`` of the search, for its words.

        Guided predictions go one by one: guards may ask where a whole batch is on its way, and remember it.
        """
        reader = reader or scene.victim
        noised, timesteps, wanted = map(
            torch.cat, zip(*([part[index : index + 1] for part in h.lesson] for h in hunts))
        )
        with counting(reader, [hunt.ledger for hunt in hunts]):
            embeds = encoded([hunt.frame for hunt in hunts], ids, rows, reader)
        if self.prediction == "conditional":
            with counting(scene.victim, [hunt.ledger for hunt in hunts]):
                said = scene.victim.predict(noised, timesteps, embeds)
        else:
            each = zip(hunts, *(part.split(1) for part in (noised, timesteps, embeds)))
            said = torch.cat([hunt.looked(scene, *row, first + index) for hunt, *row in each])
        values = (said.float() - wanted.float()).square().flatten(1).mean(dim=1)
        for hunt, value in zip(hunts, values.detach()):
            hunt.losses.append(value)
        return values


def guidance_scale(scene: Scene, shot: Shot) -> float:
    """The prompt's own guidance scale where a prompt file gives one, else the protocol's."""
    return shot.prompt.guidance or scene.protocol["guidance_scale"]
