"""Ring-A-Bell: words whose text embedding is close to a prompt's, moved towards the concept.

Tsai, Hsu, Xie, Lin, Chen, Li, Chen, Yu and Huang, "Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion
Models?", ICLR 2024, arXiv 2310.10012. The attack uses no diffusion model and no gradient. With E all rows (77, width)
of a text's encoding, and pairs of sentences with and without the concept,

    v = mean (E(with) − E(without))                                   the concept vector
    loss(w) = ‖E(w) − (E(prompt) + η v)‖²                             w: K words, then end tokens

A genetic algorithm searches for w. One generation of a population of N:

    rank     the ⌊N/2⌋ best individuals become parents
    cross    with probability p_c a parent has two children: it and a random mate exchange all words after a random cut
    mutate   with probability p_m one word of an individual, parents included, becomes a random word

A generation therefore has between N/2 and 3N/2 individuals, and its best can become worse; ``elitism`` keeps parents
unchanged. The last generation is only ranked. In the official code, sentence pairs were written by hand and by a
language model, about one concept each. Here they are the catalogue's sentences, once with the concept and once with its
anchor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger, in_place_of_the_prompt
from overpaint.attacks.prompt_lists import attacked
from overpaint.attacks.wording import sentences
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.templates import article
from overpaint.blocks.token_variables import Frame, full, text_of
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Catalogue, Concept
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import torch
from overpaint.run.progress import steps

#: Rows in one forward pass of the text encoder.
INDIVIDUALS_AT_ONCE = 64


@dataclass(kw_only=True)
class RingABell(Attack):
    """Hyper-parameters; ``conf/attack/rab.yaml`` says what each means."""

    tokens: int
    eta: float
    population: int
    generations: int
    crossover_rate: float
    mutation_rate: float
    elitism: bool
    without_name: bool

    needs: ClassVar[str] = "model"
    unit: ClassVar[str] = "prompt"
    lengths: ClassVar[tuple[str, ...]] = ("generations",)

    def __post_init__(self):
        at_least(1, tokens=self.tokens, generations=self.generations)
        at_least(2, population=self.population)
        at_least(0, crossover_rate=self.crossover_rate, mutation_rate=self.mutation_rate)

    @property
    def matched(self) -> Mapping[str, Any]:
        return in_place_of_the_prompt(self.tokens)

    def run(self, context: AttackContext) -> Assault:
        """One search for each prompt. Its words are generated from the start noise of all the prompt's plain images."""
        model, concept = context.victim, context.concept
        ledger, found = Ledger(), []
        forbidden = model.token_ids(concept.name)[1:-1] if self.without_name else []
        with ledger.counting(model):
            vector = concept_vector(model, contrasts(concept, context.catalogue))
            for prompt, shots in groupby(context.shots, key=lambda shot: shot.prompt):
                target = full_encoding(model, [prompt.text], truncate=True) + self.eta * vector
                words = self.search(model, target, Draws.of(self.seed, prompt.id), forbidden)
                found += [attacked(shot, text_of(model, words), concept, "ring-a-bell") for shot in shots]
        return Assault(found, ledger=ledger)

    def search(
        self, model: DiffusionModel, target: torch.Tensor, draws: Draws, forbidden: Sequence[int] = ()
    ) -> list[int]:
        """The ids of the K words closest to the target (1, tokens, width) in the last generation."""
        if self.tokens > model.tokens - 2:
            raise UserError(f"attack.tokens={self.tokens} is too long: the model takes up to {model.tokens - 2} tokens")
        frame = Frame(model, (), tuple(range(self.tokens)))
        avoided = {0, *model.tokenizer.all_special_ids, *forbidden}
        words = [word for word in range(len(model.tokenizer)) if word not in avoided]
        size = (self.population, self.tokens)
        first = draws.take("population", lambda g: torch.tensor(words)[torch.randint(len(words), size, generator=g)])

        def fittest(population: torch.Tensor) -> torch.Tensor:
            distances = self.distances(model, frame.padded(population), target)
            parents = population[distances.argsort(stable=True)[: self.population // 2].cpu()]
            trace_values(population=population, distances=distances, parents=parents)
            return parents

        parents = fittest(first)
        for _ in steps(self.generations - 1, "generations"):
            parents = fittest(torch.tensor(self.offspring(parents.tolist(), words, draws)))
        return parents[0].tolist()

    def offspring(self, parents: list[list[int]], words: list[int], draws: Draws) -> list[list[int]]:
        """The next generation: every parent with its children, after mutation; under elitism parents do not mutate."""
        pool = []
        for parent in parents:
            pool.append((parent, self.elitism))
            if chance(draws) < self.crossover_rate:
                mate = parents[draws.integer("choice", 0, len(parents))]
                cut = draws.integer("choice", 1, self.tokens + 1) - 1
                pool += [(parent[:cut] + mate[cut:], False), (mate[:cut] + parent[cut:], False)]
        trace_values(crossed=torch.tensor([individual for individual, _ in pool]))
        return [individual if kept else self.mutated(individual, words, draws) for individual, kept in pool]

    def mutated(self, individual: list[int], words: list[int], draws: Draws) -> list[int]:
        """The individual's token ids, one of them replaced by a random one of ``words`` with probability ``mutation_rate``."""
        if chance(draws) >= self.mutation_rate:
            return individual
        place = draws.integer("choice", 1, self.tokens + 1) - 1
        word = draws.take("choice", lambda g: words[int(torch.randint(len(words), (1,), generator=g))])
        return [*individual[:place], int(word), *individual[place + 1 :]]

    def distances(self, model: DiffusionModel, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """loss (n,) of padded ids (n, tokens)."""
        with torch.no_grad():
            blocks = [full(model.encode_ids(block)) for block in ids.to(model.device).split(INDIVIDUALS_AT_ONCE)]
            return torch.cat([((block - target) ** 2).sum(dim=(1, 2)) for block in blocks])


def chance(draws: Draws) -> float:
    """A uniform draw from [0, 1)."""
    return float(draws.take("chance", lambda g: torch.rand((), generator=g)))


def contrasts(concept: Concept, catalogue: Catalogue) -> list[tuple[str, str]]:
    """Pairs of sentences: one with the concept, one with its anchor or, if it has none, with nothing in its place."""
    anchor = concept.anchor or ""
    if anchor and concept.article:
        anchor = f"{article(anchor)} {anchor}"
    without = [" ".join(line.format(anchor).split()) for line in sentences(concept, catalogue)]
    return [
        (line.format(concept.phrase), plain) for line, plain in zip(sentences(concept, catalogue), without, strict=True)
    ]


def concept_vector(model: DiffusionModel, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """v (tokens, width): the mean difference between the encodings of sentences with and without the concept."""
    return torch.stack(
        [full_encoding(model, [named])[0] - full_encoding(model, [plain])[0] for named, plain in pairs]
    ).mean(dim=0)


def full_encoding(model: DiffusionModel, texts: Sequence[str], truncate: bool = False) -> torch.Tensor:
    """E (n, tokens, width), at least float32. An over-long text is an error, or is truncated with ``truncate``."""
    with torch.no_grad():
        return full(model.encode(texts, truncate))
