"""Concept inversion against recorded runs of the official code, with the same random draws, and against its identities."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from PIL import Image

import overpaint
from official import distance, recorded, victim, watched
from overpaint.attacks.attack import AttackContext, Ledger
from overpaint.blocks.draws import Draws
from overpaint.grid.concepts import Catalogue, Concept
from overpaint.grid.prompts import Prompt, shots
from overpaint.grid.registry import component
from overpaint.methods.safree import TokenGuidance


def invert(context, records=None, **values):
    values = {"pictures": 2, "steps": 2, "batch_size": 2, "accumulation": 1, "visits": 3} | values
    with watched(records) as seen:
        return component("attack", "cce").build(values, seed=0).run(context), seen


SLD_MAX = {"warmup_steps": 0, "safety_scale": 5000.0, "threshold": 1.0, "momentum_scale": 0.5, "momentum_beta": 0.7}


@pytest.mark.parametrize(("tag", "bound"), [("cce_plain", 2e-5), ("cce_np", 2e-5), ("cce_sld", 1e-3)])
def test_official_code(tag, bound, tiny_sd, tiny_sd_float64, golden, goldens):
    meta, results, extra = golden(f"cce/{tag}")
    if (
        meta["branch"] == "sld"
    ):  # a few values near the guard's switches make most of its gradient: no place for rounding
        tiny_sd = tiny_sd_float64
    guarded = meta["branch"] in ("np", "sld")
    records = recorded(extra, "x0", "noise", "t", "perm")
    records |= {key: value.to(tiny_sd.dtype) for key, value in records.items() if value.is_floating_point()}
    stride = 2 if guarded else 1  # the guarded branch also encodes its fixed texts, every second call
    records |= {f"ids.{n}": extra[f"enc_ids.{stride * n}"] for n in range(meta["steps"])}
    if meta["branch"] == "np":
        erasure = overpaint.erase(tiny_sd, "negative_prompt", erase=["Van Gogh"])
    elif guarded:
        erasure = overpaint.erase(tiny_sd, "sld", erase=["Van Gogh"], **SLD_MAX)
    else:
        erasure = victim(goldens / "uce" / "f32" / f"{meta['victim'].removeprefix('uce_')}.safetensors")
    context = AttackContext(
        Concept("Van Gogh", kind="style"),
        shots([Prompt("a painting by Van Gogh", "target")], 1),
        Catalogue(),
        tiny_sd,
        lambda n: [Image.new("RGB", (32, 32))] * n,
    )
    with erasure.attached(tiny_sd):
        assault, seen = invert(
            context,
            records,
            placeholder=meta["placeholder"],
            initial_word=meta["init"],
            steps=meta["steps"],
            batch_size=meta["batch"],
            learning_rate=meta["lr_used"],
            weight_decay=meta["weight_decay"],
            visits=5,
        )
    for n, step in enumerate(seen):
        assert distance(step["row"], extra[f"row_used.{stride * n}"]) < bound
        assert abs(float(step["loss"] / results["loss"][n]) - 1) < bound
        assert distance(step["gradient"], results[f"row_grad.{n}"]) < bound
    assert distance(assault.tokens[meta["placeholder"]], results["learned"]) < bound
    assert assault.shots[0].prompt.text == f"a painting by {meta['placeholder']}"


def test_no_steps_return_the_start(context, tiny_sd):
    assault, _ = invert(context, steps=0, initial_word="dog")
    table = tiny_sd.text_encoder.get_input_embeddings().weight
    assert torch.equal(assault.tokens["<concept>"], table[tiny_sd.token_ids("dog")[1]])
    assert assault.ledger.forwards == 0
    random, _ = invert(context, steps=0)
    assert float(random.tokens["<concept>"].std() / table.std()) == pytest.approx(1, abs=0.4)


def test_the_token_table_is_untouched_and_the_placeholder_is_one_token(context, tiny_sd):
    before = tiny_sd.text_encoder.get_input_embeddings().weight.detach().clone()
    assault, seen = invert(context, learning_rate=0.1)
    assert torch.equal(tiny_sd.text_encoder.get_input_embeddings().weight, before)
    assert not torch.equal(seen[0]["row"], assault.tokens["<concept>"])
    with tiny_sd.learned_tokens(assault.tokens):
        ids = tiny_sd.token_ids("a photo of a <concept>")
        assert len(ids) == len(tiny_sd.token_ids("a photo of a")) + 1 and ids[-2] == len(before)


def test_the_loss_falls_on_what_it_learns_from(context):
    fixed = {f"{name}.{n}": value for n in range(30) for name, value in {
        "noise": torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), "t": torch.tensor([300, 600]),
    }.items()}  # fmt: skip
    _, seen = invert(context, fixed, steps=30, learning_rate=0.05, mirror=False)
    assert float(seen[-1]["loss"]) < float(seen[0]["loss"])


def test_the_branch_follows_the_guard(context, tiny_sd):
    """Network evaluations per image: four for the guarded loss, three per visit plus two for SLD, which also evaluates the
    concept, and one for the plain loss. Evaluations with a gradient also count as backward passes."""
    with overpaint.erase(tiny_sd, "sld", erase=["cat"]).attached(tiny_sd):
        ledger = invert(context)[0].ledger
        assert (ledger.forwards, ledger.backwards) == (2 * 2 * (3 * 3 + 2), 2 * 2 * 3 * 3)
    for hyperparameters, forwards in (({}, 16), ({"branch": "plain"}, 4)):
        with overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"]).attached(tiny_sd):
            assert invert(context, **hyperparameters)[0].ledger.forwards == forwards
    for erasure in (nullcontext(), overpaint.erase(tiny_sd, "uce", erase=["cat"]).attached(tiny_sd)):
        with erasure:
            assert invert(context)[0].ledger.forwards == 4


def test_accumulated_batches_are_one_large_one(context):
    """Two batches of two give the same loss and gradient as one batch of four with the same draws."""
    generator = torch.Generator().manual_seed(0)
    noise, rows = (torch.randn(4, 4, 16, 16, generator=generator) for _ in range(2))
    t, captions = torch.tensor([100, 300, 600, 900]), torch.tensor([0, 1, 1, 0])
    draws = {"noise": noise, "t": t, "x0": rows, "captions": captions}
    halves = {f"{name}.{n}": value[2 * n : 2 * n + 2] for name, value in draws.items() for n in range(2)}
    _, (split,) = invert(context, halves, steps=1, accumulation=2)
    _, (whole,) = invert(context, {f"{name}.0": value for name, value in draws.items()}, steps=1, batch_size=4)
    assert torch.allclose(split["loss"], whole["loss"], rtol=1e-5)
    assert distance(split["gradient"], whole["gradient"]) < 1e-4


def test_officially_the_warm_up_counts_batches(context, tiny_sd):
    """With warm-up 1, the first batch is unguarded and the second is guarded. ``intended`` counts the sampler's steps."""
    losses, context = {}, replace(context, protocol=context.protocol | {"steps": 50})
    for key, values in {
        "off": {"safety_scale": 0.0},
        "official": {},
        "longer": {"warmup_steps": 2},
        "intended": {},
        "on": {"warmup_steps": 0},
    }.items():
        with overpaint.erase(tiny_sd, "sld", erase=["cat"], **SLD_MAX | {"warmup_steps": 1} | values).attached(tiny_sd):
            compat = "intended" if key == "intended" else "official"
            _, seen = invert(context, steps=2, learning_rate=0.0, compat=compat)
            losses[key] = [float(step["loss"]) for step in seen]
    assert losses["official"] == [losses["longer"][0], losses["on"][1]]
    assert losses["longer"] == pytest.approx(losses["off"], rel=1e-5)  # which predicts in smaller batches
    assert losses["intended"] == losses["on"] and losses["on"][0] != pytest.approx(losses["off"][0], rel=0.1)


@pytest.mark.parametrize("compat", ["official", "intended"])
def test_guards_get_the_step_of_the_sampler(compat, context, tiny_sd, monkeypatch):
    """SAFREE's edited prompts, for example, are used in the first ten of 50 steps: at t > 800."""
    told = []
    monkeypatch.setattr(TokenGuidance, "at", lambda self, step: told.append(step) or self.positive)
    context = replace(context, protocol=context.protocol | {"steps": 50})
    with overpaint.erase(tiny_sd, "safree", erase=["cat"]).attached(tiny_sd):
        records = {"t.0": torch.tensor([801, 5]), "t.1": torch.tensor([799, 5]), "t.2": torch.tensor([999, 5])}
        invert(context, records, steps=3, compat=compat)
    assert told == [9.5, 10.5, 0.5]


def test_it_can_start_from_the_concepts_own_name(context, tiny_sd):
    table = tiny_sd.text_encoder.get_input_embeddings().weight
    named = replace(context, concept=Concept("a strange dog"))
    assault, _ = invert(named, steps=0, initial_word="name")
    assert torch.equal(assault.tokens["<concept>"], table[tiny_sd.token_ids("dog")[1]])


def test_a_guard_of_no_strength_is_the_unguarded_sampler(context, tiny_sd):
    """With an empty negative prompt and a token equal to the concept's, there is nothing to cancel: the loss is zero."""
    context = replace(context, concept=Concept("cat", article=""), catalogue=Catalogue())
    records = {"ids.0": tiny_sd.padded_ids(["cat"] * 2)}
    with overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"], text="").attached(tiny_sd):
        _, (seen,) = invert(context, records | {}, steps=1, branch="plain", initial_word="cat")
        with tiny_sd.learned_tokens({"<concept>": seen["row"]}):
            records = {"ids.0": tiny_sd.padded_ids(["<concept>"] * 2)}
        _, (seen,) = invert(context, records, steps=1, initial_word="cat")
    assert float(seen["loss"]) < 1e-9


def test_momentum_starts_anew_in_every_window_and_reaches_the_last_visit(context, tiny_sd):
    """Equal draws give equal losses in every window. The first visit affects the loss only through the momentum."""
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    # offsets 80, 40, 0 of the window, and one whose first visit alone is another
    orders = [torch.tensor([80, 40, 0]), torch.tensor([80, 40, 0]), torch.tensor([60, 40, 0])]
    records = {f"noise.{n}": noise for n in range(3)} | {f"t.{n}": torch.tensor([300, 600]) for n in range(3)}
    records |= {f"captions.{n}": torch.tensor([0, 1]) for n in range(3)}
    records |= {f"x0.{n}": torch.zeros_like(noise) for n in range(3)}
    records |= {f"perm.{2 * n + row}": orders[n] for n in range(3) for row in range(2)}
    with overpaint.erase(tiny_sd, "sld", erase=["cat"], **SLD_MAX).attached(tiny_sd):
        _, (first, again, other) = invert(context, records, steps=3, learning_rate=0.0)
    assert torch.equal(first["loss"], again["loss"]) and torch.equal(first["gradient"], again["gradient"])
    assert not torch.equal(first["loss"], other["loss"])


def test_visits_are_different_timesteps_of_the_window(context):
    attack = component("attack", "cce").build({"window": 20, "visits": 20})
    ends = torch.tensor([20, 999])
    times = attack.visited(ends, Draws(0))
    assert torch.equal(times[:, 0], torch.arange(19, -1, -1)) and torch.equal(times[:, 1], torch.arange(998, 978, -1))
    one = component("attack", "cce").build({"window": 20, "visits": 1}).visited(ends, Draws(0))
    assert one.shape == (1, 2) and bool(((one < ends) & (one >= ends - 20)).all())


@pytest.mark.parametrize("branch", ["guided", "trajectory"])
def test_prompts_are_learned_behind_the_new_word_and_are_what_the_guard_shall_not_see(branch, context, tiny_sd):
    """Without a guard and without the placeholder in the captions, there is nothing to cancel: the loss is zero."""
    asked = [shot.prompt.text for shot in context.shots]
    attack = component("attack", "cce").build({"captions": "prompts"})
    assert attack.prompts(context) == ([f"<concept> {text}" for text in asked], asked)
    assert [shot.prompt.text for shot in attack.shots(context)] == attack.prompts(context)[0], "as in training"
    records = {"captions.0": torch.tensor([0, 3]), "ids.0": tiny_sd.padded_ids([asked[0], asked[3]])}
    _, (seen,) = invert(context, records, steps=1, branch=branch, captions="prompts", learning_rate=0.0)
    assert float(seen["loss"]) < 1e-9
    _, (seen,) = invert(context, {}, steps=1, branch=branch, captions="prompts", learning_rate=0.0)
    assert float(seen["loss"]) > 1e-6


def test_what_is_spent_is_what_the_network_evaluates(context, tiny_sd):
    """Composable negative prompts need three predictions per image; the ledger counts the actual evaluations."""
    for method, values in (("sld", {"warmup_steps": 0}), ("negative_prompt", {"form": "composable"})):
        real = Ledger()
        with overpaint.erase(tiny_sd, method, erase=["cat"], **values).attached(tiny_sd), real.counting(tiny_sd):
            ours = invert(context)[0].ledger
        assert ours == real and real.forwards > real.backwards > 0 and real.text_forwards > 0


def test_a_safety_guidance_of_no_strength_changes_nothing(context, tiny_sd):
    """Loss, gradient and learned token of the trajectory branch equal those of the unguarded sampler in the same window."""
    settings = {"branch": "trajectory", "window": 20, "learning_rate": 0.01}
    _, plain = invert(context, **settings)
    found = {}
    for scale in (0.0, 5000.0):
        values = SLD_MAX | {"safety_scale": scale}
        with overpaint.erase(tiny_sd, "sld", erase=["cat"], **values).attached(tiny_sd):
            _, found[scale] = invert(context, **settings)
    for there, here in zip(plain, found[0.0], strict=True):
        assert float(there["loss"]) == pytest.approx(float(here["loss"]), rel=1e-4) and float(here["loss"]) > 0
        assert distance(here["gradient"], there["gradient"]) < 1e-3 and distance(here["row"], there["row"]) < 1e-3
    assert float(found[5000.0][0]["loss"]) != pytest.approx(float(plain[0]["loss"]), rel=1e-2)


def test_half_precision_has_the_gradients_of_single_precision(context, goldens):
    """This also holds for larger latents, where the mean makes backpropagated gradients too small for float16."""
    found, pictures = {}, [picture.resize((64, 64)) for picture in context.examples(2)]
    context = replace(context, examples=lambda n: pictures)
    for dtype in ("float32", "float16"):
        model = overpaint.load_model(str(goldens / "tiny_sd"), dtype=dtype)
        _, seen = invert(replace(context, victim=model), steps=1, batch_size=4, mirror=False, initial_word="dog")
        found[dtype] = seen[0]["gradient"]
    assert distance(found["float16"], found["float32"]) < 5e-3


def test_prompts_that_are_too_long_lose_their_end(context, tiny_sd):
    long = "a cat " + " ".join(["ship"] * 100)
    assert len(tiny_sd.tokenizer(long).input_ids) == 104
    context = replace(context, shots=shots([Prompt(long, "target", "cat", ("cat",))], 1))
    for branch in ("plain", "guided"):
        with overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"]).attached(tiny_sd):
            assault, seen = invert(context, captions="prompts", branch=branch)
        assert len(seen) == 2 and all(bool(step["gradient"].any()) for step in seen)
        assert assault.shots[0].prompt.text.startswith("<concept> a cat ship")
    guarded = overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"]).attached(tiny_sd)
    name = " ".join(["a"] * 90)  # a name has at most 200 characters
    with guarded, pytest.raises(overpaint.UserError, match="prompt has 92 tokens"):  # a name must not lose its end
        invert(replace(context, concept=Concept(name)))


def test_a_first_word_of_several_tokens_is_refused(context):
    with pytest.raises(
        overpaint.UserError, match="initial_word takes a word that is one token of the model, 'a dog' is 2"
    ):
        invert(context, initial_word="a dog")


@pytest.mark.parametrize("values", [{"window": 2, "visits": 3}, {"window": 1000, "branch": "trajectory"}])
def test_a_window_that_does_not_fit_is_an_error(values, context):
    with pytest.raises(overpaint.UserError, match="window takes"):
        invert(context, **values)


def test_no_pictures_is_an_error(context):
    with pytest.raises(overpaint.UserError, match="needs images of 'cat'"):
        invert(replace(context, examples=lambda n: []))


def test_a_known_word_is_no_placeholder(context):
    with pytest.raises(overpaint.UserError, match="placeholder words must be new"):
        invert(context, placeholder="dog</w>")
