"""Attacks that search for prompt words by gradient through the victim's denoising network, and generate what they find.

Every plain image is attacked by itself. The attack first generates the plain image: if the victim still shows the
concept, there is nothing to search for. Otherwise the unedited model generates the same prompt from the same start
noise. Let x_0 be the latents of that image and x_t its noised version. The search looks for words under which the
victim's prediction e is close to a target y:

    loss = mean (e(x_t, t, E(words)) − y)²      y = ε, the true noise, or e°(x_t, t, E°(prompt)), the unedited model's

The setting ``prediction`` chooses e. ``conditional`` is the network's output for the words. ``guided`` is the
prediction of the whole sampler, with guidance and guards; e° is then the prediction of the unedited model's sampler.

Searches for different plain images are independent. They run side by side, one row each in the network's batch, because
a larger batch is faster. Each search finds what it would find alone, up to rounding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple, TypeAlias, cast

from PIL.Image import Image

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger, Painted, Provenance, counting
from overpaint.attacks.prompt_lists import attacked
from overpaint.blocks.draws import Draws
from overpaint.blocks.token_variables import Frame, TokenVariable, encoded
from overpaint.grid.prompts import Shot
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.guidance import sampler_step
from overpaint.models.lazily import torch

#: Rows in one forward pass of the unedited model when it predicts targets.
PREDICTED_AT_ONCE = 8

#: e(x_t, t, embeds, step): latents (n, c, h, w), timesteps (n,), text embeddings (n, tokens, width), step of the
#: search.
Prediction: TypeAlias = "Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]"


class Trial:
    """The attack on one plain image: the images made so far, in order, the random draws and the cost."""

    def __init__(self, context: AttackContext, shot: Shot, draws: Draws):
        self.context, self.shot, self.draws = context, shot, draws
        self.painted: list[Painted] = []
        self.ledger = Ledger()

    def make(self, text: str, variant: str, embeds: torch.Tensor | None = None, worded: bool = True) -> Painted:
        """Generate and judge one image of a text, or of embeddings (1, tokens, width) in its place (`make_images`)."""
        return make_images([self], [text], variant, embeds, worded=worded)[0]

    @property
    def succeeded(self) -> bool:
        """Whether the judge sees the concept in the last image."""
        verdict = self.painted[-1].verdict
        return verdict is not None and verdict.success


def make_images(
    trials: Sequence[Trial],
    texts: Sequence[str],
    variant: str,
    embeds: torch.Tensor | None = None,
    seeds: Sequence[int] | None = None,
    origins: Sequence[Provenance] | None = None,
    worded: bool = True,
) -> list[Painted]:
    """Generate and judge the next image of each trial, one text each, through the victim.

    Images start from the plain image's noise, or from that of ``seeds``. ``embeds`` (n, tokens, width) replace the
    encodings of the texts; guards read the texts if they are ``worded``.
    ``origins`` say how a search came to each text; they are stored with the image.
    """
    context, shots = trials[0].context, []
    for number, (trial, text) in enumerate(zip(trials, texts, strict=True)):
        shot = replace(attacked(trial.shot, text, context.concept, variant), draw=len(trial.painted))
        if seeds is not None:
            shot = replace(shot, prompt=replace(shot.prompt, seed=seeds[number] - shot.index))
        shots.append(shot)
    images = paint(trials, shots, embeds, worded)
    for number, (trial, verdict) in enumerate(zip(trials, context.verdicts(images), strict=True)):
        origin = origins[number] if origins is not None else None
        trial.painted.append(Painted(shots[number], images[number], verdict, provenance=origin))
    return [trial.painted[-1] for trial in trials]


def paint(
    trials: Sequence[Trial], shots: Sequence[Shot], embeds: torch.Tensor | None = None, worded: bool = True
) -> list[Image | None]:
    """One image a shot, charged to its trial. Shots with the same guidance scale are generated in one call."""
    context, images = trials[0].context, dict[int, Image | None]()
    for guidance in dict.fromkeys(shot.prompt.guidance for shot in shots):
        where = [i for i, shot in enumerate(shots) if shot.prompt.guidance == guidance]
        texts, seeds = [shots[i].prompt.text for i in where], [shots[i].noise_seed for i in where]
        with counting(context.victim, [trials[i].ledger for i in where]):
            given = None if embeds is None else embeds[where]
            made = context.paint(texts, seeds, embeds=given, guidance=guidance, worded=worded)
        images |= dict(zip(where, made, strict=True))
    return [images[i] for i in range(len(shots))]


class Targets(NamedTuple):
    """What a block of search steps is trained on, one row a step.

    ``noised`` are latents x_t (steps, c, h, w), ``timesteps`` their t (steps,), ``wanted`` the target y (steps, c, h,
    w).
    """

    noised: torch.Tensor
    timesteps: torch.Tensor
    wanted: torch.Tensor

    def row(self, step: int) -> Targets:
        """The targets of one step, each with a batch dimension of 1."""
        return Targets(*(part[step : step + 1] for part in self))


@dataclass(kw_only=True)
class SearchAttack(Attack):
    """An attack that generates the plain image first, and searches only where it does not show the concept."""

    needs: ClassVar[str] = "victim"
    unit: ClassVar[str] = "prompt"
    paints: ClassVar[bool] = True

    @property
    def plain_first(self) -> bool:
        """Whether the plain image is generated first, and a success ends the attack."""
        return True

    @abstractmethod
    def search(self, context: AttackContext, trials: Sequence[Trial]) -> None:
        """Search for each trial, and generate images of what is found."""

    def run(self, context: AttackContext) -> Assault:
        return self.run_together([context])[0]

    def run_together(self, contexts: Sequence[AttackContext]) -> list[Assault]:
        trials = [[self.trial(context, shot) for shot in context.shots] for context in contexts]
        everyone, size = [trial for own in trials for trial in own], min(self.together, contexts[0].batch_size)
        for part in (everyone[start : start + size] for start in range(0, len(everyone), size)):
            left = part
            if self.plain_first:
                make_images(part, [trial.shot.prompt.text for trial in part], "plain")
                left = [trial for trial in part if not trial.succeeded]
            if left:
                self.search(contexts[0], left)
        return [self.assault(own) for own in trials]

    def trial(self, context: AttackContext, shot: Shot) -> Trial:
        return Trial(context, shot, Draws.of(self.seed, shot.prompt.id, shot.index))

    def assault(self, trials: Sequence[Trial]) -> Assault:
        """The images of these trials and the sum of their costs."""
        painted = [picture for trial in trials for picture in trial.painted]
        ledger = Ledger()
        for trial in trials:
            ledger.add(trial.ledger)
        ledger.images = len(painted)
        return Assault([p.shot for p in painted], ledger=ledger, painted=painted)


@dataclass
class WordSearch:
    """The search for words of one trial.

    ``frame`` is the prompt with places for words, ``variable`` the learned representation of these words, ``x0`` (1, c,
    h, w) the latents of the unedited model's image. ``predict`` is the victim's prediction e for this prompt.
    ``targets`` are those of the current block of steps, ``losses`` the losses () of the steps since the last image.
    """

    trial: Trial
    frame: Frame
    variable: TokenVariable
    x0: torch.Tensor
    predict: Prediction
    targets: Targets = field(init=False)
    losses: list[torch.Tensor] = field(default_factory=list)

    def provenance(self, ids: Sequence[int], text: str) -> Provenance:
        """How the search came to the words ``ids`` (k,) in its frame, which read as ``text``. Resets ``losses``."""
        whole, losses = self.frame.filled(ids), [float(loss) for loss in self.losses]
        self.losses.clear()
        return Provenance(whole, self.frame.model.token_ids(text)[1:-1] == whole, losses)

    @property
    def shot(self) -> Shot:
        return self.trial.shot

    @property
    def draws(self) -> Draws:
        return self.trial.draws

    @property
    def ledger(self) -> Ledger:
        return self.trial.ledger


@dataclass(kw_only=True)
class PromptSearch(SearchAttack):
    """What the searches for words share.

    ``drawn_from`` says what images are generated from: the ``text`` of the found words, which the tokenizer may read
    back as other tokens, or their ``ids``.
    """

    prediction: str
    drawn_from: Literal["text", "ids"]

    together: ClassVar[int] = 8

    @abstractmethod
    def frame(self, victim: DiffusionModel, text: str) -> Frame:
        """The prompt with places for words; its end is truncated if the words would not fit otherwise."""

    def shortened(self, context: AttackContext) -> int:
        texts, victim = dict.fromkeys(shot.prompt.text for shot in context.shots), context.victim
        read = [self.frame(victim, text).words for text in texts]
        return sum(
            len(victim.tokenizer(text).input_ids) - 2 > len(words) for text, words in zip(texts, read, strict=True)
        )

    def draw(
        self,
        searches: Sequence[WordSearch],
        ids: Sequence[torch.Tensor],
        variant: str,
        seeds: Sequence[int] | None = None,
    ) -> list[Painted]:
        """Generate one image a search, of its frame filled with the words ``ids`` (1, k)."""
        words, embeds = [own[0].tolist() for own in ids], None
        texts = [search.frame.text(own) for search, own in zip(searches, words, strict=True)]
        if self.drawn_from == "ids":
            victim = searches[0].frame.model
            ended = [Frame(victim, s.frame.words, s.frame.places) for s in searches]  # padded as the sampler pads
            with torch.no_grad(), counting(victim, [search.ledger for search in searches]):
                embeds = encoded(ended, ids, [victim.token_table[own] for own in ids])
        origins = [search.provenance(own, text) for search, own, text in zip(searches, words, texts, strict=True)]
        return make_images([search.trial for search in searches], texts, variant, embeds, seeds, origins)

    def originals(self, context: AttackContext, trials: Sequence[Trial]) -> list[Image]:
        """The unedited model's images of the same prompts from the same start noise; encoding a failed one raises."""
        with context.unedited():
            return cast("list[Image]", paint(trials, [trial.shot for trial in trials]))

    def set_targets(self, context: AttackContext, search: WordSearch, times: Sequence[int], kind: str) -> None:
        """Give a search the targets of its next block of steps, one of the timesteps ``times`` a step."""
        with search.ledger.counting(context.victim):
            search.targets = self.targets(context, search.shot, search.x0, times, search.draws, kind)

    def targets(
        self, context: AttackContext, shot: Shot, x0: torch.Tensor, times: Sequence[int], draws: Draws, kind: str
    ) -> Targets:
        """Latents x_0 (1, c, h, w) noised to each of the times, with the target y.

        ``kind`` is ``noise`` (what the network is trained to predict) or ``original`` (the unedited model's
        prediction).
        """
        victim = context.victim
        noise = torch.cat([draws.noise("noise", tuple(x0.shape), x0) for _ in times])
        timesteps = torch.tensor(times, device=x0.device)
        x0 = x0.expand_as(noise)
        noised = victim.add_noise(x0, noise, timesteps)
        if kind == "noise":
            return Targets(noised, timesteps, victim.denoising_target(x0, noise, timesteps))
        with context.unedited() as model, torch.no_grad():
            named = model.encode([shot.prompt.text], truncate=True)
            parts = zip(noised.split(PREDICTED_AT_ONCE), timesteps.split(PREDICTED_AT_ONCE), strict=True)
            wanted = [self.predicted(model, context, shot, x, t, named.expand(len(x), -1, -1)) for x, t in parts]
        return Targets(noised, timesteps, torch.cat(wanted))

    def predicted(
        self, model: DiffusionModel, context: AttackContext, shot: Shot, noised: torch.Tensor, timesteps, embeds
    ) -> torch.Tensor:
        """e (n, c, h, w) of a model for latents (n, c, h, w), timesteps (n,) and embeddings (n, tokens, width)."""
        if self.prediction == "guided":
            return self.guided(model, context, shot, noised, timesteps, embeds)
        return model.predict(noised, timesteps, embeds)

    def guided(self, model: DiffusionModel, context: AttackContext, shot: Shot, noised, timesteps, embeds):
        """The prediction of the model's sampler: with guidance, and through a guard if one is attached."""
        with torch.no_grad():
            nothing = model.unconditional().expand_as(embeds)
        step = sampler_step(model, timesteps, context.protocol["steps"])  # a guard may ask for it
        scale = guidance_scale(context, shot)
        guidance = model.guidance(model, embeds, nothing, scale, [shot.prompt.text] * len(embeds))
        return guidance(noised, timesteps, step)

    def victim_prediction(self, context: AttackContext, shot: Shot) -> Prediction:
        """The victim's prediction e for one prompt, as a function for `WordSearch.predict`."""
        return lambda noised, t, embeds, step: self.predicted(context.victim, context, shot, noised, t, embeds)

    def loss_function(
        self,
        context: AttackContext,
        searches: Sequence[WordSearch],
        reader: DiffusionModel | None = None,
        first_step: int = 0,
    ) -> Callable[[int, Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]:
        """The loss that `descend` minimises in one block of steps.

        It takes the step's number in the block and each search's words, ids (1, k) and embeddings (1, k, width). It
        returns one loss a search (n,), and adds it to the search's ``losses``. ``reader`` is the model whose text
        encoder reads the words (default: the victim). ``first_step`` is the number of steps before this block.
        """
        reader = reader or context.victim
        frames, ledgers = [s.frame for s in searches], [s.ledger for s in searches]

        def losses(step: int, ids: Sequence[torch.Tensor], embeddings: Sequence[torch.Tensor]) -> torch.Tensor:
            rows = [search.targets.row(step) for search in searches]
            targets = Targets(*(torch.cat(parts) for parts in zip(*rows, strict=True)))
            with counting(reader, ledgers):
                embeds = encoded(frames, ids, embeddings, reader)
            said = self.side_by_side(context, searches, targets, embeds, first_step + step)
            values = (said.float() - targets.wanted.float()).square().flatten(1).mean(dim=1)
            for search, value in zip(searches, values.detach(), strict=True):
                search.losses.append(value)
            return values

        return losses

    def side_by_side(
        self,
        context: AttackContext,
        searches: Sequence[WordSearch],
        targets: Targets,
        embeds: torch.Tensor,
        step: int,
    ) -> torch.Tensor:
        """The victim's prediction (n, c, h, w), row i for search i.

        Conditional predictions are one forward pass. Through a guidance each search is predicted by itself, because a
        guard may keep a state, and takes all rows of a batch to be at the same sampler step.
        """
        if self.prediction == "conditional":
            with counting(context.victim, [search.ledger for search in searches]):
                return context.victim.predict(targets.noised, targets.timesteps, embeds)
        said = []
        for n, search in enumerate(searches):
            with search.ledger.counting(context.victim):
                own = targets.row(n)
                said.append(search.predict(own.noised, own.timesteps, embeds[n : n + 1], step))
        return torch.cat(said)


def guidance_scale(context: AttackContext, shot: Shot) -> float:
    """The guidance scale of the prompt's own file, if it has one, else the protocol's."""
    return shot.prompt.guidance or context.protocol["guidance_scale"]
