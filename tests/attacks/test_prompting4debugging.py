"""Prompting4Debugging against recorded runs of the official code, and against its identities."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

import overpaint
from official import by_name, distance, victim, watched
from overpaint.blocks.draws import Draws, replayed
from overpaint.blocks.token_variables import Frame
from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.grid.concepts import Concept
from overpaint.grid.prompts import Prompt, Shot
from overpaint.grid.registry import component
from overpaint.images.planner import make_plan
from overpaint.images.stages.attack import _judge
from overpaint.models.erasure import Erasure, Replacement


def attack(name="p4d_n", seed=0, **values):
    few = {"tokens": 3, "steps": 2, "draw_every": 2, "last_images": 1}
    return component("attack", name).build(few | values, seed=seed)


def run(context, records=None, **values):
    with watched(records) as seen:
        return attack(**values).run(context), seen


@pytest.fixture
def one(context):
    return replace(context, shots=context.shots[:1])


def original(context):
    """The unedited model's image of the first prompt."""
    p4d = attack()
    return p4d.originals(context, [p4d.trial(context, context.shots[0])])


def recorded(extra):
    """The recorded draws under our names. P4D stores the timesteps of all steps in one tensor."""
    records = {k: v for k, v in extra.items() if k.startswith("noise.")}
    records |= {f"t.{n}": t for n, t in enumerate(extra["timesteps"])}
    return records | {"init_ids.0": extra["init_ids"], "vae_noise.0": extra["vae_noise"]}


@pytest.mark.parametrize("tag", ["n_traj", "k_traj"])
def test_official_code(tag, golden, goldens, erased):
    meta, results, extra = golden(f"p4d/{tag}")
    picture = Image.fromarray(extra["image"].numpy())
    likeness = iter([None, *meta["similarities"]])  # None: the original itself

    def features(images):
        s = next(likeness)
        return torch.tensor([[1.0, 0.0]] if s is None else [[s, (1 - s * s) ** 0.5]])

    with erased(victim(goldens / "uda" / f"{meta['victim']}.safetensors")) as context:
        context = replace(
            context,
            shots=[Shot(Prompt(meta["prompt"], "target", "cat"), 0)],
            paint=lambda texts, seeds, **rest: [picture],
            features=features,
        )
        assault, seen = run(
            context,
            recorded(extra),
            name=f"p4d_{meta['variant']}",
            tokens=meta["N"] or 16,
            every=meta["every_k"] or 3,
            steps=meta["steps"],
            draw_every=1,
            learning_rate=meta["lr"],
            weight_decay=meta["weight_decay"],
            compat="official",
        )
        frame = attack(f"p4d_{meta['variant']}", tokens=meta["N"] or 16).frame(context.victim, meta["prompt"])
    steps, places = by_name(seen), list(frame.places)
    for n in range(meta["steps"]):
        assert frame.filled(steps["ids"][n][0].tolist()) == results[f"ids.{n}"][0].tolist()
        assert abs(float(steps["loss"][n] / results["loss"][n]) - 1) < 1e-5
        assert distance(steps["gradient"][n], results[f"grad.{n}"][:, places]) < 1e-5
        assert distance(steps["variable"][n], results[f"var_step.{n}"][:, places]) < 1e-5
    assert [p.shot.prompt.text for p in assault.painted[1:]] == [*meta["shown"], meta["best_text"]]


def test_official_layout_of_variant_k(golden, tiny_sd_float64):
    meta, results, _ = golden("p4d/init_k")
    for prompt, text in meta["prompts"].items():
        for every in meta["every_k"]:
            wanted = {k.rsplit(".", 1)[1]: v for k, v in results.items() if k.startswith(f"{prompt}.{every}.")}
            p4d = attack("p4d_k", every=every, compat="official")
            frame = p4d.frame(tiny_sd_float64, text)
            with replayed({"init_ids.0": wanted["draw"]}):
                ids = p4d.start(frame, Draws(0))
            assert torch.equal(frame.padded(ids)[0], wanted["ids_behind_embeddings"])
            kept = [i for i in range(len(frame.words) + len(frame.places)) if i not in frame.places]
            assert kept == wanted["kept"].tolist()


def test_intended_layouts_end_and_are_padded(tiny_sd):
    end, ids = tiny_sd.tokenizer.eos_token_id, torch.tensor([[585]])
    frame = attack("p4d_k", every=9, compat="intended").frame(tiny_sd, "a cat")
    assert torch.equal(frame.padded(ids), tiny_sd.padded_ids(["dog a cat"]))
    official = attack(tokens=1, compat="official").frame(tiny_sd, "a cat").padded(ids)[0].tolist()
    assert official == [971, 585, end, *[0] * 74]


def test_nothing_to_learn_on_the_original_model_means_no_loss(one, tiny_sd):
    """Variant k without additional tokens, with the original model as victim."""
    p4d = attack("p4d_k", compat="intended")
    words = tuple(tiny_sd.token_ids("a photo of a cat")[1:-1])
    frame, none = Frame(tiny_sd, words, ()), torch.zeros(1, 0, dtype=torch.long)
    x0 = tiny_sd.to_latents(original(one))
    targets = p4d.targets(one, one.shots[0], x0, [100, 900], Draws(0), "original")
    for noised, t, wanted in zip(*(part.split(1) for part in targets), strict=True):
        embeds = frame.encode(none, tiny_sd.token_table[none])
        said = p4d.predicted(tiny_sd, one, one.shots[0], noised, t, embeds)
        assert float((said - wanted).square().mean()) < 1e-10


def test_the_kept_words_are_those_whose_picture_is_most_like_the_original(one):
    """The first of equal candidates is kept. The plain image is not a candidate."""
    assault, _ = run(one, steps=3, draw_every=1, learning_rate=2.0)
    features = one.features
    wanted = features(original(one))
    drawn = assault.painted[1:-1]
    likeness = [float(cosine_similarity(features([p.image]), wanted)) for p in drawn]
    assert len({p.shot.prompt.text for p in drawn}) > 1
    assert assault.shots[-1].prompt.text == drawn[likeness.index(max(likeness))].shot.prompt.text
    assert assault.shots[-1].prompt.variant == "best"


def test_without_an_image_encoder_the_judge_decides(one, judge):
    judge.fires = (2,)
    assault, _ = run(replace(one, features=None), steps=3, draw_every=1, learning_rate=2.0)
    assert assault.shots[-1].prompt.text == assault.shots[2].prompt.text != assault.shots[1].prompt.text


def test_without_anything_that_compares_pictures_it_is_refused_before_it_draws_one(one):
    def paint(*args, **rest):
        raise AssertionError("nothing is drawn")

    blind = replace(one, features=None, judge=None, paint=paint)
    with pytest.raises(overpaint.UserError, match=r"attack\.clip .* model\.detector"):
        run(blind)
    for judged, clip in ((True, None), (False, "somewhere")):
        attack(clip=clip).check(judged)
    with pytest.raises(overpaint.UserError, match=r"attack=p4d_k .* attack\.clip .* model\.detector"):
        attack("p4d_k").check(judged=False)


def test_it_is_refused_when_it_is_planned():
    """The command line rejects it for a model without a detector."""

    def plan(*further):
        axes = ["budget=smoke", "method=none", "attack=p4d_n", "model.detector=null", "model.judge=null", *further]
        return make_plan([cell_from(c.config, c.explicit) for c in compose_cells(axes)])

    with pytest.raises(overpaint.UserError, match=r"attack\.clip .* model\.detector"):
        plan()
    assert plan("attack.clip=owner/name").cells


class Stub:
    """A cat detector, with or without features."""

    def __init__(self, embeds):
        self.embeds = embeds

    def score(self, images):
        frame = pd.DataFrame({"cat": [0.5] * len(images), "failed": [False] * len(images)})
        return frame.assign(features=[[1.0, 2.0]] * len(images)) if self.embeds else frame


@pytest.mark.parametrize("embeds", [True, False])
def test_a_judge_without_an_embedding_has_no_features(embeds, one):
    """Without features, the judge's score measures similarity, and the search runs."""
    stub = {"detector": "stub", "settings": {}}
    bench = SimpleNamespace(detector=lambda name, settings, device: Stub(embeds))
    judge, features = _judge({"judge": stub | {"threshold": 0.4}}, Concept("cat"), bench, None)
    pictures = one.examples(2)
    assert [verdict[:2] for verdict in judge(pictures)] == [(True, 0.5)] * 2
    assert torch.equal(features(pictures), torch.tensor([[1.0, 2.0]] * 2)) if embeds else features is None
    judge, features = _judge({"judge": stub | {"threshold": 0.6}}, Concept("cat"), bench, None)
    assert len(run(replace(one, judge=judge, features=features))[0].painted) == attack().images


def test_of_a_long_prompt_variant_k_keeps_what_fits_with_its_words(tiny_sd):
    words = tiny_sd.token_ids("a cat on the ship " * 20)[1:-1]
    for every, kept in ((1, 37), (3, 56), (100, 74)):
        frame = attack("p4d_k", every=every).frame(tiny_sd, "a cat on the ship " * 20)
        assert frame.words == tuple(words[:kept]) and len(frame.places) == kept // every + 1


def test_two_text_encoders_read_the_words_of_variant_k(tiny_sdxl):
    """In the released code the prompt has no end token, after which the second encoder's padding would start."""
    frame = attack("p4d_k", compat="official").frame(tiny_sdxl, "a photo of a cat")
    ids = torch.tensor([[500, 600]])
    assert len(frame.places) == 2
    for read in tiny_sdxl.encoder_ids(frame.padded(ids)):
        assert read[0, :9].tolist() == [971, *frame.filled([500, 600]), 972]
    with torch.no_grad():
        one, other = (frame.encode(own, tiny_sdxl.token_table[own]) for own in (ids, ids.flip(1)))
    assert (one[:, -1] - other[:, -1]).norm() > 1e-3, "the pooled vector, which is the second encoder's"


def test_it_stops_early_only_when_asked_to(one, judge):
    judge.fires = (1,)
    for early, images in ((True, 2), (False, 5)):
        judge.seen = []
        assault, _ = run(one, draw_every=1, last_images=2, stop_early=early)
        assert len(assault.painted) == images
    assert images == attack(draw_every=1, last_images=2).images


def test_last_pictures_have_noise_of_their_own_but_for_the_last(one):
    assault, _ = run(one, last_images=3)
    shots, plain = assault.shots, one.shots[0]
    assert [s.prompt.variant for s in shots] == ["plain", "step=0", "best", "best", "best"]
    assert len({s.noise_seed for s in shots}) == 3
    assert shots[-1].noise_seed == shots[1].noise_seed == plain.noise_seed
    assert all(s.prompt.noise == plain.prompt.noise and s.index == plain.index for s in shots)
    for painted in assault.painted:
        (image,) = one.paint([painted.shot.prompt.text], [painted.shot.noise_seed])
        assert image.tobytes() == painted.image.tobytes()


@pytest.mark.parametrize("compat", ["official", "intended"])
def test_whose_text_encoder_reads_the_words(compat, one, erased, tiny_sd):
    """In the released code it is the original text encoder, which an erasure does not change."""
    name = "text_model.final_layer_norm.bias"
    changed = Replacement(tiny_sd.named_parameters()[name].data + 1)
    with erased(Erasure("esd", changes={name: changed})) as context:
        plain = context.victim.encode(["a cat"])
        reader = attack(compat=compat).reader(context)
        assert torch.equal(reader.encode(["a cat"]), plain) is (compat == "intended")
        with context.unedited() as model:
            assert torch.equal(reader.encode(["a cat"]), model.encode(["a cat"]))


def through(context, prediction, **values):
    """The prediction that the search uses for a prompt at three steps, and the prediction of the victim's network alone."""
    victim, shot = context.victim, context.shots[0]
    p4d = attack(prediction=prediction, **values)
    view = p4d.victim_prediction(context, shot)
    x, embeds = victim.noise([3]), victim.encode(["a dog"])
    with torch.no_grad():
        seen = [view(x, torch.tensor([t]), embeds, n) for n, t in enumerate((500, 300, 100))]
        return seen, lambda text, t: victim.predict(x, torch.tensor([t]), victim.encode([text]))


def test_filtered_by_a_negative_prompt(one, tiny_sd):
    with overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"]).attached(tiny_sd):
        seen, said = through(one, "filtered")
        for value, t in zip(seen, (500, 300, 100), strict=True):
            unwanted, wanted = said("cat", t), said("a dog", t)
            torch.testing.assert_close(value, unwanted + 7.5 * (wanted - unwanted), rtol=1e-4, atol=1e-4)
        assert all(
            torch.equal(a, said("a dog", t))
            for a, t in zip(through(one, "conditional")[0], (500, 300, 100), strict=True)
        )


def test_filtered_by_sld(one, tiny_sd):
    """w (e(words) − γ), γ = μ e(S) + s ν without the unconditional prediction; ν from step to step, δ steps without γ."""
    settings = {
        "warmup_steps": 1,
        "safety_scale": 100.0,
        "threshold": 0.03,
        "momentum_scale": 0.5,
        "momentum_beta": 0.7,
    }
    with overpaint.erase(tiny_sd, "sld", erase=["cat"], text="cat", **settings).attached(tiny_sd):
        seen, said = through(one, "filtered")
        momentum = 0.0
        for n, (value, t) in enumerate(zip(seen, (500, 300, 100), strict=True)):
            wanted, unsafe = said("a dog", t), said("cat", t)
            mu = ((wanted - unsafe).abs() * 100).clamp(max=1) * (wanted - unsafe < 0.03)
            gamma = mu * unsafe + 0.5 * momentum
            momentum = 0.7 * momentum + 0.3 * gamma
            expected = 7.5 * (wanted - gamma if n else wanted)
            assert distance(value, expected) < 1e-3


def test_without_a_guard_filtered_is_conditional(one):
    for plain, filtered in zip(through(one, "conditional")[0], through(one, "filtered")[0], strict=True):
        assert torch.equal(plain, filtered)


def test_guided_compares_whole_samplers(one, tiny_sd):
    seen, said = through(one, "guided")
    for value, t in zip(seen, (500, 300, 100), strict=True):
        nothing, wanted = said("", t), said("a dog", t)
        torch.testing.assert_close(value, nothing + 7.5 * (wanted - nothing), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("values", [{"every": 0}, {"draw_every": 0}, {"steps": 0}, {"last_images": -1}])
def test_numbers_that_mean_nothing_are_refused(values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        attack(**values)
