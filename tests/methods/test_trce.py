"""TRCE: stage 1 against tensors written by its official code, and both stages against their identities."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

import overpaint
from official import changed, distance, flat, parameters, watched
from overpaint.blocks.draws import Draws, traced
from overpaint.blocks.prior import caption_statistics
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.registry import component
from overpaint.methods import trce as module
from overpaint.methods.trce import TRCE, Rollouts
from overpaint.models.guidance import Guidance

CAPTIONS = ["a dog on the ground", "a church by the sky", "a black and white photo of a ship"]
SMALL = {"prior_captions": CAPTIONS, "preserve_scale": 10.0, "template_count": 3}
STAGE1 = SMALL | {"epochs": 0}
STAGE2 = SMALL | {
    "trajectories": 2,
    "epochs": 2,
    "rollout_steps": 4,
    "regular_trajectories": 3,
    "regular_batch": 2,
    "learning_rate": 1e-3,
}
#: Official code inverts in the precision it runs in.
TOLERANCE = {"f32": 1e-2, "f64": 1e-9}


def trce(**values) -> TRCE:
    return component("method", "trce").build(values)


def stage_1(meta):
    """The arguments of a recorded run of the official stage 1."""
    concepts, anchors = zip(*meta["pairs"], strict=True)
    return {
        "erase": list(concepts),
        "anchor": list(anchors),
        "templates": meta["templates"],
        "token_weights": meta["token_weight_scale"],
        "prior_captions": meta["prior"],
        "prior_size": round(30_000 / meta["prior_multiplier"]),
        "preserve_scale": meta["preserve_scale"],
    }


@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_official_code(precision, goldens, tiny_sd_in):
    model = tiny_sd_in(precision)
    meta = json.loads((goldens / "trce" / "f64" / "trce_stage1_own_eos.json").read_text())["meta"]
    official = load_file(goldens / "trce" / precision / "trce_stage1_own_eos.safetensors")
    ours = changed(model, "trce", **stage_1(meta), epochs=0)
    base = parameters(model, official)
    assert ours.keys() == official.keys()
    for name, tensor in official.items():
        assert distance(ours[name], tensor, base[name]) < TOLERANCE[precision], name


@pytest.mark.parametrize("compat", ["official", "intended"])
@pytest.mark.parametrize("weights_", [[0, 1, 0, 0], [1, 1, 1, 0]])
def test_mapping_a_concept_to_itself_changes_no_bit(tiny_sd, compat, weights_):
    ours = changed(
        tiny_sd, "trce", erase=["snoopy"], default_anchor="snoopy", compat=compat, token_weights=weights_, **STAGE1
    )
    assert all(torch.equal(ours[name], tensor) for name, tensor in parameters(tiny_sd, ours).items())


def test_no_rows_leave_the_weights(tiny_sd):
    ours = changed(tiny_sd, "trce", erase=["dog"], anchor="cat", token_weights=[0, 0, 0, 0], **STAGE1)
    assert all(torch.equal(ours[name], tensor) for name, tensor in parameters(tiny_sd, ours).items())


def test_a_heavy_prior_keeps_the_weights(tiny_sd_float64):
    ours = changed(tiny_sd_float64, "trce", erase=["dog"], anchor="cat", **STAGE1 | {"preserve_scale": 1e6})
    for name, tensor in parameters(tiny_sd_float64, ours).items():
        assert (ours[name] - tensor).norm() < 1e-6 * tensor.norm()


def test_solves_its_least_squares_problem(tiny_sd_float64):
    """With all four kinds of rows, the gradient of the normal equations is zero at W'."""
    eraser = trce(token_weights=[0.5, 1, 0.1, 2], lamb=0.3, **STAGE1)
    request = Request.of(["dog"], "cat")
    sentences = eraser.sentences(request, 3, None)
    changes, _ = eraser.mapped(tiny_sd_float64, sentences)
    p = tiny_sd_float64.projections("key")[0]
    W0 = p.weight
    W = changes[p.name].apply(W0).requires_grad_()
    loss = 0.3 * ((W - W0) ** 2).sum()
    for old, new, concept in sentences:
        K, V = tiny_sd_float64.encode([old])[0], tiny_sd_float64.encode([new])[0] @ W0.T
        for i, j, weight in eraser.positions(tiny_sd_float64, old, new, concept):
            loss = loss + weight * ((K[i] @ W.T - V[j]) ** 2).sum() / len(sentences)
    E = tiny_sd_float64.encode(CAPTIONS).flatten(0, 1)
    loss = loss + 10.0**2 / 30_000 * ((E @ (W - W0).T) ** 2).sum()
    loss.backward()
    assert W.grad.abs().max() < 1e-9


def test_positions_by_words_and_by_tokens(tiny_sd):
    """snoopy has six word pieces: counted in words, the end lies inside it, and only its first row is used."""
    official, intended = (trce(token_weights=[1, 1, 1, 1], compat=c) for c in ("official", "intended"))
    one_piece = [(0, 0, 1), (4, 2, 1), (76, 76, 72), (2, 76, 1)]
    assert list(official.positions(tiny_sd, "a dog man", "cat", "dog")) == one_piece
    assert list(intended.positions(tiny_sd, "a dog man", "cat", "dog")) == one_piece
    assert list(official.positions(tiny_sd, "snoopy", "cat", "snoopy")) == [
        (0, 0, 1), (2, 2, 1), (76, 76, 74), (1, 76, 1),
    ]  # fmt: skip
    assert list(intended.positions(tiny_sd, "snoopy", "cat", "snoopy")) == [
        (0, 0, 1), (7, 2, 1), (76, 76, 69), *((i, 76, 1) for i in range(1, 7)),
    ]  # fmt: skip
    assert list(trce().positions(tiny_sd, "dog", "cat", "dog")) == [(2, 2, 1)]


def test_all_of_a_concepts_words_are_looked_for(tiny_sd):
    """The first word of a concept may also occur elsewhere. The position at which all its words occur is used."""
    official = trce(token_weights=[0, 0, 0, 1])

    def found(sentence, concept):
        return [i for i, _, _ in official.positions(tiny_sd, sentence, "cat", concept)]

    assert found("a photo of a dog", "a dog") == [4]
    assert found("a dog and a dog", "a dog") == [1]
    assert found("a scene as the joker would", "the joker") == [4]
    assert found("a photo of a cat", "a dog") == []


def test_both_readings_agree_on_words_of_one_piece(tiny_sd_float64):
    """Then only the preserve scale differs: squared or not."""
    arguments = {"erase": ["dog"], "anchor": "cat", "templates": ["{}", "a {}"]}
    one = changed(tiny_sd_float64, "trce", **arguments, **STAGE1)
    two = changed(tiny_sd_float64, "trce", compat="intended", **arguments, **STAGE1 | {"preserve_scale": 100.0})
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-10) for name in one)


def test_the_change_has_the_rank_of_the_sentences(tiny_sd):
    erasure = overpaint.erase(tiny_sd, "trce", erase=["dog", "ship"], anchor="cat", **STAGE1)
    assert {c.up.shape[1] for c in erasure.changes.values()} == {2 * 3}
    assert set(erasure.changes) == {p.name for p in tiny_sd.projections("key", "value")}


def test_synonyms_are_erased_too(tiny_sd):
    request = Request((Concept("dog", anchor="cat", synonyms=("snoopy", "bird")),))
    assert [c for *_, c in trce(synonyms=True).sentences(request, 1, ["{}"])] == ["dog", "snoopy", "bird"]
    assert [c for *_, c in trce().sentences(request, 1, ["{}"])] == ["dog"]


def test_the_prior_is_divided_by_its_size_or_by_its_captions(tiny_sd):
    one = changed(tiny_sd, "trce", erase=["dog"], anchor="cat", prior_size=3, **STAGE1)
    two = changed(tiny_sd, "trce", erase=["dog"], anchor="cat", prior_size=None, **STAGE1)
    assert caption_statistics(tiny_sd, CAPTIONS)[1] == 3
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def without_offset(goldens):
    """The tiny model on the grid of the official roll-outs, which ends at t = 0."""
    model = overpaint.load_model(str(goldens / "tiny_sd"), dtype="float64")
    model.pipeline.scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config, steps_offset=0)
    return model


def test_official_training(without_offset, golden, goldens):
    """Starts from the result of the official stage 1, through `overpaint.erase`, with the recorded draws."""
    model = without_offset
    meta, official, extra = golden("trce/stage2")
    spacing = 1000 // meta["num_inference_steps"]
    drawn = {"x_T.0": extra["x_T"], "regular_x_T.0": extra["regular_x_T"]}
    drawn |= {f"s.{n}": s for n, s in enumerate(extra["s"])}
    for n, (s, t) in enumerate(zip(extra["regular_s"], extra["regular_t"], strict=True)):
        drawn |= {f"regular_s.{n}": s, f"within.{n}": t - (meta["num_inference_steps"] - 1 - s) * spacing}
    with watched(drawn) as seen:
        erasure = overpaint.erase(
            model,
            "trce",
            **stage_1(json.loads((goldens / f"{meta['stage1']}.json").read_text())["meta"]),
            epochs=meta["epochs"],
            trajectory_template=meta["prompt_template"],
            trajectories=meta["images_per_prompt"],
            rollout_steps=meta["num_inference_steps"],
            rollout_guidance=meta["guidance_scale"],
            early=meta["max_early_timestep"] / meta["num_inference_steps"],
            contrast=meta["guidance"],
            margin=meta["margin"],
            beta=meta["beta"],
            regular_weight=meta["preserve_scale"],
            regular_trajectories=meta["uncond_num"],
            regular_batch=meta["regularization_batch_size"],
            learning_rate=meta["learning_rate"],
            weight_decay=meta["weight_decay"],
        )
    iterations = [targets | step for targets, step in zip(seen[::2], seen[1::2], strict=True)]
    start = {name: model.named_parameters()[name].data for name in official}
    sums = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    assert len(iterations) == len(extra["hinge"]) == 4
    for n, step in enumerate(iterations):
        for name in ("x_t", "P", "R"):
            assert distance(step[name], extra[f"{name}.{n}"]) < 1e-6, (name, n)
        assert float(step["hinge"]) == pytest.approx(float(extra["hinge"][n]), rel=1e-6)
        assert float(step["drift"]) == pytest.approx(float(extra["drift"][n]), rel=1e-6, abs=1e-20)
        sums = {name: total + step["gradients"][name] for name, total in sums.items()}
        if f"grad.{n}.{next(iter(official))}" in extra:
            for name, total in sums.items():
                assert distance(total.flatten()[:: meta["every"]], extra[f"grad.{n}.{name}"]) < 1e-5, (name, n)

    kept = load_file(goldens / f"{meta['stage1']}.safetensors")
    assert erasure.changes.keys() == official.keys() | kept.keys()
    moved = {name: (erasure.changes[name].tensor - start[name]).flatten()[:: meta["every"]] for name in official}
    assert max(distance(moved[name], official[name]) for name in official) < 1e-4
    assert distance(*(flat(change, official) for change in (moved, official))) < 1e-5


def test_keys_and_values_are_stage_1s_and_the_rest_is_self_attention_and_queries(tiny_sd):
    one = overpaint.erase(tiny_sd, "trce", erase=["dog"], anchor="cat", **STAGE1)
    two = overpaint.erase(tiny_sd, "trce", erase=["dog"], anchor="cat", **STAGE2)
    for name, change in one.changes.items():
        assert torch.equal(two.changes[name].up, change.up) and torch.equal(two.changes[name].down, change.down)
    trained = set(two.changes) - set(one.changes)
    expected = {n for n in tiny_sd.denoiser_names if "attn1" in n or "attn2.to_q" in n}
    assert trained == expected
    assert all(not torch.equal(two.changes[n].tensor, tiny_sd.named_parameters()[n].data) for n in trained)


def test_the_hinge_is_zero_only_beyond_the_margin():
    eraser = trce(margin=0.25, beta=2.0)
    P, R = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    assert eraser.hinge(R, P, P) == 0.5  # equal targets leave the margin
    assert eraser.hinge(R, P, R) == 2.5
    assert eraser.hinge(P, P, R) == 0
    assert eraser.hinge(torch.cat([P[:1], R[:1]]), P, R) == 1.25


def test_nothing_is_learned_from_equal_targets(tiny_sd):
    """The hinge, alone and without margin, has no gradient where P = R."""
    ours = changed(
        tiny_sd, "trce", erase=["dog"], default_anchor="dog", **STAGE2, margin=0.0, regular_weight=0.0, weight_decay=0.0
    )
    for name, tensor in parameters(tiny_sd, ours).items():
        assert torch.equal(ours[name], tensor)


def test_the_first_loss_is_that_of_stage_1(tiny_sd_float64):
    """The loss is the hinge, recomputed from the base and stage 1. The drift is zero before the first step."""
    model = tiny_sd_float64
    seen = []
    arguments = {"erase": ["dog"], "anchor": "cat", **STAGE2, "compat": "intended"}
    with traced(lambda **v: seen.append(v) if "hinge" in v else None):
        overpaint.erase(model, "trce", **arguments)
    eraser = trce(compat="intended", **STAGE2)
    draws = Draws(0)
    old, new, nothing = (model.encode([text]) for text in ("a photo of dog", "a photo of cat", ""))
    _, x, t = eraser.concept_latents(model, old.expand(2, -1, -1), nothing, draws)
    e = {text: model.predict(x[:1], t[:1], embeds) for text, embeds in (("o", old), ("n", new), ("", nothing))}
    P, R = (e[k] + 15 * (e[k] - e[""]) for k in ("n", "o"))
    stage1, _ = eraser.mapped(model, eraser.sentences(Request.of(["dog"], "cat"), 3, None))
    with overpaint.Erasure("trce", changes=stage1).attached(model):
        u = [model.predict(x[:1], t[:1], embeds) for embeds in (old, nothing)]
    terms = [max(0.0, float(((v - P) ** 2).mean() - ((v - R) ** 2).mean()) + 0.01) for v in u]
    assert float(seen[0]["hinge"]) == pytest.approx(sum(terms) / 2, rel=1e-4, abs=1e-7)
    assert float(seen[0]["drift"]) < 1e-12
    assert float(seen[-1]["drift"]) > 0


def test_rollouts_have_the_level_of_their_timestep(tiny_sd):
    noises, embeds = tiny_sd.noise([0, 1, 2]), tiny_sd.encode(["dog", "cat", "ship"])
    nothing = tiny_sd.encode([""])
    rollouts = Rollouts(tiny_sd, noises, embeds, nothing, 3.0, 4)
    visits = [(2, 1), (0, 0), (2, 3)]
    x, t = rollouts.at(visits), rollouts.times(visits)
    schedule = tiny_sd.scheduler("ddim")
    schedule.set_timesteps(4)
    for (j, s), mine, time in zip(visits, x, t, strict=True):
        guidance = Guidance(tiny_sd, embeds[j : j + 1], nothing, 3.0)
        expected = tiny_sd.denoise(noises[j : j + 1], guidance, "ddim", 4, stop=s)
        torch.testing.assert_close(mine, expected[0], rtol=1e-4, atol=1e-4)
        assert time == schedule.timesteps[s]
    late = rollouts.at(visits, late=1)
    torch.testing.assert_close(late[1], rollouts.at([(0, 1)])[0])


def test_official_gradients_add_up(tiny_sd, monkeypatch):
    sums, own, plain = [], [], module._accumulate

    def spied(student):
        add = plain(student)

        def both():
            own.append({n: p.grad.clone() for n, p in student.masters.items()})
            add()
            sums.append({n: p.grad.clone() for n, p in student.masters.items()})

        return both

    monkeypatch.setattr(module, "_accumulate", spied)
    overpaint.erase(tiny_sd, "trce", erase=["dog"], anchor="cat", **STAGE2)
    assert len(own) == 4
    for name in own[0]:
        torch.testing.assert_close(sums[-1][name], sum(g[name] for g in own))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prior_captions": None}, "needs trce.prior_captions"),
        ({"token_weights": [0, 1, 0]}, "token_weights takes four numbers"),
        ({"token_weights": [0, -1, 0, 0]}, "token_weights takes four numbers"),
        ({"templates": ["no place"]}, "templates takes sentences"),
        ({"prior_captions": "nowhere.csv"}, "unknown caption collection 'nowhere.csv'"),
        ({"trajectories": 0}, "trajectories takes a number from 1 up"),
    ],
)
def test_bad_values_are_refused(tiny_sd, values, message):
    with pytest.raises(overpaint.UserError, match=message):
        overpaint.erase(tiny_sd, "trce", erase=["dog"], **SMALL | values)


def test_few_captions_and_no_ridge_are_refused(tiny_sd):
    with pytest.raises(overpaint.UserError, match="singular"):
        overpaint.erase(tiny_sd, "trce", erase=["dog"], **STAGE1 | {"preserve_scale": 0.0})
