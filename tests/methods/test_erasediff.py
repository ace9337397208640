"""EraseDiff against recorded runs of both official scripts, with the same random draws, and against its loss."""

import pytest
import torch

import overpaint
from official import by_name, distance, flat, parameters, recorded, watched
from overpaint.blocks.draws import Draws
from overpaint.grid.concepts import Concept
from overpaint.grid.registry import component
from overpaint.methods.erasediff import GROUPS
from overpaint.models.parameters import Parameter

SMALL = {
    "pictures": 2, "retain_pictures": 2, "picture_steps": 1, "batch_size": 2, "epochs": 1, "learning_rate": 1e-3,
    "train": "xattn", "erase": ["dog"], "anchor": "cat", "retain": ["ship"],
}  # fmt: skip
RETAINED = ["church", "ship", "cat", "bird"]


def traced_erase(model, records=None, **arguments):
    """The erasure and its traced values, as lists by name."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "erasediff", **(SMALL | arguments))
    return erasure, by_name(seen)


def asked(meta):
    """Our request, and the draws that choose the recorded retained images."""
    if meta["script"] == "nsfw":
        clothed = Concept("a person wearing clothes", kind="unsafe")
        erase = [Concept(name, kind="unsafe") for name in ("nudity", "naked")]
        return {"erase": erase, "anchor": None, "retain": [clothed], "template": "{}", "retain_pictures": 2}, {}
    orders = {}
    for number, step in enumerate(step for step in meta["prompts"] if "retain" in step):
        first = [RETAINED.index(text.split()[-1]) for text in step["retain"]]
        orders[f"retain.{number}"] = torch.tensor(first + [row for row in range(4) if row not in first])
    return {"anchor": None, "retain": RETAINED, "retain_pictures": 4}, orders


@pytest.mark.parametrize("tag", ["nsfw_xattn_k2", "cls_xattn"])
def test_official_code(tag, tiny_sd_float64, golden):
    meta, weights, extra = golden(f"erasediff/{tag}")
    arguments, draws = asked(meta)
    draws |= recorded(extra, "z_f", "z_p", "t", "noise")
    outer = [step for step, kind in enumerate(meta["kinds"]) if kind == "outer"]
    for number, step in enumerate(outer):
        draws |= {f"{name}.{number}": extra[f"{name}.{step}"] for name in ("z_r", "t_r", "noise_r")}
    erasure, seen = traced_erase(
        tiny_sd_float64,
        draws,
        compat="official",
        train=meta["train_method"],
        pseudo_caption="a photo of a pokemon",
        forget_weight=meta["lambda_bome"],
        inner_passes=meta["K_steps"],
        epochs=meta["epochs"],
        learning_rate=meta["lr"],
        batch_size=meta["batch_size"],
        pictures=meta["batch_size"] * meta["n_forget_batches"],
        **arguments,
    )
    for step, ours in enumerate(seen["loss_forget"]):
        assert abs(float(ours / extra[f"loss_forget.{step}"]) - 1) < 1e-5, step
    for step, ours in zip(outer, seen["loss_retain"], strict=True):
        assert abs(float(ours / extra[f"loss_retain.{step}"]) - 1) < 1e-5, step
    every, base = meta["every"], parameters(tiny_sd_float64, weights)
    first = {name.removeprefix("grad0."): value for name, value in extra.items() if name.startswith("grad0.")}
    ours = [seen["gradients"][0], {name: change.tensor for name, change in erasure.changes.items()}, base]
    gradient, moved, start = ({name: t[name].flatten()[::every] for name in weights} for t in ours)
    assert distance(flat(gradient, first), flat(first, first)) < 1e-4
    assert erasure.changes.keys() == weights.keys()
    assert distance(*(flat(group, weights) for group in (moved, weights, start))) < 1e-3


def test_the_first_loss_and_its_weight(tiny_sd_float64):
    """L_r + λ L_f of the recorded draws, with the anchor's prediction as the target."""
    model = tiny_sd_float64
    z, z_r, noise, noise_r = (model.noise([seed, seed + 1]) for seed in (0, 2, 4, 6))
    t, t_r = torch.tensor([30, 600]), torch.tensor([900, 10])
    draws = {"z_f.0": z, "t.0": t, "noise.0": noise, "z_r.0": z_r, "t_r.0": t_r, "noise_r.0": noise_r}
    _, seen = traced_erase(model, draws, pseudo_caption=None, forget_weight=0.3, retain=["ship"])
    with torch.no_grad():
        x, x_r = model.add_noise(z, noise, t), model.add_noise(z_r, noise_r, t_r)
        texts = ("an image of a dog", "an image of a cat", "an image of a ship")
        dog, cat, ship = (model.encode([text] * 2) for text in texts)
        forget = (model.predict(x, t, dog) - model.predict(x, t, cat)).square().mean()
        retain = (model.predict(x_r, t_r, ship) - noise_r).square().mean()
    assert abs(float(seen["loss_forget"][0] / forget) - 1) < 1e-9
    assert abs(float(seen["loss"][0] / (retain + 0.3 * forget)) - 1) < 1e-9


@pytest.mark.parametrize("eta", [-2.0, 0.0, 1.5])
def test_the_balanced_weight_is_eta_minus_the_cosine_of_both_gradients(eta, tiny_sd_float64):
    model = tiny_sd_float64
    _, seen = traced_erase(model, eta=eta, forget_weight=7.0)
    (weight,) = seen["weight"]
    if eta == -2.0:
        assert weight == 0
        return
    assert 0 <= weight <= eta + 1 and abs(weight - eta) > 1e-6
    fixed = {}
    for forget_weight in (0.0, 1.0, weight):
        _, traced = traced_erase(model, forget_weight=forget_weight, train="full")
        fixed[forget_weight] = torch.cat([g.flatten() for g in traced["gradients"][0].values()])
    retain, forget = fixed[0.0], fixed[1.0] - fixed[0.0]
    cosine = torch.nn.functional.cosine_similarity(retain, forget, dim=0)
    assert abs(weight - max(0.0, eta - float(cosine))) < 1e-6


def test_a_weight_of_zero_only_retains(tiny_sd):
    one, two = (
        traced_erase(tiny_sd, forget_weight=0.0, pseudo_caption=text)[0].tensors for text in ("a bird", "a church")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_inner_passes_change_the_gradients_of_no_loss_but_adams_moments(tiny_sd):
    """Official: they matter through Adam. Intended: there are none."""
    official = [traced_erase(tiny_sd, compat="official", inner_passes=k)[0].tensors for k in (1, 2)]
    intended = [traced_erase(tiny_sd, inner_passes=k)[0].tensors for k in (1, 2)]
    assert any(not torch.equal(official[0][name], official[1][name]) for name in official[0])
    assert all(torch.equal(intended[0][name], intended[1][name]) for name in intended[0])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "a photo of a pokemon"),
        ({"pseudo_caption": None}, "an image of a cat"),
        ({"pseudo_caption": None, "anchor": None}, "an image of an object"),
        ({"pseudo_caption": None, "anchor": None, "kind": "style"}, "an image of a house"),
        ({"pseudo_caption": None, "anchor": None, "kind": "unsafe", "preset": "unsafe"}, "a person wearing clothes"),
    ],
)
def test_the_pseudo_caption(tiny_sd_float64, arguments, expected):
    model = tiny_sd_float64
    z, t = model.noise([0]), torch.tensor([400])
    draws = {"z_f.0": z, "noise.0": z, "t.0": t, "forget.0": torch.arange(2)}
    _, seen = traced_erase(model, draws, batch_size=1, **arguments)
    thing = {"style": "an image of a house in dog style", "unsafe": "dog"}.get(
        arguments.get("kind"), "an image of a dog"
    )
    with torch.no_grad():
        named, other = (model.predict(model.add_noise(z, z, t), t, model.encode([text])) for text in (thing, expected))
    assert abs(float(seen["loss_forget"][0] / (named - other).square().mean()) - 1) < 1e-6


def test_the_scripts_settings():
    method = component("method", "erasediff")
    names = ("train", "epochs", "inner_passes", "forget_weight", "batch_size")
    presets = {name: method.settle({}, name) for name in ("object", "unsafe", "nudity")}
    assert [presets["object"][name] for name in names] == ["full", 2, 1, 1.0, 16]
    for name in ("unsafe", "nudity"):
        assert [presets[name][key] for key in (*names, "picture_steps")] == ["noxattn", 5, 2, 1.0, 16, 50]


def test_forget_captions_are_used_in_turn(tiny_sd):
    eraser = component("method", "erasediff").build({"forget_captions": ["nudity", "naked"], "picture_steps": 1})
    caption = eraser.caption("{}", eraser.forget_captions)
    bank, _ = eraser.bank(tiny_sd, [Concept("nudity", kind="unsafe")], 3, caption, Draws(0))
    assert bank.captions == ["nudity", "naked", "nudity"]
    one, two = (traced_erase(tiny_sd, forget_captions=texts)[0].tensors for texts in (None, ["an image of a dog"]))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("group", "kind"), [("xlayer", "cross"), ("selflayer", "self")])
def test_groups_of_two_blocks(group, kind):
    names = {
        kind: [f"{block}.transformer_blocks.0.attn.to_q.weight" for block in SD_BLOCKS] for kind in ("cross", "self")
    }
    parameters = [Parameter(name, torch.nn.Identity(), other) for other in names for name in names[other]]
    found = [p for p in parameters if GROUPS[group](p)]
    assert {p.attention for p in found} == {kind}
    assert [p.name.partition(".transformer")[0] for p in found] == {
        "xlayer": ["up_blocks.2.attentions.0", "up_blocks.2.attentions.2"],  # CompVis: output_blocks.6, output_blocks.8
        "selflayer": ["down_blocks.1.attentions.0", "down_blocks.2.attentions.0"],  # input_blocks.4, input_blocks.7
    }[group]


#: The blocks of SD 1 and 2 that have attention.
SD_BLOCKS = [
    *(f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)),
    "mid_block.attentions.0",
    *(f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)),
]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"epochs": 0}, "epochs"),
        ({"forget_captions": []}, "forget_captions"),
        ({"template": "no place"}, "template"),
        ({"folder": "no/such/folder"}, "folder=no/such/folder"),
        ({"retain": ["ship", "bird", "tree"]}, "retain_pictures=2 is too few for 3 concepts"),
    ],
)
def test_bad_values_are_refused(values, told, tiny_sd):
    with pytest.raises(overpaint.UserError, match=told):
        traced_erase(tiny_sd, **values)
