"""Concept Steerers against recordings of the official code, and the identities of steering."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import overpaint
from official import by_name, distance, recorded, watched
from overpaint.blocks.sparse_autoencoders import TENSORS, SparseAutoencoder, geometric_median, largest
from overpaint.grid.registry import component
from overpaint.methods.steerers import Objective, activations

SMALL = {"texts": ["a dog on the ground", "a church by the sky"], "iterations": 2, "batch_size": 32, "layers": [1]}


@pytest.fixture
def steerers():
    return lambda **values: component("method", "steerers").build(SMALL | values, seed=0)


@pytest.fixture
def recorded_autoencoder(golden):
    """The autoencoder that the recordings of `sae` start from."""
    _, _, extra = golden("steerers/sae")
    tensors = (extra["enc"], extra["enc"].T, extra["latent_bias"], extra["pre_bias"])
    made = SparseAutoencoder(dict(zip(TENSORS, tensors, strict=True)))
    made.unit_columns()
    return made, extra["x"]


def gradients(autoencoder):
    return {name: tensor.grad.clone() for name, tensor in autoencoder.masters.items()}


def test_latents_with_and_without_a_limit(recorded_autoencoder, golden):
    autoencoder, x = recorded_autoencoder
    meta, result, _ = golden("steerers/sae")
    k = meta["configs"]["aux"]["k"]
    for ours, theirs in ((k, "encode"), (3, "encode_k3"), (None, "dense")):
        z = autoencoder.encode(x, ours)
        assert distance(z.detach(), result[f"aux.{theirs}"]) < 1e-6
        assert ours is None or ((z > 0).sum(dim=-1) <= ours).all()


@pytest.mark.parametrize("tag", ["aux", "noaux", "nodead", "bigk"])
def test_losses_gradients_and_counts_are_the_official_ones(tag, recorded_autoencoder, golden):
    autoencoder, x = recorded_autoencoder
    meta, result, extra = golden("steerers/sae")
    settings = meta["configs"][tag]
    objective = Objective(
        scale=meta["mse_scale"],
        k=settings["k"],
        aux_k=settings["auxk"] or 0,
        aux_weight=meta["auxk_coef"],
        dead_after=settings["dead_steps_threshold"],
        official=True,
        silent=extra["stats_before"],
    )
    with watched() as seen:
        loss = objective(autoencoder, x)
    loss.backward()
    traced = {name: values[-1] for name, values in by_name(seen).items()} | {"loss": loss.detach()}
    for name in ("loss", "mse", "aux", "l0"):
        if f"{tag}.{name}" in result:
            torch.testing.assert_close(traced[name].reshape(1), result[f"{tag}.{name}"], rtol=1e-6, atol=0)
    assert torch.equal(traced["silent"], result[f"{tag}.stats"])
    found = gradients(autoencoder)
    autoencoder.keep_norms()
    found |= {"adjusted": autoencoder.masters["decoder.weight"].grad}
    compared = {"pre_bias"} | (set(TENSORS) if tag == "aux" else set())
    for name in compared:
        assert distance(found[name], result[f"{tag}.grad.{name}"]) < 1e-5, name
    if tag == "aux":
        assert distance(found["adjusted"], result["aux.grad_adjusted.decoder.weight"]) < 1e-5
        assert distance(traced["recons"], result["aux.recons"]) < 1e-5


def test_training_is_the_official_one(golden, steerers):
    meta, result, extra = golden("steerers/train_aux")
    eraser = steerers(
        compat="official",
        k=meta["k"],
        aux_k=meta["auxk"],
        aux_weight=meta["auxk_coef"],
        dead_tokens=meta["dead_toks_threshold"],
        batch_size=meta["batch"],
        iterations=meta["steps"],
        learning_rate=meta["lr"],
    )
    draws = recorded(extra, "x") | {"sample.0": extra["sample"], "encoder.0": extra["init.encoder.weight"]}
    with watched(draws) as seen:
        autoencoder = eraser.trained(extra["sample"], overpaint.blocks.draws.Draws(0))
    traced = by_name(seen)
    for step in range(meta["steps"]):
        for name in ("loss", "mse", "aux", "l0"):
            theirs = extra[f"{name}.{step}"]
            torch.testing.assert_close(traced[name][step].reshape(1), theirs, rtol=1e-5, atol=1e-7)
        assert torch.equal(traced["silent"][step], extra[f"stats.{step}"])
    for key in (key for key in extra if key.startswith("grad.")):
        _, step, name = key.split(".", 2)
        assert distance(traced["gradients"][int(step)][name], extra[key]) < 1e-4, key
    assert distance(geometric_median(extra["sample"]), extra["init.pre_bias"]) < 1e-5
    encoder = extra["init.encoder.weight"]
    starts = {"encoder.weight": encoder, "decoder.weight": (encoder / encoder.norm(dim=1, keepdim=True)).T}
    for name, trained in autoencoder.masters.items():
        start = starts.get(name, extra["init.pre_bias"] if name == "pre_bias" else torch.zeros_like(trained))
        assert distance(trained.detach(), result[name], start) < 1e-3, name


def test_the_intended_loss_reconstructs_the_activations(recorded_autoencoder):
    autoencoder, x = recorded_autoencoder
    settings = {"scale": 2.0, "k": 4, "aux_weight": 0.5, "dead_after": 3, "official": False}
    never, always = (torch.full((len(autoencoder),), count) for count in (0, 100))
    loss = Objective(aux_k=5, silent=never, **settings)(autoencoder, x)
    made = autoencoder.decode(autoencoder.encode(x, 4))
    torch.testing.assert_close(loss, 2 * (made - x).square().mean())  # no latent is dead
    with watched() as seen:
        Objective(aux_k=5, silent=always, **settings)(autoencoder, x)
    unused = ~(largest(autoencoder.scores(x), 4) > 1e-3).any(dim=0)
    revived = largest(autoencoder.scores(x) * unused, 5).relu()
    rest = (x - made).detach()
    relative = (autoencoder.directions(revived) - rest).square().mean() / (rest - rest.mean(0)).square().mean()
    torch.testing.assert_close(by_name(seen)["aux"][0], (0.5 * relative).detach())


def test_activations_are_those_that_the_official_code_collects(tiny_sd, golden):
    meta, _, extra = golden("steerers/train_aux")
    rows = activations(tiny_sd, [meta["layer"]], tiny_sd.padded_ids(meta["prompts"])).flatten(0, 1)
    distances = torch.cdist(extra["x.0"], rows, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(dim=1).values.max() < 1e-5


def test_training_lowers_the_error(tiny_sd, steerers):
    rows = activations(tiny_sd, [1], tiny_sd.padded_ids(["a dog on the ground", "a church", "a ship"])).flatten(0, 1)
    with watched() as seen:
        steerers(iterations=60, batch_size=64, learning_rate=1e-2).trained(rows, overpaint.blocks.draws.Draws(0))
    losses = by_name(seen)["mse"]
    assert losses[-1] < 0.3 * losses[0]


def autoencoder_file(golden, folder):
    _, tensors, _ = golden("steerers/train_aux")
    save_file(tensors, folder / "autoencoder.safetensors")
    return str(folder / "autoencoder.safetensors")


def erased(golden, model, folder, **values):
    meta, _, _ = golden("steerers/gen_nudity")
    file = autoencoder_file(golden, folder)
    settings = {"text": meta["concept"], "strength": meta["strength"], "layers": [meta["layer"]], "autoencoder": file}
    return overpaint.erase(model, "steerers", erase=["nudity"], **(settings | values))


def test_steering_and_images_are_the_official_ones(tiny_sd, golden, tmp_path):
    meta, result, extra = golden("steerers/gen_nudity")
    erasure = erased(golden, tiny_sd, tmp_path)
    assert distance(erasure.parts["0"], extra["s"]) < 1e-5
    with erasure.attached(tiny_sd), torch.no_grad():
        positive, negative = tiny_sd.encode([meta["prompt"]]), tiny_sd.unconditional()
        assert distance(positive, extra["embeds.0"]) < 1e-5 and distance(negative, extra["embeds.1"]) < 1e-5
        guidance = tiny_sd.guidance(tiny_sd, positive, negative, meta["guidance_scale"], [meta["prompt"]])
        final = tiny_sd.denoise(extra["x_T"], guidance, "pndm", meta["steps"])
    assert distance(final, result["final"]) < 1e-4


def test_no_strength_changes_nothing(tiny_sd, golden, tmp_path):
    plain = tiny_sd.encode(["a dog"])
    with erased(golden, tiny_sd, tmp_path, strength=0.0).attached(tiny_sd):
        assert torch.equal(tiny_sd.encode(["a dog"]), plain)


def test_two_steerers_add_up_and_come_off(tiny_sd, golden, tmp_path):
    one, two = (erased(golden, tiny_sd, tmp_path, text=text) for text in ("dog", "ship"))
    both = erased(golden, tiny_sd, tmp_path, text="dog")
    both.parts["0"] = one.parts["0"] + two.parts["0"]
    plain = tiny_sd.encode(["a cat"]), tiny_sd.unconditional()
    with one.attached(tiny_sd), two.attached(tiny_sd):
        stacked = tiny_sd.encode(["a cat"]), tiny_sd.unconditional()
    with both.attached(tiny_sd):
        for ours, theirs in zip((tiny_sd.encode(["a cat"]), tiny_sd.unconditional()), stacked, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert torch.equal(tiny_sd.encode(["a cat"]), plain[0]) and torch.equal(tiny_sd.unconditional(), plain[1])


def test_both_encoders_of_sdxl_are_steered(tiny_sdxl):
    settings = SMALL | {"layers": [0, 1]}
    erasure = overpaint.erase(tiny_sdxl, "steerers", erase=["dog"], **settings)
    assert [tuple(part.shape) for part in erasure.parts.values()] == [(77, 16), (77, 32)]
    plain = tiny_sdxl.parts(tiny_sdxl.encode(["a cat"]))
    with erasure.attached(tiny_sdxl):
        steered = tiny_sdxl.parts(tiny_sdxl.encode(["a cat"]))
        assert torch.equal(tiny_sdxl.unconditional(), torch.zeros_like(tiny_sdxl.unconditional()))  # as in its pipeline
    moved = steered["clip"] - plain["clip"]
    torch.testing.assert_close(moved[0, :, :16], erasure.parts["0"], rtol=0, atol=1e-5)  # its output is what is read
    assert moved[0, :, 16:].norm() > 0 and not torch.equal(steered["pooled"], plain["pooled"])


def test_files_of_eleuthers_library_are_read(tiny_sd, golden, tmp_path):
    _, tensors, _ = golden("steerers/train_aux")
    ours = erased(golden, tiny_sd, tmp_path)
    renamed = {"W_dec": tensors["decoder.weight"].T.contiguous(), "encoder.weight": tensors["encoder.weight"]}
    renamed |= {"encoder.bias": tensors["latent_bias"], "b_dec": tensors["pre_bias"]}
    save_file(renamed, tmp_path / "sae.safetensors")
    theirs = erased(golden, tiny_sd, tmp_path, autoencoder=str(tmp_path / "sae.safetensors"))
    assert torch.equal(ours.parts["0"], theirs.parts["0"])


def test_images_without_guidance_are_steered_too(tiny_sd, golden, tmp_path):
    plain = tiny_sd.sample(["a dog"], [0], steps=2, guidance_scale=1)
    with erased(golden, tiny_sd, tmp_path).attached(tiny_sd):
        steered = tiny_sd.sample(["a dog"], [0], steps=2, guidance_scale=1)
    assert not np.array_equal(np.asarray(plain[0]), np.asarray(steered[0]))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"layers": [7]}, "layers takes one block for each text encoder"),
        ({"layers": [0, 1]}, "layers takes one block for each text encoder"),
        ({"k": 5000}, "k=5000 is more than the 192 latents"),
        ({"texts": None}, "needs texts"),
        ({"autoencoder": "nowhere.safetensors"}, "autoencoder=nowhere.safetensors is not a readable"),
        ({"iterations": 0}, "iterations"),
    ],
)
def test_bad_values_are_refused(values, told, tiny_sd):
    with pytest.raises(overpaint.UserError, match=told):
        overpaint.erase(tiny_sd, "steerers", erase=["dog"], **(SMALL | values))


def test_an_autoencoder_of_another_width_is_refused(tiny_sd, tmp_path):
    shapes = {"encoder.weight": (8, 5), "decoder.weight": (5, 8), "latent_bias": (8,), "pre_bias": (5,)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "other.safetensors")
    with pytest.raises(overpaint.UserError, match=r"encoder.weight is \(8, 5\), and the model needs \(8, 48\)"):
        overpaint.erase(tiny_sd, "steerers", erase=["dog"], autoencoder=str(tmp_path / "other.safetensors"), layers=[1])
