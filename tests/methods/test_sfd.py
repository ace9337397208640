"""SFD against a recorded run of its official code, with the same random draws, its sampler, and its identities."""

import numpy as np
import pytest
import torch

import overpaint
from official import by_name, distance, flat, parameters, watched
from overpaint.blocks.draws import Draws
from overpaint.blocks.training import Student
from overpaint.commands.grids import planned
from overpaint.grid.concepts import Request
from overpaint.grid.registry import component
from overpaint.methods.sfd import Prompts, denoised, discrepancy, one_step, replaced

SMALL = {"iterations": 1, "batch_size": 2, "learning_rate": 1e-3, "score_learning_rate": 1e-3, "dropout": 0.0}


def traced_erase(model, records=None, **arguments):
    """The erasure and the traced values, as lists by name."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "sfd", **({"erase": ["dog"], "anchor": "cat"} | SMALL | arguments))
    return erasure, by_name(seen)


def draws_of(meta, extra):
    """The recorded draws under our names: those of a network's use are numbered by their place in the sequence there."""
    found, counts, sequence = {}, {}, meta["sequence"]

    def put(name, value):
        found[f"{name}.{counts.get(name, 0)}"] = value
        counts[name] = counts.get(name, 0) + 1

    for place, use in enumerate(sequence):
        if use["kind"] != "G":
            continue
        put("z", extra[f"z.{place}"])
        put("noise", extra[f"noise.{place + 1}"])
        put("t", torch.tensor(sequence[place + 1]["t"]))
        true = sequence[place + 2] if place + 2 < len(sequence) and sequence[place + 2]["kind"] == "phi" else None
        prompts, overrides = use["contexts"], (true or use)["contexts"]
        negatives = (true or {}).get("neg") or sequence[place + 1]["neg"] or [""] * len(prompts)
        kinds = ("retain", "forget")
        put(kinds[counts["z"] % 2 == 0], list(zip(prompts, overrides, negatives, strict=True)))
    return found


@pytest.mark.parametrize("tag", ["celebrity"])
def test_official_training(tag, tiny_sd_float64, golden):
    model = tiny_sd_float64
    meta, weights, extra = golden(f"sfd/{tag}")
    every = meta["every"]
    plain = parameters(model, model.denoiser_names)
    scaled = [(ending, scale) for ending, scale in meta["generator_start"]]
    start = {n: p * next((s for ending, s in scaled if n.endswith(ending)), 1.0) for n, p in plain.items()}
    uses = [name for name, used in zip(("score", "fake", "true"), meta["use_neg"], strict=True) if used]
    erasure, seen = traced_erase(
        model,
        draws_of(meta, extra) | {"generator.0": start},
        erase=[meta["concept"]],
        anchor=meta["override"],
        captions=meta["retain"],
        forget_prompts=meta["forget"],
        override_prompts=meta["overrides"],
        keywords=meta["pos"],
        negative_prompts=meta["neg"],
        negative_in=uses,
        retain_negative=meta["sid_w_neg"],
        override_in_fake=meta["sg_w_override"],
        score_retain=meta["coefs"]["sg_remain"],
        score_forget=meta["coefs"]["sg_forget"],
        generator_retain=meta["coefs"]["g_remain"],
        generator_forget=meta["coefs"]["g_forget"],
        score_guidance=meta["kappa"]["train_fake"],
        fake_guidance=meta["kappa"]["eval_fake"],
        true_guidance=meta["kappa"]["eval_real"],
        alpha=float(meta["alpha"]),
        generator_timestep=meta["init_timestep"],
        iterations=meta["iterations"],
        batch_size=meta["batch"],
        score_learning_rate=meta["lr"],
        learning_rate=meta["glr"],
    )
    assert torch.stack(seen["loss"]).tolist() == pytest.approx(extra["losses"].tolist(), rel=1e-4)
    generated, outputs, clean = iter(seen["generated"]), iter(seen["output"]), {"fake": iter(seen["fake"])}
    clean["true"] = iter(seen["true"])
    for place, use in enumerate(meta["sequence"]):
        if use["kind"] == "G":
            ours = next(generated)
        else:
            output = next(outputs)
            ours = next(clean["true" if use["kind"] == "phi" else "fake"]) if use["x0"] else output
        assert distance(ours.flatten()[::every], extra[f"out.{place}"]) < 2e-3, place

    order = meta["tensor_order"]
    for number, gradients in enumerate(seen["gradients"]):
        kind, iteration = ("psi", "G")[number % 2], number // 2
        norms = torch.stack([gradients[name].norm() for name in order])
        assert distance(norms, extra[f"{kind}_grad_norms.{iteration}"]) < 2e-3, (kind, iteration)
        wanted = {
            k.removeprefix(f"{kind}_grad.1."): v for k, v in extra.items() if k.startswith(f"{kind}_grad.{iteration}.")
        }
        if iteration == 1:
            assert len(wanted) == 14
            assert (
                distance(flat({n: gradients[n].flatten()[::every] for n in wanted}, wanted), flat(wanted, wanted))
                < 5e-3
            )
    wanted = {name.removeprefix("G."): tensor for name, tensor in weights.items() if name.startswith("G.")}
    ours = {name: erasure.changes[name].tensor.flatten()[::every] for name in wanted}
    first = {name: start[name].flatten()[::every] for name in wanted}
    assert distance(*(flat(group, wanted) for group in (ours, wanted, first))) < 5e-2


def test_official_sampler(tiny_sd, golden):
    meta, results, extra = golden("sfd/sampler")
    embeds, negative = tiny_sd.encode(meta["contexts"]), tiny_sd.encode(meta["negative"])
    nothing = tiny_sd.encode([""] * len(embeds))
    with torch.no_grad():
        for count in (1, 2, 4):
            ours = one_step(
                tiny_sd, extra["z"], embeds, meta["init_timestep"], count, lambda i, n=count: results[f"redraw.{n}.{i}"]
            )
            assert distance(ours, results[f"sample.{count}"]) < 1e-4, count
        for scale in (1, 4.5):
            for name, without in (("plain", nothing), ("neg", negative)):
                clean, noise, t = results["sample.1"], extra["noise"], extra["t"]
                x_t, output = denoised(tiny_sd, clean, noise, t, embeds, without, scale)
                assert distance(output, results[f"denoise.w{scale}.{name}.eps"]) < 1e-4
                assert distance(tiny_sd.clean_of(output, x_t, t), results[f"denoise.w{scale}.{name}.x0"]) < 1e-4


def test_a_true_score_and_no_override_leave_nothing_to_learn(tiny_sd_float64):
    """ψ = φ with the same guidance and prompts: the generator's loss is zero."""
    values = {"score_learning_rate": 0.0, "anchor": "dog", "generator_forget": 1.0}
    _, seen = traced_erase(
        tiny_sd_float64, erase=["cat"], forget_prompts=["a cat"], override_prompts=["a cat"], **values
    )
    assert all(abs(float(loss)) < 1e-12 for loss in seen["loss"][2:4])
    assert all(float(loss) > 0 for loss in seen["loss"][:2])


@pytest.mark.parametrize("alpha", [1.0, 0.5, 1.2])
def test_the_loss_of_given_predictions(alpha):
    images, true, fake = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(s)) for s in range(3))
    weight = (images - true).abs().mean(dim=(1, 2, 3))
    each = ((true - fake) * ((true - images) - alpha * (true - fake))).sum(dim=(1, 2, 3)) / weight
    torch.testing.assert_close(discrepancy(images, true, fake, alpha), each.mean())
    if alpha == 1:
        simple = ((true - fake) * (fake - images)).sum(dim=(1, 2, 3)) / weight
        torch.testing.assert_close(discrepancy(images, true, fake, alpha), simple.mean())


def test_overrides_replace_the_concept_whatever_its_case():
    assert replaced("A photo of Brad Pitt by BRAD PITT", "brad pitt", "a man") == "A photo of a man by a man"
    request = Request.of(["dog"], "cat", ["ship"])
    prompts = Prompts(component("method", "sfd").build({}), request)
    assert all("dog" in prompt and "cat" in override for prompt, override in prompts.pairs)
    assert not any("dog" in caption for caption in prompts.kept) and any("ship" in caption for caption in prompts.kept)


def test_override_prompts_are_combined_with_every_prompt():
    values = {"forget_prompts": ["a dog", "the dog"], "override_prompts": ["a cat", "a ship"]}
    prompts = Prompts(component("method", "sfd").build(values), Request.of(["dog"]))
    assert prompts.pairs == [("a dog", "a cat"), ("a dog", "a ship"), ("the dog", "a cat"), ("the dog", "a ship")]


def pairs(*erase, anchor="a cat", **values):
    return Prompts(component("method", "sfd").build(values), Request.of(list(erase), [anchor] * len(erase))).pairs


def test_given_prompts_are_used_whether_or_not_they_name_the_concept():
    mixed = ["a starry night", "a dog"]
    assert pairs("dog", forget_prompts=mixed) == [("a starry night", "a starry night"), ("a dog", "a a cat")]
    assert pairs("dog", forget_prompts=mixed[:1], override_prompts=["a night"]) == [("a starry night", "a night")]
    both = pairs("dog", "ship", forget_prompts=mixed, override_prompts=["a night"])
    assert set(both) == {("a starry night", "a night"), ("a dog", "a night")}
    assert all("c++" in prompt for prompt, _ in pairs("c++"))  # made from templates
    assert pairs("dog", "ship", forget_prompts=["dog", "ship"]) == [("dog", "a cat"), ("ship", "a cat")]


@pytest.mark.parametrize("erase", [["dog"], ["cat", "dog"]])
def test_prompts_that_name_no_concept_need_overrides(erase):
    with pytest.raises(overpaint.UserError, match="none of 2 forget_prompts names 'dog'"):
        pairs(*erase, forget_prompts=["a cat", "a starry night"])


def test_keywords_are_put_into_the_prompt_and_not_into_its_override():
    values = {"forget_prompts": ["man", "woman"], "keywords": ["naked"], "negative_prompts": ["nudity"]}
    prompts = Prompts(component("method", "sfd").build(values), Request.of(["nudity"], kind="unsafe"))
    rows = prompts.forget(40, torch.Generator().manual_seed(0))
    assert {row.prompt for row in rows} == {"naked man", "man, naked", "naked woman", "woman, naked"}
    assert all(
        row.override in row.prompt and row.override in ("man", "woman") and row.negative == "nudity" for row in rows
    )


def test_where_negative_prompts_are_used(tiny_sd):
    _, seen = traced_erase(tiny_sd, negative_prompts=["ship"], negative_in=["fake", "true"])
    used = dict(zip(seen["where"], seen["negatives"], strict=False))
    assert used["score"] == ["", ""]
    last = list(zip(seen["where"], seen["negatives"], strict=True))[-2:]
    assert last == [("fake", ["ship", "ship"]), ("true", ["ship", "ship"])]


def test_every_sampler_ends_at_the_generators_image(tiny_sd):
    erasure, _ = traced_erase(tiny_sd)
    with erasure.attached(tiny_sd), torch.no_grad():
        embeds = tiny_sd.encode(["a dog"])
        wanted = one_step(tiny_sd, tiny_sd.noise([3]), embeds, 625)
        (image,) = tiny_sd.to_images(wanted)
        for scheduler, steps, scale in (("dpm", 3, 7.5), ("dpm", 5, 1.0), ("ddim", 4, 3.0)):
            (found,) = tiny_sd.sample(["a dog"], [3], steps=steps, guidance_scale=scale, scheduler=scheduler)
            apart = np.abs(np.asarray(found, int) - np.asarray(image, int)).mean()
            assert apart < (1 if scheduler == "dpm" else 6), (scheduler, apart)


def test_more_steps_redraw_noise_from_the_start_noise(tiny_sd):
    erasure, _ = traced_erase(tiny_sd, sampling_steps=2)
    with erasure.attached(tiny_sd):
        both = tiny_sd.sample(["a dog", "a cat"], [3, 4], steps=2, scheduler="dpm")
        alone = tiny_sd.sample(["a cat"], [4], steps=2, scheduler="dpm")
    assert np.abs(np.asarray(both[1], int) - np.asarray(alone[0], int)).max() <= 1


def test_the_generator_can_start_from_a_file(tiny_sd, tmp_path):
    from safetensors.torch import save_file

    name = next(n for n in tiny_sd.denoiser_names if n.endswith("attn2.to_v.weight"))
    given = {name: 1.5 * tiny_sd.named_parameters()[name].data}
    save_file(given, str(tmp_path / "unet.safetensors"))
    student = Student(tiny_sd, tiny_sd.denoiser_names)
    method = component("method", "sfd").build({"generator": str(tmp_path / "unet.safetensors")})
    method.start(tiny_sd, student, Draws(0))
    assert torch.equal(student.masters[name].data, given[name])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"dropout": 1.5}, "dropout takes a number from 0 to 1"),
        ({"retain_negative": True}, "retain_negative=true needs negative_prompts"),
        ({"highest": 20}, "highest"),
        ({"generator_timestep": 1000}, "generator_timestep"),
        ({"captions": ["a dog"]}, "captions takes prompts that stay"),
        ({"generator": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"negative_in": ["all"]}, "negative_in"),
    ],
)
def test_bad_values_are_refused(values, told, tiny_sd):
    with pytest.raises(overpaint.UserError, match=told):
        traced_erase(tiny_sd, **values)


def test_a_plan_says_that_the_model_itself_is_no_one_step_generator():
    grid = ["concepts=church", "method=none,sfd", "attack=none", "budget=smoke", "engine=inline"]
    said = "method=sfd starts from the model itself"
    assert [note.startswith(said) for note in planned([*grid, "sfd.distil_iterations=0"]).plan.notes].count(True) == 1
    assert not any(note.startswith(said) for note in planned(grid).plan.notes)
