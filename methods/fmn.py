"""FMN (Forget-Me-Not): the attention that images pay to a concept's tokens is trained towards zero.

Zhang, Wang, Xu, Wang and Shi, "Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models", CVPR 2024 workshop,
arXiv 2303.17591. Two stages, on images of the concept. x_t (b, 4, h, w) is such an image, noised, and A_l (b, heads, pixels,
tokens) are the attention probabilities of cross-attention layer l for the prompt "a photo of c" or "a photo in the style of c":

    1. inversion    mean (ε − e(x_t, "a photo of <s1>…<sk>"))²            AdamW on the input embeddings of k new words; after each
                                                                          step their norms n ← n + min(1, 100 lr)(0.4 − n)
    2. forgetting   ‖A_l[…, concept]‖ over all layers, heads, pixels      AdamW on the denoiser; a norm and not its square

"concept" are the positions of the concept's tokens, of <s1>…<sk> after an inversion, and with ``pooler`` every position of the
end token too. Padding is the end token in SD 1.x, so those are about 70 positions there, and one in SD 2.x. Nothing is retained.
Weights that no attention probability depends on (the last value and output projections, all layers after them) stay the same.

Official code clips gradients only if cross-attention alone is trained: with all parameters it clips none. In batches of several
images it gives row r, counted image by image and head by head, the positions of image r mod b. It mirrors half of the
inversion's images. ``compat: official`` does all three.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import ImageOps

from overpaint.blocks.concept_pictures import check_pictures, concept_bank, enough, passes
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import ImageBank, diffused
from overpaint.blocks.training import (
    COMPVIS_GROUPS,
    Student,
    backward,
    gradient_of,
    mean_square,
    parameter_group,
    train,
)
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept, Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.lazily import torch
from overpaint.run.progress import steps

#: The norm to which learned embeddings are pulled: about that of CLIP's words.
NORM = 0.4


@dataclass(kw_only=True)
class FMN(Eraser):
    """Hyper-parameters of FMN; ``conf/method/fmn.yaml`` explains each."""

    compat: Literal["intended", "official"]
    train: Literal["full", "xattn", "text_encoder"]
    pooler: bool
    inversion_tokens: int
    initialisers: list[str] | None
    inversion_steps: int
    inversion_learning_rate: float
    inversion_weight_decay: float
    inversion_accumulation: int
    pull: bool
    real_images: bool
    folder: str | None
    pictures: int
    picture_scheduler: str
    picture_steps: int
    picture_guidance: float
    iterations: int
    learning_rate: float
    weight_decay: float
    max_norm: float
    batch_size: int

    @property
    def lengths(self) -> tuple[str, ...]:
        found = ["iterations"]
        if self.inversion_tokens:
            found.append("inversion_steps")
        if self.folder is None:
            found.append("pictures")
        return tuple(found)

    def __post_init__(self):
        at_least(1, pictures=self.pictures, picture_steps=self.picture_steps, iterations=self.iterations)
        at_least(1, batch_size=self.batch_size, inversion_accumulation=self.inversion_accumulation)
        at_least(1, inversion_steps=self.inversion_steps)
        at_least(0, inversion_tokens=self.inversion_tokens, learning_rate=self.learning_rate, max_norm=self.max_norm)
        at_least(0, inversion_learning_rate=self.inversion_learning_rate, weight_decay=self.weight_decay)
        at_least(0, inversion_weight_decay=self.inversion_weight_decay)
        if self.initialisers is not None and len(self.initialisers) != self.inversion_tokens:
            raise UserError(
                f"initialisers takes one entry for each of inversion_tokens={self.inversion_tokens}, got {len(self.initialisers)}"
            )
        check_pictures(self.folder)

    def least(self, request: Request) -> Mapping[str, int]:
        return {"pictures": len(request.erase)}

    @property
    def acts_on(self) -> str:
        return "text_encoder" if self.train == "text_encoder" else "denoiser"

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        draws, concepts = Draws(self.seed), request.erase
        if self.folder is None:
            enough(pictures=(self.pictures, concepts))
        bank, shown = concept_bank(
            model,
            concepts,
            self.pictures,
            lambda concept, thing: sentence(concept, concept.name) if concept else "",
            draws,
            folder=self.folder,
            scheduler=self.picture_scheduler,
            steps=self.picture_steps,
            guidance_scale=self.picture_guidance,
        )
        owners = [owner for owner, _ in shown]
        words = self.words(model, concepts, bank, owners, draws)
        student = self.student(model)
        rows_of = passes(draws, "pictures", len(bank), self.batch_size)
        learned = {word: row for own in words for word, row in own.items()}
        spoken = ["".join(own) or concept.name for concept, own in zip(concepts, words, strict=True)]
        with model.learned_tokens(learned):
            ids = model.padded_ids([sentence(c, text) for c, text in zip(concepts, spoken, strict=True)])
            places = torch.stack([self.positions(model, row, text) for row, text in zip(ids, spoken, strict=True)])

        def loss() -> torch.Tensor:
            rows = next(rows_of)
            z = bank.latents(rows, draws, "z")
            x_t, t, _ = diffused(model, z if self.real_images else torch.zeros_like(z), draws)
            mine = [owners[row] for row in rows]
            with student.active(), model.attention_maps() as maps:
                with model.learned_tokens(learned), torch.set_grad_enabled(self.train == "text_encoder"):
                    embeds = model.encode_ids(ids[mine])
                model.predict(x_t, t, embeds)
            paid = {layer: self.paid(found, places[mine]) for layer, found in maps.items()}
            trace_values(input_ids=ids[mine], positions=places[mine])
            trace_values(attention={layer: found.detach() for layer, found in paid.items()})
            return torch.cat([found.flatten() for found in paid.values()]).norm()

        def adjust() -> None:
            if self.max_norm and (self.compat == "intended" or self.train == "xattn"):
                trace_values(clip_norm=torch.nn.utils.clip_grad_norm_(student.masters.values(), self.max_norm))

        optimizer = torch.optim.AdamW(student.masters.values(), lr=self.learning_rate, weight_decay=self.weight_decay)
        train(student, optimizer, self.iterations, loss, adjust=adjust)
        return Erasure("fmn", changes=student.changes(), manifest={"pictures": len(bank)})

    def student(self, model: DiffusionModel) -> Student:
        """Copies of the trained parameters."""
        names = parameter_group(model, COMPVIS_GROUPS["xattn" if self.train == "xattn" else "full"])
        return Student(model, names + (model.text_encoder_names if self.train == "text_encoder" else []))

    def positions(self, model: DiffusionModel, ids: torch.Tensor, text: str) -> torch.Tensor:
        """Which positions (tokens,) of a prompt with these ids belong to the concept, which is written as ``text``."""
        own, row = model.token_ids(text)[1:-1], ids.tolist()
        found = torch.zeros(len(row), dtype=torch.bool, device=ids.device)
        for place in range(len(row) - len(own) + 1):
            if row[place : place + len(own)] == own:
                found[place : place + len(own)] = True
        return found | (ids == model.tokenizer.eos_token_id) if self.pooler else found

    def paid(self, maps: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Attention probabilities (b, heads, pixels, tokens) with zeros outside the concept's positions (b, tokens)."""
        images, heads = maps.shape[:2]
        owner = torch.arange(images, device=places.device)[:, None].expand(-1, heads)
        if self.compat == "official":
            owner = torch.arange(images * heads, device=places.device).view(images, heads) % images
        return maps * places[owner][:, :, None]

    def words(
        self, model: DiffusionModel, concepts: Sequence[Concept], bank: ImageBank, owners: Sequence[int], draws: Draws
    ) -> list[dict[str, torch.Tensor]]:
        """The new words of each concept with their embeddings (width,); none without an inversion."""
        found: list[dict[str, torch.Tensor]] = []
        for number, concept in enumerate(concepts):
            first = 1 + sum(map(len, found))
            names = [f"<s{first + k}>" for k in range(self.inversion_tokens)]
            rows = [row for row, owner in enumerate(owners) if owner == number]
            found.append(self.inverted(model, concept, names, bank, rows, draws) if names else {})
        return found

    def inverted(
        self,
        model: DiffusionModel,
        concept: Concept,
        names: Sequence[str],
        bank: ImageBank,
        rows: Sequence[int],
        draws: Draws,
    ) -> dict[str, torch.Tensor]:
        """Embeddings (width,) of new words with which the model draws the images ``rows`` of the bank."""
        start = draws.take("start", lambda g: self.starts(model, concept, g))
        start = start.to(model.device, torch.promote_types(model.dtype, torch.float32))
        learned = {name: torch.nn.Parameter(row.clone()) for name, row in zip(names, start, strict=True)}
        parameters, order = list(learned.values()), passes(draws, "inverted", len(rows), self.batch_size)
        rate, pull = self.inversion_learning_rate, min(1.0, 100 * self.inversion_learning_rate)
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=self.inversion_weight_decay)
        summed = [torch.zeros_like(row) for row in parameters]
        mirrors = self.compat == "official"
        pictures = both_ways(bank) if mirrors else bank
        with torch.enable_grad(), model.learned_tokens(learned):
            ids = model.padded_ids([sentence(concept, "".join(names))])
            for step in steps(self.inversion_steps, "inversion steps"):
                taken = [rows[index] for index in next(order)]
                if mirrors:
                    taken = [row + len(bank) * draws.integer("flip", 0, 2) for row in taken]
                z = pictures.latents(taken, draws, "z")
                x_t, t, noise = diffused(model, z, draws)
                predicted = model.predict(x_t, t, model.encode_ids(ids).expand(len(z), -1, -1))
                loss = mean_square(predicted, model.denoising_target(z, noise, t)) / self.inversion_accumulation
                backward(loss, parameters, model.dtype)
                for total, row in zip(summed, parameters, strict=True):
                    total += gradient_of(row)
                    row.grad = None
                trace_values(inversion_loss=loss.detach(), inversion_ids=ids)
                if step % self.inversion_accumulation:
                    continue
                for total, row in zip(summed, parameters, strict=True):
                    row.grad = total.clone()
                    total.zero_()
                trace_values(inversion_gradient=torch.stack([gradient_of(row) for row in parameters]))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if self.pull:
                    for row in parameters:
                        norm = row.data.norm()
                        row.data *= (norm + pull * (NORM - norm)) / norm.clamp(min=1e-12)
                trace_values(rows=torch.stack([row.data for row in parameters]))
        return {name: row.detach() for name, row in learned.items()}

    def starts(self, model: DiffusionModel, concept: Concept, generator: torch.Generator) -> torch.Tensor:
        """Where the new words start (k, width): at other words, at zero, or at noise.

        ``initialisers`` null: at the tokens of the concept's name, then at noise.
        """
        table, pieces = model.token_table, model.token_ids(concept.name)[1:-1]
        chosen = self.initialisers
        if chosen is None:
            chosen = [str(piece) for piece in pieces[: self.inversion_tokens]]
            chosen += ["<rand-1>"] * (self.inversion_tokens - len(chosen))
        rows = []
        for text in chosen:
            noise = re.fullmatch(r"<rand-([\d.]+)>", text)
            if noise:
                rows.append(float(noise[1]) * torch.randn(table.shape[1], generator=generator).to(table))
            elif text == "<zero>":
                rows.append(table.new_zeros(table.shape[1]))
            elif text.isnumeric() and int(text) < len(table):
                rows.append(table[int(text)])
            else:
                rows.append(table[one_token(model, text)])
        return torch.stack(rows).detach()


def both_ways(bank: ImageBank) -> ImageBank:
    """The images of a bank, followed by their mirror images."""
    return ImageBank(bank.model, [*bank.images, *map(ImageOps.mirror, bank.images)], 2 * bank.captions)


def one_token(model: DiffusionModel, word: str) -> int:
    """The id of a word that is one token."""
    ids = model.token_ids(word)[1:-1]
    if len(ids) != 1:
        raise UserError(
            f"method=fmn: initialisers takes words of one token, ids, <zero> and <rand-NUMBER>, got {word!r} of {len(ids)} tokens"
        )
    return ids[0]


def sentence(concept: Concept, text: str) -> str:
    """The prompt for a concept that is written as ``text``."""
    return f"a photo in the style of {text}" if concept.kind == "style" else f"a photo of {text}"
