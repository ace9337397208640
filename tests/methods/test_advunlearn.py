"""AdvUnlearn and its inner attack against recorded runs of official code, and against their identities."""

import pytest
import torch

import overpaint
from official import by_name, distance, flat, parameters, rollout_settings, victim, watched
from overpaint.blocks import soft_prompts
from overpaint.blocks.draws import Draws, replayed
from overpaint.blocks.soft_prompts import PLACES, SoftPrompt
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.registry import component
from overpaint.methods.advunlearn import COCO, Deck
from overpaint.models.parameters import Parameter


def traced_erase(model, records=None, **arguments):
    """The erasure and all traced values."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "advunlearn", **arguments)
    return erasure, seen


def settings(meta):
    return {
        "compat": "official",
        "erase": [meta["word"]],
        "sublayers": meta["component"],
        **rollout_settings(meta),
        "retain_train": meta["retain_train"],
        "retain_prompts": [text for hand in meta["retain_prompts"] for text in hand],
        "retain_batch": len(meta["retain_prompts"][0]),
        "retain_weight": meta["retain_loss_w"],
        "warmup": meta["warmup_iter"],
        "attack_every": meta["update_every"],
        "attack_method": meta["attack_method"],
        "attack_type": meta["attack_type"],
        "attack_tokens": meta["k"],
        "attack_init": meta["attack_init"],
        "attack_steps": meta["attack_step"],
        "attack_learning_rate": meta["attack_lr"],
    }


def draws(meta, extra):
    """Recorded draws under our names. Integers are ordered: the start of the first attack, then k and t of each step."""
    codes = {key.replace("code", "x_T"): value for key, value in extra.items() if key.startswith("code.")}
    hands = {f"retain.{n}": hand for n, hand in enumerate(meta["retain_prompts"])}
    integers = [extra[f"draw.{n}"] for n in range(meta["n_draws"])]
    starts = {"start.0": integers.pop(0)} if meta["attacks"] else {}
    pairs = {f"{name}.{n}": value for i, name in enumerate("kt") for n, value in enumerate(integers[i::2])}
    return codes | hands | starts | pairs


@pytest.mark.parametrize("tag", ["advunlearn_warm_reg", "advunlearn_fast_at"])
def test_official_code(tag, tiny_sd_float64, golden):
    meta, weights, extra = golden(f"advunlearn/{tag}")
    erasure, seen = traced_erase(tiny_sd_float64, draws(meta, extra), **settings(meta))

    attacked = [call for attack in meta["attacks"] for call in range(*attack["mse"])]
    trained = [n for n in range(meta["n_mse"]) if n not in attacked]
    losses = [value for values in seen for name in ("erase", "retain") if (value := values.get(name)) is not None]
    for ours, calls in ((by_name(seen)["attack_loss"], attacked), (losses, trained)):
        for value, call in zip(ours, calls, strict=True):
            assert torch.allclose(value, extra[f"mse.{call}"], rtol=1e-4, atol=1e-12), call
    rolled = [extra[f"roll.{n}"] for n in trained]
    ours = by_name(seen)["x_t"]
    assert distance(torch.cat(ours), torch.cat(rolled)) < 1e-4

    attacks = iter(zip(by_name(seen)["free"], by_name(seen)["attack_gradient"], strict=True))
    for r, (embeddings, ids) in enumerate(zip(by_name(seen)["adversarial"], by_name(seen)["ids"], strict=True)):
        assert distance(embeddings, extra[f"attack.{r}.embd"]) < 1e-5
        assert torch.equal(ids, extra[f"attack.{r}.ids"])
        for s in range(meta["attack_step"]):
            free, gradient = next(attacks)
            assert distance(free, extra[f"attack.{r}.delta.{s}"]) < 1e-5
            assert distance(gradient, extra[f"attack.{r}.grad.{s}"]) < 1e-3

    assert erasure.changes.keys() == {f"text_model.{name}" for name in weights}
    ours = {name: change.tensor for name, change in erasure.changes.items()}
    theirs = {f"text_model.{name}": tensor for name, tensor in weights.items()}
    start = parameters(tiny_sd_float64, theirs)
    assert distance(*(flat(group, theirs) for group in (ours, theirs, start))) < 2e-3


@pytest.mark.parametrize("tag", ["advu_pgd_word"])
def test_official_attack_on_an_edited_network(tag, tiny_sd, golden, goldens):
    meta, results, extra = golden(f"advunlearn/{tag}")
    model, named = tiny_sd, tiny_sd.encode([meta["word"]])
    edited = victim(goldens / "uce" / "f32" / f"{meta['victim'].removeprefix('uce_')}.safetensors")
    steps = [(extra[f"z.{s}"], int(results["t_ddpm"][s])) for s in range(meta["steps"])]
    with torch.no_grad():
        wanted = iter([(x, t, model.predict(x, t, named)) for x, t in steps])
    prompt = SoftPrompt(model, meta["word"], meta["where"], meta["k"], released=True)

    def loss(rows):
        x, t, base = next(wanted)
        return torch.nn.functional.mse_loss(model.predict(x, t, model.encode_embeddings(rows, prompt.ids)), base)

    with replayed({"start.0": extra["init_ids"].reshape(1, -1)}):
        start = prompt.random_start(Draws(0))
    assert torch.equal(start, extra["var0"])
    with edited.attached(model), watched() as seen:
        free = soft_prompts.attack(prompt, start, loss, meta["steps"], meta["lr"], meta["method"], released=True)
    assert torch.equal(prompt.ids, results["ids"])
    assert distance(prompt.rows(free), results["embedding"]) < 1e-5
    for s in range(meta["steps"]):
        assert float(seen[s]["attack_loss"]) == pytest.approx(float(results["loss"][s]), rel=1e-4)
        assert distance(seen[s]["attack_gradient"], results[f"grad_used.{s}"]) < 1e-4
        assert distance(seen[s]["free"], results[f"var_step.{s}"]) < 1e-5


#: Positions of free rows (A, B, …) among words (1, 2, …). E is the end row; padding follows.
LAYOUTS = {
    "prefix_k": "AB12345", "suffix_k": "12345AB", "mid_k": "12AB345", "insert_k": "1A2B345", "per_k_words": "A123B45",
    "replace_k": "ABEEEEE",
}  # fmt: skip


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_the_rows_of_a_soft_prompt_are_in_their_places(tiny_sd, place, released):
    text, table = "a photo of a dog", tiny_sd.text_encoder.get_input_embeddings().weight.data
    ids = tiny_sd.padded_ids([text])
    prompt = SoftPrompt(tiny_sd, text, place, 2, released)
    free = torch.full((1, prompt.size, 48), 7.0) + torch.arange(prompt.size)[:, None]
    (rows,) = prompt.rows(free)
    assert rows.shape == (77, 48) and torch.equal(rows[0], table[ids[0, 0]])
    if place == "add":
        assert torch.equal(rows[1:6], table[ids[0, 1:6]] + free[0]) and torch.equal(prompt.ids, ids)
        return
    for row, sign in zip(rows[1:8], LAYOUTS[place], strict=True):
        expected = free[0, "AB".index(sign)] if sign in "AB" else table[ids[0, 6 if sign == "E" else int(sign)]]
        assert torch.equal(row, expected), sign
    assert torch.equal(rows[8:], table[ids[0, 8:]])  # all end tokens, as padding is here


def test_a_word_of_several_pieces_is_torn_as_released_and_whole_as_intended(tiny_sd):
    ids = tiny_sd.padded_ids(["snoopy"])[0].tolist()  # six pieces, one word
    torn, whole = (SoftPrompt(tiny_sd, "snoopy", "prefix_k", 1, released).ids[0].tolist() for released in (True, False))
    assert torn == [ids[0], ids[2], ids[1], *ids[3:]]  # the id under the free row is of the piece that it took out
    assert whole[2:9] == ids[1:8] and whole[0] == ids[0]


@pytest.mark.parametrize("method", ["pgd", "fast_at"])
def test_gradients_add_up_as_released_and_the_last_step_is_dropped(tiny_sd, method):
    prompt = SoftPrompt(tiny_sd, "dog", "prefix_k", 1)
    slope = torch.linspace(-1, 1, 48)

    def attacked(released):
        with watched() as seen:
            free = soft_prompts.attack(
                prompt, torch.zeros(1, 1, 48), lambda rows: (rows[0, 1] * slope).sum(), 3, 0.1, method, released
            )
        return free, by_name(seen)["attack_gradient"], by_name(seen)["free"]

    found = {released: attacked(released) for released in (True, False)}
    sign = slope.sign()
    for n in range(3):
        summed = (n + 1) * slope if method == "pgd" else sign
        assert torch.allclose(found[True][1][n][0, 0], summed)
        assert torch.allclose(found[False][1][n][0, 0], slope if method == "pgd" else sign)
    assert torch.equal(found[True][0], found[True][2][-2]) and torch.equal(found[False][0], found[False][2][-1])


def test_free_rows_that_do_not_fit_are_refused(tiny_sd):
    with pytest.raises(overpaint.UserError, match="exceed the"):
        SoftPrompt(tiny_sd, "dog", "prefix_k", 75)


SMALL = {
    "erase": ["dog"], "retain": ["ship", "bird", "cat"], "iterations": 1, "rollout_steps": 2, "learning_rate": 1e-3,
    "retain_batch": 2, "warmup": 0, "attack_steps": 2, "attack_learning_rate": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("compat", ["intended", "official"])
def test_the_first_losses_are_zero_where_nothing_is_asked(tiny_sd, compat):
    """With η = −1 the target is the concept itself, and the student still equals the base model."""
    arguments = SMALL | {"compat": compat, "warmup": 1, "negative_guidance": -1.0}
    _, seen = traced_erase(tiny_sd, **arguments)
    assert float(by_name(seen)["erase"][0]) < 1e-12 and float(by_name(seen)["retain"][0]) == 0


def test_the_first_erasing_loss_follows_from_the_base_predictions(tiny_sd_float64):
    model = tiny_sd_float64
    _, seen = traced_erase(model, **(SMALL | {"warmup": 1, "negative_guidance": 2.0}))
    x_t, t = by_name(seen)["x_t"][0][:1], by_name(seen)["t"][0]
    with torch.no_grad():
        named, nothing = (model.predict(x_t, t, model.encode([text])) for text in ("dog", ""))
    expected = 9 * torch.nn.functional.mse_loss(named, nothing)
    assert float(by_name(seen)["erase"][0]) == pytest.approx(float(expected), rel=1e-5)


def test_the_attack_changes_what_the_network_says_and_training_meets_it(tiny_sd):
    _, attacked = traced_erase(tiny_sd, **SMALL)
    _, calm = traced_erase(tiny_sd, **(SMALL | {"warmup": 1}))
    first, later = by_name(attacked)["attack_loss"]
    assert first > 0 and later > 0 and not by_name(calm)["attack_loss"]
    assert len(by_name(attacked)["adversarial"]) == 1 and not by_name(calm)["adversarial"]
    (one,), (two,) = by_name(attacked)["free"][-1:], by_name(attacked)["adversarial"]
    assert torch.equal(two[:, 1:2], one)


def test_iter_mode_takes_retaining_steps_of_their_own(tiny_sd):
    arguments = SMALL | {"retain_train": "iter", "retain_steps": 2, "iterations": 2, "warmup": 9}
    _, seen = traced_erase(tiny_sd, **arguments)
    kinds = ["erase" if "erase" in values else "retain" for values in seen if "x_t" in values]
    assert kinds == ["erase", "retain", "retain"] * 2
    batches = [len(values["x_t"]) for values in seen if "x_t" in values]
    assert batches == [1, 2, 2] * 2


@pytest.mark.parametrize("compat, rows", [("official", slice(1, 3)), ("intended", slice(3, 5))])
def test_latest_under_suffix_takes_the_concepts_own_rows_as_released(tiny_sd, compat, rows):
    """Two free rows follow "a dog". In the released code, the next attack starts from the embeddings of "a dog"."""
    arguments = SMALL | {"erase": ["a dog"], "attack_type": "suffix_k", "attack_tokens": 2, "attack_init": "latest"}
    arguments |= {"compat": compat, "iterations": 2, "attack_steps": 1, "attack_learning_rate": 0.0}
    _, seen = traced_erase(tiny_sd, **arguments)
    first, second = by_name(seen)["adversarial"]
    assert torch.equal(second[:, 3:5], first[:, rows])


@pytest.mark.parametrize(
    "values, tensors",
    [
        ({}, 50), ({"sublayers": "ffn"}, 12), ({"sublayers": "attn"}, 24), ({"layers": [0]}, 16),
        ({"layers": [0, 2], "train_norm": True}, 34), ({"sublayers": "attn", "train_norm": True}, 26),
        ({"train": "xattn"}, 35), ({"train": "noxattn"}, 281), ({"train": "notime"}, 316), ({"train": "full"}, 324),
    ],
)  # fmt: skip
def test_groups_have_the_official_number_of_tensors(tiny_sd, values, tensors):
    names = component("method", "advunlearn").build(values, seed=0).group(tiny_sd)
    assert len(names) == tensors and not any("embeddings" in name for name in names)
    assert all(name in (tiny_sd.denoiser_names if "train" in values else tiny_sd.text_encoder_names) for name in names)


def test_layer_1_has_10_and_11_in_it_as_released():
    eleventh = Parameter("text_model.encoder.layers.11.mlp.fc1.weight", torch.nn.Linear(1, 1))
    released, intended = (
        component("method", "advunlearn").build({"layers": [0, 1], "compat": compat}, seed=0).in_text_encoder(eleventh)
        for compat in ("official", "intended")
    )
    assert released and not intended


@pytest.mark.parametrize("train", ["text_encoder", "xattn"])
def test_all_of_the_group_learns(tiny_sd, train):
    erasure, seen = traced_erase(tiny_sd, **(SMALL | {"train": train}))
    (gradients,) = by_name(seen)["gradients"]
    assert gradients.keys() == erasure.changes.keys()
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.abs().sum() > 0, name


def test_what_is_retained(tiny_sd):
    def prompts(values=None, **request):
        return component("method", "advunlearn").build(values or {}, seed=0).retained(Request.of(**request))

    assert len(COCO) == 80 and len(prompts(erase=["church"])) == 80
    without = prompts(erase=["garbage truck"])
    assert len(without) == 79 and "a photo of truck" not in without and "a photo of chair" in without
    assert prompts(erase=["dog"], retain=["cat"]) == ["a photo of cat"]
    style = Concept("mosaic", kind="style")
    assert prompts(erase=["dog"], retain=[style, Concept("cat", article="a")]) == [
        "a picture in mosaic style", "a photo of a cat",
    ]  # fmt: skip
    assert prompts({"retain_prompts": ["a ship"]}, erase=["dog"], retain=["cat"]) == ["a ship"]


def test_prompts_are_dealt_without_replacement():
    deck = Deck([str(n) for n in range(7)], 3, Draws(0))
    first, second, third = deck.deal(), deck.deal(), deck.deal()
    assert len({*first, *second}) == 6 and len(set(third)) == 3 and {*first, *second} & {*third}
    assert Deck(["a"], 3, Draws(0)).deal() == ["a"]


def test_half_precision_weights_are_trained_in_float32(goldens):
    model = overpaint.load_model(str(goldens / "tiny_sd"), dtype="bfloat16")
    erasure, seen = traced_erase(model, **SMALL)
    assert {g.dtype for g in by_name(seen)["gradients"][0].values()} == {torch.float32}
    assert {c.tensor.dtype for c in erasure.changes.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "values",
    [
        {"attack_tokens": 0}, {"attack_steps": 0}, {"retain_batch": 0}, {"rollout_steps": 1}, {"layers": [0], "train": "xattn"},
        {"retain_prompts": []}, {"attack_every": 0}, {"warmup": -1},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        overpaint.erase(tiny_sd, "advunlearn", **(SMALL | values))
