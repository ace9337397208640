"""SAeUron: a sparse autoencoder of one layer of the denoiser finds the features of a concept, which are reversed while sampling.

Cywiński and Deja, "SAeUron: Interpretable Concept Unlearning in Diffusion Models with Sparse Autoencoders", ICML 2025,
arXiv 2501.18052. Weights do not change. x (d,) is one position of the feature map that a transformer of the denoiser outputs.
The autoencoder learns from such x of many prompts at all steps of the sampler, e = x − x̂ and x̄ the mean of the batch:

    x̂    = W_d z + b,   z = TopK_k(ReLU(W_e (x − b) + b_l))                W_d (d, n), W_e (n, d); n = ``expansion`` · d
    loss = Σ‖e‖² / Σ‖x − x̄‖² + a · s · Σ‖W_d z_aux − e‖² / Σ‖x − x̄‖²       Adam; columns of W_d keep norm 1

While it is trained, TopK selects k latents per position on average over the batch (BatchTopK), later k for each position.
z_aux are the d/2 largest scores among dead latents, which were not selected for ``dead_tokens`` positions, and s is the
number of dead latents over d/2, at most 1. Let μ_c (steps, n) be the mean of z over pictures of concept c. At step τ

    p_c      = μ_c / Σ μ_c,     score = p_c − p_others                      features i: score_i above ``percentile``
    z_i      ← γ μ_ci z_i  where z_i > mean of μ_i over all concepts        γ = ``multiplier``
    output   = W_d z + b + e

for the prompt and the empty prompt. Another sampler than that of μ uses the step whose timestep is nearest.

Official code (``compat: official``) adds x̂ − x instead of e, so that the layer's output is not kept even if no feature is
changed, and trains the second term of the loss on the same reversed sign, with b added to W_d z_aux. Its z_aux are the largest
scores of dead latents in the whole batch, d/2 for each position on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from overpaint.blocks.adapters import edit_at_times
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import PICTURES_AT_ONCE, shuffled
from overpaint.blocks.prior import Captions, check_captions, read_captions
from overpaint.blocks.sparse_autoencoders import (
    ADAM_EPSILON,
    TENSORS,
    SparseAutoencoder,
    check_file,
    check_latents,
    largest,
    read_autoencoder,
)
from overpaint.blocks.templates import phrase_templates
from overpaint.blocks.training import train
from overpaint.errors import UserError, at_least, unknown
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.typed import check_type
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import torch
from overpaint.run.progress import announce

#: Largest norm of the gradient of the autoencoder.
CLIP = 1.0
#: The settings of a stored erasure.
SETTINGS = {"layer": str, "k": int, "times": list[float], "official": bool}


@dataclass(kw_only=True)
class SAeUron(Eraser):
    """Hyper-parameters of SAeUron; ``conf/method/saeuron.yaml`` explains each."""

    compat: Literal["intended", "official"]
    layer: str
    percentile: float
    multiplier: float
    autoencoder: str | None
    captions: Captions
    templates: list[str] | None
    pictures: int
    concept_pictures: int
    picture_scheduler: str
    picture_steps: int
    picture_guidance: float
    positions: int
    expansion: int
    k: int
    aux_weight: float
    dead_tokens: int
    iterations: int
    batch_size: int
    learning_rate: float

    acts_on: ClassVar[str] = "denoiser"
    mergeable: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("pictures", "concept_pictures", "iterations")

    def __post_init__(self):
        check_file(self.autoencoder)
        check_captions(self.captions)
        at_least(1, pictures=self.pictures, concept_pictures=self.concept_pictures, picture_steps=self.picture_steps)
        at_least(1, positions=self.positions, expansion=self.expansion, k=self.k)
        at_least(1, iterations=self.iterations, batch_size=self.batch_size)
        at_least(0, aux_weight=self.aux_weight, dead_tokens=self.dead_tokens, learning_rate=self.learning_rate)
        if not 0 <= self.percentile < 100:
            raise UserError(f"percentile takes a number from 0 to below 100, got {self.percentile:g}")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        layers = model.feature_maps()
        if self.layer not in layers:
            raise unknown("layer", self.layer, layers, "method=saeuron")
        draws = Draws(self.seed)
        concepts = (*request.erase, *request.retain)
        rows = None
        if self.autoencoder is None or not request.retain:
            captions = read_captions(self.captions) or [text for c in concepts for text in self.phrases(c)]
            order = next(shuffled(draws, "captions", len(captions), self.pictures))
            rows = self.collected(model, [captions[number] for number in order], draws)
        if self.autoencoder is None:
            assert rows is not None
            autoencoder = self.trained(torch.cat(list(rows.values())), draws)
        else:
            _, like = next(self.maps(model, [""], Draws(self.seed), steps=1))
            autoencoder = read_autoencoder(self.autoencoder, like.shape[-1], like)
        check_latents(len(autoencoder), k=self.k)
        means = [self.mean_latents(model, autoencoder, concept, draws) for concept in concepts]
        if not request.retain:
            assert rows is not None
            with torch.no_grad():
                means.append({t: autoencoder.encode(x, self.k).mean(dim=0) for t, x in rows.items()})
        edits = interventions(
            [torch.stack(list(mean.values())) for mean in means], len(request.erase), self.percentile, self.multiplier
        )
        trace_values(interventions=edits)
        parts = {name: tensor.detach().to(model.dtype) for name, tensor in autoencoder.masters.items()}
        settings = {"layer": self.layer, "k": self.k, "times": list(means[0]), "official": self.compat == "official"}
        return Erasure("saeuron", "adapter", parts=parts | {"interventions": edits}, settings=settings)

    def phrases(self, concept: Concept) -> list[str]:
        """Prompts that name a concept."""
        templates = phrase_templates(concept.kind, self.concept_pictures, self.templates)
        return [template.format(concept.phrase) for template in templates]

    def maps(
        self, model: DiffusionModel, prompts: Sequence[str], draws: Draws, steps: int | None = None
    ) -> Iterator[tuple[float, torch.Tensor]]:
        """The time and the positions x (b, positions, d) of the prompts' feature maps, at all (or ``steps``) steps."""
        found: list[tuple[float, torch.Tensor]] = []
        layer = model.feature_maps()[self.layer]

        def keep(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            rows = x[len(x) // 2 :] if self.picture_guidance > 1 else x  # those of the prompts
            found.append((float(times[0]), rows.flatten(2).mT.float()))
            return x

        with torch.no_grad():
            nothing = model.unconditional()
            for start in range(0, len(prompts), PICTURES_AT_ONCE):
                announce(start, len(prompts), "pictures")
                texts = prompts[start : start + PICTURES_AT_ONCE]
                embeds = model.encode(texts, truncate=True)
                seeds = [draws.integer("picture", 0, 2**31) for _ in texts]
                guidance = Guidance(model, embeds, nothing.expand_as(embeds), self.picture_guidance)
                remove = edit_at_times(model, layer, keep)
                try:
                    model.denoise(model.noise(seeds), guidance, self.picture_scheduler, self.picture_steps, stop=steps)
                finally:
                    remove()
                yield from found
                found.clear()
            announce(len(prompts), len(prompts), "pictures")

    def collected(self, model: DiffusionModel, prompts: Sequence[str], draws: Draws) -> dict[float, torch.Tensor]:
        """Some positions (rows, d) of the feature maps of all pictures, by time."""
        kept: dict[float, list[torch.Tensor]] = {}
        for t, x in self.maps(model, prompts, draws):
            places = draws.take("positions", partial(_order, x.shape[1]))
            kept.setdefault(t, []).append(x[:, places[: self.positions].to(x.device)].flatten(0, 1))
        return {t: torch.cat(rows) for t, rows in kept.items()}

    def mean_latents(
        self, model: DiffusionModel, autoencoder: SparseAutoencoder, concept: Concept, draws: Draws
    ) -> dict[float, torch.Tensor]:
        """μ_c: the mean latents (n,) over all positions of a concept's pictures, by time."""
        phrases = self.phrases(concept)
        prompts = [phrases[number % len(phrases)] for number in range(self.concept_pictures)]
        sums: dict[float, torch.Tensor] = {}
        with torch.no_grad():
            for t, x in self.maps(model, prompts, draws):
                sums[t] = sums.get(t, 0) + autoencoder.encode(x, self.k).mean(dim=1).sum(dim=0)
        return {t: total / len(prompts) for t, total in sums.items()}

    def trained(self, rows: torch.Tensor, draws: Draws) -> SparseAutoencoder:
        """An autoencoder of the activations ``rows`` (n, d)."""
        batches = shuffled(draws, "rows", len(rows), self.batch_size)
        latents = self.expansion * rows.shape[1]
        check_latents(latents, k=self.k)
        first = rows[next(batches)]
        autoencoder = SparseAutoencoder.drawn(latents, first, draws)
        silent = torch.zeros(latents, dtype=torch.long, device=rows.device)  # positions since each latent was selected
        fired = torch.zeros_like(silent, dtype=torch.bool)

        def loss() -> torch.Tensor:
            autoencoder.unit_columns()
            x = draws.take("x", lambda _: rows[next(batches)]).to(rows)
            value, used = self.objective(autoencoder, x, silent > self.dead_tokens)
            fired.copy_(used)
            return value

        def adjust() -> None:
            torch.nn.utils.clip_grad_norm_(autoencoder.masters.values(), CLIP)
            autoencoder.keep_norms()

        optimizer = torch.optim.Adam(autoencoder.masters.values(), lr=self.learning_rate, eps=ADAM_EPSILON)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self.iterations)

        def after() -> None:
            schedule.step()
            silent.add_(self.batch_size).masked_fill_(fired, 0)

        train(autoencoder, optimizer, self.iterations, loss, adjust=adjust, after=after)
        autoencoder.unit_columns()
        return autoencoder

    def objective(self, autoencoder: SparseAutoencoder, x: torch.Tensor, dead: torch.Tensor):
        """The loss on activations x (rows, d), and which latents (n,) it used."""
        scores = autoencoder.scores(x).relu()
        z = largest(scores.flatten(), self.k * len(x)).view_as(scores)
        error = x - autoencoder.decode(z)
        spread = (x - x.mean(dim=0)).square().sum()
        unexplained = error.square().sum() / spread
        count, half = int(dead.sum()), x.shape[1] // 2
        aux = unexplained.new_zeros(())
        if self.aux_weight and count:
            official, each = self.compat == "official", min(half, count)
            silent = scores.masked_fill(~dead, -torch.inf)
            revived = largest(silent.flatten(), each * len(x)).view_as(scores) if official else largest(silent, each)
            missed = autoencoder.decode(revived) + error if official else autoencoder.directions(revived) - error
            aux = min(count / half, 1.0) * missed.square().sum() / spread
        trace_values(unexplained=unexplained.detach(), aux=aux.detach())
        return unexplained + self.aux_weight * aux, (z > 0).any(dim=0)

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        for key, hint in SETTINGS.items():
            check_type(erasure.settings.get(key), hint, f"this erasure's settings: {key}")
        layers, name = model.feature_maps(), erasure.settings["layer"]
        if name not in layers:
            raise unknown("layer", name, layers, "this erasure")
        return edit_at_times(model, layers[name], Reversal(erasure.parts, erasure.settings, model))


def _order(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(count, generator=generator)


def interventions(means: Sequence[torch.Tensor], erased: int, percentile: float, multiplier: float) -> torch.Tensor:
    """What is changed: rows (step, latent, factor, threshold), float64.

    ``means`` are μ (steps, n) of all concepts; the first ``erased`` of them are erased.
    """
    mean = torch.stack(list(means)).double().mean(dim=0)
    found = []
    for number in range(erased):
        own = means[number].double()
        others = torch.stack([other for place, other in enumerate(means) if place != number]).double().mean(dim=0)
        share, share_others = (part / (part.sum(dim=1, keepdim=True) + 1e-8) for part in (own, others))
        scores = share - share_others
        level = torch.quantile(scores, percentile / 100, dim=1, keepdim=True)
        places = (scores > level).nonzero()
        step, latent = places.unbind(dim=1)
        found.append(torch.stack([step, latent, multiplier * own[step, latent], mean[step, latent]], dim=1))
    return torch.cat(found).cpu()


def effective(rows: torch.Tensor) -> torch.Tensor:
    """The interventions (n, 4) of one step without those that a later concept replaces: each latent is changed once."""
    last = {latent: place for place, latent in enumerate(rows[:, 1].tolist())}
    return rows[sorted(last.values())]


class Reversal:
    """Reverses the selected latents of a feature map; called with a map x (b, d, h, w) and the times (b,) of its rows."""

    def __init__(self, parts: Mapping[str, torch.Tensor], settings: Mapping, model: DiffusionModel):
        self.autoencoder = SparseAutoencoder({name: parts[name].to(model.device, model.dtype) for name in TENSORS})
        for master in self.autoencoder.masters.values():
            master.requires_grad_(False)
        self.k, self.official = settings["k"], settings["official"]
        check_latents(len(self.autoencoder), k=self.k)
        self.times = torch.tensor(settings["times"], device=model.device)
        rows = parts["interventions"].to(model.device)
        if ((rows[:, 1] < 0) | (rows[:, 1] >= len(self.autoencoder))).any():
            raise UserError("this erasure changes a latent that its autoencoder does not have")
        self.at = [effective(rows[rows[:, 0] == step]) for step in range(len(self.times))]

    def __call__(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        steps = (times[:, None] - self.times).abs().argmin(dim=1)
        chosen = steps.unique().tolist()
        if len(chosen) == 1:
            return self.edited(x, chosen[0])
        return torch.stack([self.edited(row[None], step)[0] for row, step in zip(x, steps.tolist(), strict=True)])

    def edited(self, x: torch.Tensor, step: int) -> torch.Tensor:
        """The map x (b, d, h, w) at one step."""
        _, latent, factor, threshold = self.at[step].unbind(dim=1)
        latent, like = latent.long(), x.flatten(2).mT
        z = self.autoencoder.encode(like, self.k)
        selected = z[..., latent]
        reversed_ = torch.where(selected > threshold.to(selected), factor.to(selected) * selected, selected)
        changed = torch.zeros_like(z).index_copy(-1, latent, reversed_ - selected)
        made = like + self.autoencoder.directions(changed)
        if self.official:
            made = made + 2 * (self.autoencoder.decode(z) - like)
        return made.mT.unflatten(2, x.shape[2:])
