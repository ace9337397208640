"""Batched searches: each search has the result and the cost that it has alone."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import overpaint
from official import by_name, distance, watched
from overpaint.attacks.attack import Verdict
from overpaint.blocks.draws import traced
from overpaint.grid.registry import component

SEARCHES = {
    "uda": {"tokens": 2, "timesteps": 3, "iterations": 1},
    "p4d_n": {"tokens": 2, "steps": 2, "draw_every": 1, "last_images": 2, "stop_early": True},
    "p4d_k": {"every": 2, "steps": 2, "draw_every": 1, "last_images": 1, "stop_early": True},
}
#: Seed of the initial noise -> number of the attacked image that shows the concept.
FIRES = {0: 0, 1: 1, 2: 2}


@pytest.fixture
def precise(context, tiny_sd_float64):
    """Four plain images of two prompts of different length, in float64, and a judge that identifies every image."""
    short = [replace(s, prompt=replace(s.prompt, text="a cat")) for s in context.shots[3:5]]
    context = replace(context, shots=[*context.shots[:2], *short])
    seeds = {shot.noise_seed: number for number, shot in enumerate(context.shots)}
    made = Counter()

    def paint(texts, seeds, embeds=None, guidance=None, worded=True):
        images = tiny_sd_float64.sample(texts, seeds, embeds=embeds, steps=1, scheduler="ddim")
        for image, seed in zip(images, seeds, strict=True):
            image.info["seed"] = seed
        return images

    def judge(images):
        verdicts = []
        for image in images:
            seed = image.info["seed"]
            verdicts.append(Verdict(FIRES.get(seeds.get(seed)) == made[seed], 0.0))
            made[seed] += 1
        return verdicts

    ready = replace(
        context,
        victim=tiny_sd_float64,
        unedited=lambda: nullcontext(tiny_sd_float64),
        paint=paint,
        judge=judge,
        features=None,
    )
    return ready, made


def searched(attack, contexts, made):
    made.clear()
    losses = []
    with traced(lambda **values: losses.extend([float(values["loss"])] if "loss" in values else [])):
        return attack.run_together(contexts), losses


@pytest.mark.parametrize(("name", "prediction"), [("uda", "guided"), ("p4d_n", "conditional"), ("p4d_k", "filtered")])
def test_each_is_what_it_is_alone(name, prediction, precise, tiny_sd_float64):
    context, made = precise
    attack = component("attack", name).build(SEARCHES[name] | {"prediction": prediction}, seed=3)
    contexts = [replace(context, shots=context.shots[first : first + 2]) for first in (0, 2)]
    erasure = overpaint.erase(tiny_sd_float64, "negative_prompt", erase=["cat"])
    with erasure.attached(tiny_sd_float64):
        together, losses = searched(attack, contexts, made)
        alone, each = [], []
        for shots in (context.shots[n : n + 1] for n in range(4)):
            (assault,), seen = searched(attack, [replace(context, shots=shots)], made)
            alone.append(assault)
            each += seen
    assert sorted(losses) == pytest.approx(sorted(each), rel=1e-9)
    for number, assault in enumerate(together):
        pair = alone[2 * number : 2 * number + 2]
        assert assault.shots == [shot for one in pair for shot in one.shots]
        assert [p.verdict for p in assault.painted] == [p.verdict for one in pair for p in one.painted]
        for what, spent in assault.ledger.as_dict().items():
            assert spent == sum(one.ledger.as_dict()[what] for one in pair), what
    assert sorted({len(one.painted) for one in alone}) == [1, 2, 3, attack.images], "they end at different times"


def test_no_more_go_side_by_side_than_a_batch_holds(context, tiny_sd):
    """A batch of searches is one pass of the network."""
    attack = component("attack", "uda").build({"tokens": 2, "timesteps": 1, "iterations": 1}, seed=0)
    sizes = []

    def watch(module, inputs):
        if torch.is_grad_enabled():
            sizes.append(len(inputs[0]))

    hook = tiny_sd.denoiser.register_forward_pre_hook(watch)
    try:
        for size in (4, 1, 100):
            attack.run(replace(context, batch_size=size))
    finally:
        hook.remove()
    assert sizes == [4, 2, *[1] * 6, 6]


@pytest.mark.parametrize("name", ["uda", "p4d_uda", "p4d_n"])
def test_half_precision_finds_the_gradient_that_full_precision_has(name, context, goldens):
    """The first step with the same tokens at 128 pixels. Without loss scaling, 1 to 18 % of the gradient are lost."""
    steps = {"timesteps": [300], "iterations": 1} if "uda" in name else {"steps": 1, "draw_every": 1, "last_images": 1}
    words, gradients = torch.tensor([500, 600, 700]), []
    for dtype in ("float32", "float16"):
        model = overpaint.load_model(str(goldens / "tiny_sd"), dtype=dtype)

        def paint(texts, seeds, embeds=None, guidance=None, worded=True, model=model):
            return model.sample(texts, seeds, embeds=embeds, steps=1, size=128, scheduler="ddim")

        one = replace(
            context,
            shots=context.shots[:1],
            victim=model,
            unedited=lambda model=model: nullcontext(model),
            paint=paint,
        )
        attack = component("attack", name).build({"tokens": 3} | steps, seed=1)
        with watched({"init_ids.0": words[None], "ids.0": words}) as seen:
            attack.run(one)
        gradients.append(by_name(seen)["gradient"][0].float())
    assert distance(gradients[1], gradients[0]) < 0.005
