"""The embedding attacks against a recorded run of AdvUnlearn's inner attack, and against their identities."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import mse_loss

import overpaint
from official import distance, victim, watched
from overpaint.attacks import embedding_attack
from overpaint.attacks.ring_a_bell import concept_vector, contrasts
from overpaint.blocks import soft_prompts
from overpaint.blocks.draws import Draws
from overpaint.blocks.soft_prompts import SoftPrompt
from overpaint.grid.registry import component
from overpaint.models.erasure import Erasure, Replacement

ATTACKS = ["rece_embedding", "rab_embedding", "soft_prefix"]
TINY = {"soft_prefix": {"steps": 2, "rollout_steps": 2}}


def attack(name, seed=0, **values):
    return component("attack", name).build(TINY.get(name, {}) | values, seed=seed)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_plain_picture_comes_first_then_the_embedding_from_the_same_noise(name, context, judge):
    one = replace(context, shots=context.shots[:1])
    drawn = []

    def paint(texts, seeds, embeds=None, guidance=None, worded=True):
        drawn.append((texts, seeds, embeds))
        return context.paint(texts, seeds, embeds=embeds, guidance=guidance, worded=worded)

    assault = attack(name).run(replace(one, paint=paint))
    (plain, found), (shot,) = assault.painted, one.shots
    assert [p.shot.draw for p in assault.painted] == [0, 1] and assault.ledger.images == 2 == attack(name).images
    assert drawn[0] == ([shot.prompt.text], [shot.noise_seed], None) and drawn[1][1] == [shot.noise_seed]
    assert drawn[1][2].shape == (1, 77, 48) and found.shot.prompt.variant == "embedding"
    assert plain.shot.prompt.text == found.shot.prompt.text == shot.prompt.text


@pytest.mark.parametrize("name", ATTACKS)
def test_where_the_plain_picture_shows_it_there_is_nothing_to_attack(name, context, judge):
    judge.fires = range(10)
    assert len(attack(name).run(context).painted) == len(context.shots)


@pytest.mark.parametrize(
    ("name", "passes"), [("rece_embedding", True), ("rab_embedding", True), ("soft_prefix", False)]
)
def test_a_filter_of_prompts_reads_only_what_has_a_text(name, passes, context, erased):
    """The embedding of no text passes it; a soft prefix stands before the prompt's own words, which the filter reads."""
    with erased(overpaint.erase(context.victim, "prompt_filter", erase=[context.concept.name])) as attacked:
        plain, found = attack(name).run(replace(attacked, shots=attacked.shots[:1])).painted
    refused = plain.image.tobytes()  # the prompt names the concept
    assert (found.image.tobytes() != refused) is passes


@pytest.mark.parametrize("name", ATTACKS)
def test_summaries_say_that_it_is_an_embedding(name):
    assert component("attack", name).config["summary"].startswith("embedding attack")


@contextmanager
def uce_victim(context, erased):
    erasure = overpaint.erase(context.victim, "uce", erase=["cat"], anchor="ship")
    with erased(erasure) as attacked:
        yield attacked


def matrices(context):
    """(W, W°) of every key and value."""
    now = [p.weight.double().clone() for p in context.victim.projections("key", "value")]
    with context.unedited() as model:
        return list(zip(now, [p.weight.double().clone() for p in model.projections("key", "value")], strict=True))


def objective(pairs, own, regulariser, r):
    def value(rows):
        total = sum(((rows @ W.T - own @ W0.T) ** 2).sum() for W, W0 in pairs)
        if regulariser == "zero":
            return total + r * (rows**2).sum()
        return total + r * ((rows - own) ** 2).sum() + r * sum((((rows - own) @ W.T) ** 2).sum() for W, _ in pairs)

    return value


@pytest.mark.parametrize("regulariser", ["zero", "surrogate"])
def test_rows_minimise_what_they_should(regulariser, context, erased):
    """The tolerance is that of single precision, in which the rows are returned."""
    r = 0.1
    with uce_victim(context, erased) as attacked:
        pairs, own = matrices(attacked), context.victim.encode(["a cat"])[0].double()
        ours = attack("rece_embedding", regulariser=regulariser, r=r).embedding(attacked, "a cat", Draws(0))
        rows = ours[0].double().requires_grad_()
        value = objective(pairs, own, regulariser, r)
        (gradient,) = torch.autograd.grad(value(rows), rows)
        before = own.clone().requires_grad_()
        (start,) = torch.autograd.grad(value(before), before)
        assert gradient.norm() < 1e-3 * start.norm()
        assert value(rows) < value(own)
        assert not torch.equal(pairs[0][0], pairs[0][1])


def test_an_unedited_model_gives_back_the_prompt(context):
    own = context.victim.encode(["a cat"])
    found = attack("rece_embedding", regulariser="surrogate", r=0.5).embedding(context, "a cat", Draws(0))
    assert distance(found, own) < 1e-5


def test_matrices_that_see_nothing_still_give_finite_rows(context):
    blind = {p.name: Replacement(torch.zeros_like(p.weight)) for p in context.victim.projections("key", "value")}
    with Erasure("uce", changes=blind).attached(context.victim):
        for regulariser in ("zero", "surrogate"):
            found = attack("rece_embedding", regulariser=regulariser).embedding(context, "a cat", Draws(0))
            assert torch.isfinite(found).all()
        with pytest.raises(overpaint.UserError, match="use r > 0"):
            attack("rece_embedding", r=0).embedding(context, "a cat", Draws(0))


def test_the_original_keys_and_values_come_back(context, erased):
    with uce_victim(context, erased) as attacked:
        found = attack("rece_embedding", r=1e-6).embedding(attacked, "a cat", Draws(0))[0].double()
        own = context.victim.encode(["a cat"])[0].double()
        missed, ours = (
            sum(float(((rows @ W.T - own @ W0.T) ** 2).sum()) for W, W0 in matrices(attacked)) for rows in (own, found)
        )
    assert ours < missed


def test_the_vector_is_added(context, cat):
    own = context.victim.encode(["a dog"])
    v = concept_vector(context.victim, contrasts(cat, context.catalogue))
    assert torch.equal(attack("rab_embedding", eta=0).embedding(context, "a dog", Draws(0)), own)
    torch.testing.assert_close(attack("rab_embedding", eta=2).embedding(context, "a dog", Draws(0)), own + 2 * v)


def test_official_soft_prefix(golden, goldens, context, erased, monkeypatch):
    """The recorded latents replace the sampler's; the requested steps are compared."""
    meta, results, extra = golden("advunlearn/advu_pgd_word")
    edited = victim(goldens / "uce" / "f32" / f"{meta['victim'].removeprefix('uce_')}.safetensors")
    ours = attack(
        "soft_prefix",
        place=meta["where"],
        tokens=meta["k"],
        steps=meta["steps"],
        learning_rate=meta["lr"],
        method=meta["method"],
        rollout_steps=meta["ddim_steps"],
    )
    visited = iter([(extra[f"z.{n}"], int(results["t_ddpm"][n])) for n in range(meta["steps"])])
    calls = []

    def handed_out(model, start, guidance, total, k, draws):
        calls.append([k, guidance.scale])
        return next(visited)

    monkeypatch.setattr(embedding_attack, "compvis_rollout", handed_out)
    records = {"start.0": extra["init_ids"].reshape(1, -1)}
    records |= {f"k.{n}": int(k) for n, k in enumerate(results["t_enc"])}
    with erased(edited) as attacked, watched(records) as seen:
        found = ours.embedding(attacked, meta["word"], Draws(0))
        expected = context.victim.encode_embeddings(results["embedding"], results["ids"])
    assert calls == meta["sampler_calls"]
    for n in range(meta["steps"]):
        assert float(seen[n]["attack_loss"]) == pytest.approx(float(results["loss"][n]), rel=1e-4)
        assert distance(seen[n]["attack_gradient"], results[f"grad_used.{n}"]) < 1e-4
        assert distance(seen[n]["free"], results[f"var_step.{n}"]) < 1e-5
    assert distance(found, expected) < 1e-5


def test_the_loss_is_taken_on_the_victim_and_its_target_on_the_unedited_model(context, erased):
    erasure = overpaint.erase(context.victim, "uce", erase=["cat"], anchor="ship")
    ours = attack("soft_prefix", compat="intended")
    with erased(erasure) as attacked:
        targets = ours.targets(attacked, "a cat", Draws(3))
        said = [context.victim.predict(x, t, context.victim.encode(["a cat"])) for x, t, _ in targets]
    with torch.no_grad():
        known = [context.victim.predict(x, t, context.victim.encode(["a cat"])) for x, t, _ in targets]
    for (_, _, wanted), unedited, edited in zip(targets, known, said, strict=True):
        assert distance(unedited, wanted) < 1e-6 < 1e-5 < distance(edited, wanted)
    assert len(targets) == ours.steps


@pytest.mark.parametrize("compat", ["official", "intended"])
def test_it_comes_closer_to_the_unedited_model(compat, context, erased, monkeypatch):
    """The same example is repeated."""
    erasure = overpaint.erase(context.victim, "uce", erase=["cat"], anchor="ship")
    ours = attack("soft_prefix", compat=compat, steps=20, learning_rate=0.02)
    one = type(ours).targets
    monkeypatch.setattr(type(ours), "targets", lambda self, *a: one(replace(self, steps=1), *a) * self.steps)
    with erased(erasure) as attacked, watched() as seen:
        ours.embedding(attacked, "a cat", Draws(0))
    losses = [float(values["attack_loss"]) for values in seen if "attack_loss" in values]
    assert len(losses) == 20 and min(losses[10:]) < losses[0]


def test_half_precision_has_the_gradients_of_single_precision(goldens):
    """One example with larger latents, where the mean makes backpropagated gradients small for float16."""
    generator = torch.Generator().manual_seed(0)
    noised, wanted = (torch.randn(1, 4, 48, 48, generator=generator) for _ in range(2))
    found = {}
    for dtype in ("float32", "float16"):
        model = overpaint.load_model(str(goldens / "tiny_sd"), dtype=dtype)
        prompt = SoftPrompt(model, "a cat", "prefix_k", 4)

        def loss(rows, model=model, prompt=prompt):
            said = model.predict(noised.to(model.dtype), 500, model.encode_embeddings(rows, prompt.ids))
            return mse_loss(said.float(), wanted)

        with watched() as seen:
            soft_prompts.attack(prompt, prompt.random_start(Draws(0)), loss, 1, 1e-3)
        found[dtype] = seen[0]["attack_gradient"]
    assert found["float16"].dtype == torch.float32
    assert distance(found["float16"], found["float32"]) < 5e-3


def test_a_long_prompt_leaves_room_for_the_rows(context, tiny_sd):
    long = "a cat " + " ".join(["ship"] * 100)
    for place, size in (("prefix_k", 4), ("add", 1)):
        for compat in ("official", "intended"):
            ours = attack("soft_prefix", place=place, tokens=size, compat=compat)
            found = ours.embedding(context, long, Draws(0))
            assert found.shape == (1, tiny_sd.tokens, 48) and bool(torch.isfinite(found).all())


@pytest.mark.parametrize(
    "values", [{"method": "fast_at"}, {"place": "replace_k"}, {"place": "add"}, {"place": "suffix_k"}]
)
@pytest.mark.parametrize("compat", ["official", "intended"])
def test_other_ways_of_a_soft_prefix_find_other_embeddings(values, compat, context):
    """Each paints the plain image, and an image of an embedding that differs from the prompt's and from the default's."""
    one, found = replace(context, shots=context.shots[:1]), []
    paint = context.paint

    def drawn(texts, seeds, embeds=None, guidance=None, worded=True):
        found.extend([] if embeds is None else [embeds])
        return paint(texts, seeds, embeds=embeds, guidance=guidance, worded=worded)

    for settings in ({}, values):
        made = (
            attack("soft_prefix", compat=compat, learning_rate=0.1, **settings).run(replace(one, paint=drawn)).painted
        )
        assert [p.shot.prompt.variant for p in made] == ["plain", "embedding"]
    plain = context.victim.encode([one.shots[0].prompt.text])
    assert all(torch.isfinite(embeds).all() and not torch.equal(embeds, plain) for embeds in found)
    assert not torch.equal(*found)


def test_bad_values_are_refused():
    with pytest.raises(overpaint.UserError, match="rollout_steps takes"):
        attack("soft_prefix", rollout_steps=1)
    with pytest.raises(overpaint.UserError, match="r takes"):
        attack("rece_embedding", r=-1)
