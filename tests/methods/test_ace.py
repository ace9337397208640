"""ACE against recorded runs of its official code, with the same random draws, and against its identities."""

import pytest
import torch
from torch.nn.functional import mse_loss

import overpaint
from official import distance, flat, watched
from overpaint.blocks.adapters import Branches, transformer_layers
from overpaint.grid.concepts import Request
from overpaint.grid.registry import component

SMALL = {"iterations": 1, "rollout_steps": 4, "learning_rate": 1e-2, "related": ["cat", "ship", "bird"]}


def factors_of(tensors, prefix, model, like=None):
    """Official factors under our names. Those that the recording leaves out are zeros with the shape of ``like``'s."""
    ours = {}
    for layer in transformer_layers(model):
        for side in ("down", "up"):
            key = f"{prefix}lora_unet_{layer.replace('.', '_')}.lora_{side}.weight"
            ours[f"{layer}.{side}"] = tensors[key] if key in tensors else torch.zeros_like(like[f"{layer}.{side}"])
    return ours


def traced_erase(model, records=None, **arguments):
    """The erasure and the traced values of each iteration."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "ace", **arguments)
    iterations = zip(seen[::5], seen[1::5], seen[2::5], seen[3::5], seen[4::5], strict=True)
    return erasure, [{key: value for part in parts for key, value in part.items()} for parts in iterations]


@pytest.mark.parametrize("tag", ["released_clip", "surrogate", "cond_only"])
def test_official_training(tag, tiny_sd_float64, golden):
    model = tiny_sd_float64
    meta, weights, extra = golden(f"ace/{tag}")
    fresh = overpaint.erase(model, "ace", erase=["dog"], **(SMALL | {"rank": meta["rank"]})).parts
    start = factors_of(extra, "init.", model, fresh)
    records = {"init.0": start} | {key: value for key, value in extra.items() if key.startswith("x_T.")}
    records |= {f"k.{n}": k for n, k in enumerate(extra["k"])}
    records |= {f"related.{n}": dealt for n, dealt in enumerate(meta["drawn_anchors"])}
    erasure, iterations = traced_erase(
        model,
        records,
        erase=[meta["prompt"]],
        anchor=meta["surrogate"],
        compat="official",
        rank=meta["rank"],
        alpha=meta["alpha"],
        related=meta["anchors"],
        relevance=meta["clip"],
        steer="related" if meta["no_certain_sur"] else "anchor",
        negative_guidance=meta["eta"],
        steer_guidance=meta["surrogate_scale"],
        null_weight=(1.0 if meta["no_cond"] else meta["null_weight"]) if meta["is_train_null"] else 0.0,
        prior_weight=meta["pl_weight"] if meta["prior"] else 0.0,
        null_prior=meta["with_prior_latent"],
        rollout_steps=meta["steps"],
        iterations=meta["iterations"],
        learning_rate=meta["lr"],
    )
    assert len(iterations) == meta["iterations"]
    for n, seen in enumerate(iterations):
        assert seen["t"] == int(extra["t"][n])
        trained = meta["is_train_null"]
        pairs = {"x_t": "x_t", "e0_null": "e0_null", "e0_c": "e0_c", "cond": "cond", "target_cond": "target_cond"}
        pairs |= {"null": "null", "target_null": "target_null"} if trained else {}
        for ours, theirs in pairs.items():
            assert distance(seen[ours], extra[f"{theirs}.{n}"]) < 1e-5, (ours, n)
        if trained and not meta["no_certain_sur"]:
            assert distance(seen["e0_anchor"], extra[f"surrogate_base.{n}"]) < 1e-5
        if meta["prior"]:
            assert distance(torch.cat(seen["e0_related"]), extra[f"anchor_base.{n}"]) < 1e-5
            assert distance(torch.cat(seen["related"]), extra[f"anchor.{n}"]) < 1e-5
        for name in ["loss_cond", *(["loss_null"] if trained else []), *(["loss_prior"] if meta["prior"] else [])]:
            assert float(seen[name]) == pytest.approx(float(extra[name][n]), rel=1e-4, abs=1e-10), (name, n)

    every = meta["every"]

    def thinned(tensors):
        return {name: tensor.flatten()[::every] for name, tensor in tensors.items()}

    first = factors_of(extra, "grad0.", model)
    assert distance(flat(thinned(iterations[0]["gradients"]), first), flat(first, first)) < 1e-4
    wanted = factors_of(weights, "", model)
    assert erasure.parts.keys() == wanted.keys()
    assert distance(*(flat(group, wanted) for group in (thinned(erasure.parts), wanted, thinned(start)))) < 1e-3


def test_without_guidance_the_base_is_the_target(tiny_sd_float64):
    """η = s = 0: all targets are the base's predictions, which a fresh LoRA does not change, except cond's."""
    values = SMALL | {"negative_guidance": 0.0, "steer_guidance": 0.0, "null_weight": 1.0}
    _, (seen,) = traced_erase(tiny_sd_float64, erase=["dog"], **values)
    assert float(seen["loss"]) < 1e-20


@pytest.mark.parametrize("steer", ["related", "anchor"])
def test_the_first_losses_follow_from_the_base_predictions(steer, tiny_sd_float64):
    model, eta, s = tiny_sd_float64, 2.0, 0.5
    related = ["cat", "ship"]
    values = SMALL | {"related": related, "negative_guidance": eta, "steer_guidance": s, "steer": steer}
    _, (seen,) = traced_erase(model, erase=["dog"], anchor="bird", **values)
    with torch.no_grad():
        rows = [model.predict(seen["x_t"], seen["t"], model.encode([text])) for text in ("", "dog", "bird", *related)]
    nothing, named, anchor, *others = rows
    g = anchor - nothing if steer == "anchor" else sum(other - nothing for other in others)
    null = mse_loss(eta * (named - nothing), s * g)
    cond = (1 + eta) ** 2 * mse_loss(named, nothing)
    assert float(seen["loss_null"]) == pytest.approx(float(null), rel=1e-5)
    assert float(seen["loss_cond"]) == pytest.approx(float(cond), rel=1e-5)
    assert float(seen["loss"]) == pytest.approx(0.2 * (0.99 * float(null) + 0.01 * float(cond)), rel=1e-5)


def test_relevance_weighs_the_related_concepts(tiny_sd_float64):
    scores = {"dog": 0.5, "cat": 0.25, "ship": 1.0, "bird": 0.0}
    values = SMALL | {"related_per_step": 3, "relevance": scores}
    _, (seen,) = traced_erase(tiny_sd_float64, {"related.0": ["cat", "ship", "bird"]}, erase=["dog"], **values)
    cat, ship, _ = (there - seen["e0_null"] for there in seen["e0_related"])
    g = (seen["e0_null"] + 3 * (seen["e0_c"] - seen["e0_null"]) - seen["target_null"]) / 3
    torch.testing.assert_close(g, 0.5 * cat + 2 * ship, rtol=0, atol=1e-10)


def test_the_last_hand_of_a_pass_is_smaller(tiny_sd):
    _, iterations = traced_erase(tiny_sd, erase=["dog"], **(SMALL | {"iterations": 4}))
    assert [len(seen["related"]) for seen in iterations] == [2, 1, 2, 1]


@pytest.mark.parametrize("compat", ["intended", "official"])
def test_latents_of_related_concepts_are_kept_too(compat, tiny_sd):
    """A fresh LoRA changes nothing, so its prior is zero; a given one changes the unconditional prediction."""
    start = overpaint.erase(tiny_sd, "ace", erase=["dog"], **SMALL).parts
    losses = {}
    for null_prior in (False, True):
        values = SMALL | {"null_prior": null_prior, "compat": compat}
        _, (seen,) = traced_erase(tiny_sd, {"init.0": start}, erase=["dog"], **values)
        losses[null_prior] = float(seen["loss_prior"])
    assert losses[True] > losses[False] > 0


def test_the_intended_roll_out_is_at_the_level_of_its_timestep(tiny_sd):
    seen = {}
    for compat in ("intended", "official"):
        for k in (2, 3):
            records = {"k.0": torch.tensor(k), "x_T.0": torch.ones(1, 4, 16, 16)}
            _, (found,) = traced_erase(tiny_sd, records, erase=["dog"], **(SMALL | {"compat": compat}))
            seen[compat, k] = found
    schedule = tiny_sd.scheduler("pndm")
    schedule.set_timesteps(4)
    assert [seen["intended", k]["t"] for k in (2, 3)] == schedule.timesteps[2:4].tolist()
    assert [seen["official", k]["t"] for k in (2, 3)] == [1001 - 500, 1001 - 750]
    assert torch.equal(seen["official", 2]["x_t"], seen["official", 3]["x_t"]), "the released roll-out never stops"
    assert not torch.equal(seen["intended", 2]["x_t"], seen["intended", 3]["x_t"])


def test_every_factor_learns(tiny_sd):
    start = overpaint.erase(tiny_sd, "ace", erase=["dog"], **SMALL).parts
    _, (seen,) = traced_erase(tiny_sd, {"init.0": start}, erase=["dog"], **SMALL)
    assert all(gradient.abs().sum() > 0 for gradient in seen["gradients"].values())


def test_the_installed_adapter_is_the_trained_one(tiny_sd):
    erasure = overpaint.erase(tiny_sd, "ace", erase=["dog"], **SMALL)
    x, t, embeds = tiny_sd.noise([0]), torch.tensor(500), tiny_sd.encode(["a dog"])
    with torch.no_grad():
        with Branches(tiny_sd, erasure.parts, scale=0.25).active():
            trained = tiny_sd.predict(x, t, embeds)
        with erasure.attached(tiny_sd):
            assert torch.equal(tiny_sd.predict(x, t, embeds), trained)


def test_related_concepts_are_those_to_retain_and_never_those_to_erase():
    request = Request.of(["dog", "cat"], retain=["ship"])
    listed = {"related": ["Cat", "bird", "dog"]}
    assert component("method", "ace").build({}).others(request) == ["ship"]
    assert component("method", "ace").build(listed).others(request) == ["bird"]
    assert component("method", "ace").build(listed | {"compat": "official"}).others(request) == ["Cat", "bird", "dog"]


@pytest.mark.parametrize(("compat", "kept"), [("intended", ["bird"]), ("official", ["Cat", "bird"])])
def test_official_code_drops_a_related_concept_in_the_same_letter_case_only(compat, kept):
    eraser = component("method", "ace").build({"related": ["Cat", "cat", "bird"], "compat": compat})
    assert eraser.others(Request.of(["cat"])) == kept


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"null_weight": 1.5}, "null_weight takes a number from 0 to 1, got 1.5"),
        ({"related": []}, "needs related concepts that stay"),
        ({"null_prior": True, "prior_weight": 0.0}, "null_prior=true needs null_weight and prior_weight"),
        ({"relevance": {"cat": 1.0}}, "relevance needs a score other than 0 for 'dog'"),
        ({"relevance": {"dog": 1.0, "cat": 1.0}}, "relevance has no score for 'ship'"),
        ({"related": "nowhere"}, "nowhere"),
        ({"rank": 0}, "rank"),
    ],
)
def test_bad_values_are_refused(values, told, tiny_sd):
    with pytest.raises(overpaint.UserError, match=told):
        overpaint.erase(tiny_sd, "ace", erase=["dog"], **(SMALL | values))


def test_without_related_concepts_only_the_concept_is_trained(tiny_sd):
    values = SMALL | {"related": None, "prior_weight": 0.0, "null_weight": 0.0}
    _, (seen,) = traced_erase(tiny_sd, erase=["dog"], **values)
    assert seen["related"] == [] and float(seen["loss"]) == pytest.approx(float(seen["loss_cond"]))
