"""The SDXL family against diffusers' own pipeline, and erasures from SDXL."""

import copy
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import overpaint
from official import watched
from overpaint.cli import main
from overpaint.models.guidance import Guidance

PROMPTS = ["a photo of a dog", "a ship, at night"]


def official(model, noise, **arguments):
    pipeline = model.pipeline
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(PROMPTS, latents=noise, num_inference_steps=3, guidance_scale=5.0, **arguments).images
    return [np.asarray(image, dtype=int) for image in images]


@pytest.mark.parametrize("negative", ["", "a house"])
@pytest.mark.parametrize("size", [None, 64])
@pytest.mark.parametrize("force_zeros", [True, False])
def test_images_are_those_of_the_pipeline(tiny_sdxl, negative, size, force_zeros):
    model, pixels = tiny_sdxl, size or tiny_sdxl.image_size
    before = model.pipeline.config.force_zeros_for_empty_prompt
    model.pipeline.register_to_config(force_zeros_for_empty_prompt=force_zeros)
    try:
        theirs = official(
            model, model.noise([3, 4], size), height=pixels, width=pixels, negative_prompt=negative or None
        )
        ours = model.sample(
            PROMPTS, [3, 4], steps=3, guidance_scale=5.0, scheduler="euler", size=size, negative_prompt=negative
        )
    finally:
        model.pipeline.register_to_config(force_zeros_for_empty_prompt=before)
    for one, other in zip(ours, theirs, strict=True):
        assert one.size == (pixels, pixels)
        assert np.abs(np.asarray(one, dtype=int) - other).max() <= 1


def test_encoding_is_that_of_the_pipeline(tiny_sdxl):
    rows, _, pooled, _ = tiny_sdxl.pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    ours = tiny_sdxl.encode(PROMPTS)
    assert ours.shape == (2, tiny_sdxl.tokens + 1, rows.shape[-1])
    assert torch.equal(ours[:, :-1], rows)
    assert torch.equal(ours[:, -1, : pooled.shape[-1]], pooled) and not ours[:, -1, pooled.shape[-1] :].any()


def test_the_pooled_vector_reaches_the_network(tiny_sdxl):
    latents, embeds = tiny_sdxl.noise([0]), tiny_sdxl.encode(["dog"])
    other = torch.cat([embeds[:, :-1], tiny_sdxl.encode(["ship"])[:, -1:]], dim=1)
    with torch.no_grad():
        assert not torch.equal(tiny_sdxl.predict(latents, 500, embeds), tiny_sdxl.predict(latents, 500, other))


def test_names_are_those_on_disk(tiny_sdxl, tiny_sdxl_folder):
    def stored(part, name):
        return set(load_file(tiny_sdxl_folder / part / name))

    names = set(tiny_sdxl.named_parameters())
    assert set(tiny_sdxl.denoiser_names) == stored("unet", "diffusion_pytorch_model.safetensors")
    second = {n for n in names if n.startswith("text_encoder_2.")}
    assert {n.removeprefix("text_encoder_2.") for n in second} == stored("text_encoder_2", "model.safetensors")
    first = set(tiny_sdxl.text_encoder_names) - second
    written = stored("text_encoder", "model.safetensors")  # without a prefix since transformers 5, with it before
    assert first == {f"text_model.{n.removeprefix('text_model.')}" for n in written}


def test_a_placeholder_with_a_words_own_rows_is_that_word(tiny_sdxl):
    plain = tiny_sdxl.encode(["a photo of a dog"])
    row = tiny_sdxl.token_table[tiny_sdxl.token_ids("dog")[1]].clone().requires_grad_()
    with tiny_sdxl.learned_tokens({"<x>": row}):
        learned = tiny_sdxl.encode(["a photo of a <x>"])
        assert torch.equal(learned, plain)
        learned[0, -1].sum().backward()  # the pooled vector sees the second encoder's part alone
    assert row.grad[16:].any() and not row.grad[:16].any()
    assert torch.equal(tiny_sdxl.encode(["a photo of a dog"]), plain)
    with (
        pytest.raises(overpaint.UserError, match=r"\(16,\), sdxl takes \(48,\)"),
        tiny_sdxl.learned_tokens({"<x>": row[:16]}),
    ):
        pass


def test_the_tables_own_rows_give_the_plain_encoding(tiny_sdxl):
    ids = tiny_sdxl.padded_ids(PROMPTS)
    assert torch.equal(tiny_sdxl.encode_embeddings(tiny_sdxl.token_embeddings(ids), ids), tiny_sdxl.encode(PROMPTS))


def test_the_autoencoder_stays_in_single_precision(tiny_sdxl_folder):
    model = overpaint.load_model(str(tiny_sdxl_folder), dtype="float16")
    assert (model.dtype, model.vae.dtype) == (torch.float16, torch.float32)
    (image,) = model.to_images(model.noise([0]))
    assert model.to_latents([image]).dtype == torch.float16


def test_pictures_are_decoded_and_encoded_one_at_a_time(tiny_sdxl, monkeypatch):
    """A batch of images of 1024 pixels takes tens of gigabytes of activations."""
    counts, vae = [], tiny_sdxl.vae
    for part in (vae.encoder, vae.decoder):
        plain = part.forward
        monkeypatch.setattr(part, "forward", lambda x, *rest, plain=plain: counts.append(len(x)) or plain(x, *rest))
    images = tiny_sdxl.to_images(tiny_sdxl.noise([0, 1, 2]))
    assert tiny_sdxl.to_latents(images).shape[0] == len(images) == 3
    assert counts == [1] * 6


def test_refiners_are_refused(tiny_sdxl):
    pipeline = copy.copy(tiny_sdxl.pipeline)
    pipeline.text_encoder = None
    with pytest.raises(overpaint.UserError, match="refiner"):
        type(tiny_sdxl)(pipeline)


@pytest.mark.parametrize("variant", ["legacy", "current"])
def test_uce_maps_the_concept_to_itself_or_by_one_pairs_closed_form(tiny_sdxl, variant):
    same = overpaint.erase(tiny_sdxl, "uce", variant=variant, erase=["Dog"], default_anchor="dog", retain=["ship"])
    with same.attached(tiny_sdxl):
        assert all(torch.equal(tensor, same.base[name]) for name, tensor in same.tensors.items())
    if variant == "legacy":
        return
    edit = overpaint.erase(tiny_sdxl, "uce", variant=variant, erase=["dog"], anchor="cat", lamb=0.1)
    position = tiny_sdxl.last_subject_token("dog")
    k, g = (tiny_sdxl.encode([text])[0, position].double() for text in ("dog", "cat"))
    with edit.attached(tiny_sdxl):
        assert len(edit.changes) == len(tiny_sdxl.projections("key", "value")) == 16
        for name, tensor in edit.tensors.items():
            W = edit.base[name].double()
            expected = W + torch.outer(W @ (g - k), k) / (0.1 + k @ k)
            torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("train", ["x", "strict", "u", "full"])
def test_esd_trains_as_its_sdxl_script(tiny_sdxl, train):
    """x_t is one guided Euler step of the base, scaled for the network. The first loss is η² MSE(e0(c), e0(∅))."""
    noise, scheduler = tiny_sdxl.noise([7]), tiny_sdxl.scheduler("euler")
    scheduler.set_timesteps(4)
    small = {"iterations": 1, "rollout_steps": 4, "learning_rate": 1e-3, "negative_guidance": 0.5}
    with watched({"k.0": torch.tensor([1]), "x_T.0": noise}) as seen:
        erasure = overpaint.erase(tiny_sdxl, "esd", variant="sdxl", train=train, erase=["dog"], **small)
    x_t, t, loss = seen[0]["x_t"], seen[0]["t"], seen[1]["loss"]
    assert t == scheduler.timesteps[1]
    high, low = scheduler.sigmas[:2].tolist()
    with torch.no_grad():
        start, first = noise * (1 + high**2) ** 0.5, scheduler.timesteps[0]
        guidance = Guidance(tiny_sdxl, tiny_sdxl.encode(["dog"]), torch.zeros_like(tiny_sdxl.encode([""])), 3.0)
        stepped = start + (low - high) * guidance(start / (1 + high**2) ** 0.5, first, 0)
        torch.testing.assert_close(x_t, stepped / (1 + low**2) ** 0.5, rtol=1e-4, atol=1e-4)
        named, nothing = (tiny_sdxl.predict(x_t, t, tiny_sdxl.encode([text])) for text in ("dog", ""))
    torch.testing.assert_close(loss, 0.25 * torch.nn.functional.mse_loss(named, nothing), rtol=1e-4, atol=0)
    assert all("blocks." in name or "mid_block." in name for name in erasure.changes)
    assert not any("emb" in name for name in erasure.changes)


def test_an_erasure_is_exported_as_a_pipeline(tiny_sdxl, tiny_sdxl_folder, tmp_path, monkeypatch):
    erasure = overpaint.erase(tiny_sdxl, "uce", erase=["dog"], anchor="cat")
    erasure.save(tmp_path / "e.safetensors")
    arguments = ["model=local", "model.detector=null", f"model.path={tiny_sdxl_folder}"]
    arguments += [f"erasure={tmp_path / 'e.safetensors'}", f"out={tmp_path / 'exported'}"]
    monkeypatch.setattr(sys, "argv", ["overpaint", "export", *arguments])
    main()
    exported = overpaint.load_model(str(tmp_path / "exported"))
    with erasure.attached(tiny_sdxl):
        expected = tiny_sdxl.named_parameters()
        for name, tensor in exported.named_parameters().items():
            assert torch.equal(tensor.data, expected[name].data), name


def test_a_pipeline_in_half_precision_still_works_after_it_is_loaded(tiny_sdxl_folder):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(tiny_sdxl_folder, torch_dtype=torch.float16)
    pipeline.vae.register_to_config(force_upcast=True)
    pipeline.unet.requires_grad_(False)  # as loading does: torch 2.6 then rounds differently on some CPUs
    settings = {"num_inference_steps": 1, "height": 32, "width": 32, "output_type": "np"}
    pipeline.set_progress_bar_config(disable=True)

    def images():
        return pipeline("a dog", generator=torch.Generator().manual_seed(0), **settings).images

    before, weights = images(), pipeline.vae.decoder.conv_in.weight.clone()
    model = overpaint.load_model(pipeline)
    assert (pipeline.vae.dtype, model.vae.dtype) == (torch.float16, torch.float32)
    assert not pipeline.vae.use_slicing and model.vae.use_slicing
    assert torch.equal(model.vae.decoder.conv_in.weight, weights.float())
    assert np.array_equal(images(), before)


def test_the_autoencoder_of_a_pipeline_is_used_without_a_copy_of_its_weights(tiny_sdxl_folder):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(tiny_sdxl_folder)
    model = overpaint.load_model(pipeline)
    assert model.vae.decoder.conv_in.weight is pipeline.vae.decoder.conv_in.weight
    assert model.vae.use_slicing and not pipeline.vae.use_slicing
