"""A damaged pipeline folder gives an error of one sentence; no model runs with weights other than the stored ones."""

import copy
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import overpaint
from overpaint.cli import main
from overpaint.models import loading
from overpaint.models.sources import resolve

UNET, TEXT, VAE = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "vae/config.json"
NORM = "conv_norm_out.weight"


@pytest.fixture
def folder(goldens, tmp_path):
    """A copy of the tiny pipeline."""
    return shutil.copytree(goldens / "tiny_sd", tmp_path / "model")


def edit(file, change):
    """Rewrite a JSON file by a function of its content."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def rewrite(file, change):
    """Rewrite a safetensors file by a function of its tensors."""
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)


def truncate(file, size):
    file.write_bytes(file.read_bytes()[:size])


def sharded(folder):
    """Remove one of two shards."""
    unet = folder / "unet"
    (folder / UNET).rename(unet / "diffusion_pytorch_model-00001-of-00002.safetensors")
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def outside(folder):
    (folder / UNET).unlink()
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "an index that is no JSON": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is not readable"),
    "an index that is a list": (lambda f: (f / "model_index.json").write_text("[]"), "names no pipeline class"),
    "an index nested deeply": (lambda f: (f / "model_index.json").write_text("[" * 10**6), "is not readable JSON"),
    "binary in the index": (lambda f: (f / "model_index.json").write_bytes(b"\xff\xfe\x00"), "is not readable JSON"),
    "an unknown pipeline": (
        lambda f: edit(f / "model_index.json", lambda c: c.update(_class_name="StableDiffusionPipelin")),
        "did you mean 'StableDiffusionPipeline'",
    ),
    "a class that is a number": (
        lambda f: edit(f / "model_index.json", lambda c: c.update(_class_name=5)),
        "names no pipeline class",
    ),
    "no tokenizer in the index": (
        lambda f: edit(f / "model_index.json", lambda c: c.pop("tokenizer")),
        "names no tokenizer, which StableDiffusionPipeline needs",
    ),
    "a null part": (
        lambda f: edit(f / "model_index.json", lambda c: c.update(vae=[None, None])),
        "names no vae",
    ),
    "a library of its own": (
        lambda f: edit(f / "model_index.json", lambda c: c.update(unet=["os", "system"])),
        "unknown library 'os'",
    ),
    "a class that is no network": (
        lambda f: edit(f / "model_index.json", lambda c: c.update(unet=["diffusers", "UNet3000"])),
        "diffusers has no class UNet3000",
    ),
    "another network": (
        lambda f: edit(f / "model_index.json", lambda c: c.update(unet=["diffusers", "AutoencoderKL"])),
        "unet",
    ),
    "no folder of a part": (lambda f: shutil.rmtree(f / "vae"), "vae holds no safetensors weights"),
    "no weights": (lambda f: (f / UNET).unlink(), "unet holds no safetensors weights"),
    "weights of a variant only": (
        lambda f: (f / TEXT).rename(f / "text_encoder/model.fp16.safetensors"),
        "text_encoder holds no safetensors weights",
    ),
    "a missing shard": (sharded, "lacks the weight file diffusion_pytorch_model-00002-of-00002"),
    "shards outside the folder": (outside, "names weight files outside its folder"),
    "empty weights": (lambda f: (f / UNET).write_bytes(b""), "is not a readable safetensors file"),
    "a cut download": (lambda f: truncate(f / UNET, 100_000), "is not a readable safetensors file"),
    "weights that are text": (lambda f: (f / UNET).write_text("<html>" * 100), "is not a readable safetensors file"),
    "a missing tensor": (
        lambda f: rewrite(f / UNET, lambda t: t.pop(NORM)),
        f"the weights of unet lack 1 tensors, such as {NORM}",
    ),
    "a missing tensor of the text encoder": (
        lambda f: rewrite(f / TEXT, lambda t: t.pop(next(n for n in t if n.endswith("final_layer_norm.weight")))),
        "the weights of text_encoder lack 1 tensors, such as .*final_layer_norm.weight",
    ),
    "an unknown tensor": (
        lambda f: rewrite(f / UNET, lambda t: t.update(extra=torch.zeros(2))),
        "the weights of unet hold 1 tensors that its config.json has no place for, such as extra",
    ),
    "a tensor of another shape": (
        lambda f: rewrite(f / UNET, lambda t: t.update({NORM: torch.zeros(7)})),
        "unet",
    ),
    "NaN": (
        lambda f: rewrite(f / UNET, lambda t: t[NORM].fill_(float("nan"))),
        f"unet has non-finite weights in float32, such as {NORM}",
    ),
    "an infinite word": (
        lambda f: rewrite(f / TEXT, lambda t: next(iter(t.values())).view(-1)[:1].fill_(float("inf"))),
        "text_encoder has non-finite weights",
    ),
    "no configuration": (lambda f: (f / VAE).unlink(), "vae has no config.json"),
    "a configuration that is no JSON": (lambda f: (f / VAE).write_text("{"), "vae cannot be loaded"),
    "a configuration of other sizes": (
        lambda f: edit(f / "unet/config.json", lambda c: c.update(cross_attention_dim=7)),
        "unet",
    ),
    "a configuration of wrong types": (
        lambda f: edit(f / "unet/config.json", lambda c: c.update(block_out_channels="many")),
        "unet cannot be loaded",
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "cannot be loaded"),
    "a scheduler of strings": (
        lambda f: edit(f / "scheduler/scheduler_config.json", lambda c: c.update(beta_start="low")),
        "cannot be loaded",
    ),
    "a prediction of another kind": (
        lambda f: edit(f / "scheduler/scheduler_config.json", lambda c: c.update(prediction_type="sample")),
        "unknown prediction_type 'sample'",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "cannot be loaded"),
    "a tokenizer of one bracket": (lambda f: [t.write_text("{") for t in (f / "tokenizer").glob("*")], "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_told_in_one_sentence(folder, damage):
    change, said = DAMAGES[damage]
    change(folder)
    with pytest.raises(overpaint.UserError, match=said) as raised:
        overpaint.load_model(str(folder))
    message = str(raised.value)
    assert "\n" not in message and str(folder) in message and len(message) < 600


def test_it_is_told_before_anything_runs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rewrite(folder / UNET, lambda t: t.pop(NORM))
    arguments = [
        "model=local",
        "model.detector=null",
        f"model.path={folder}",
        "method=uce",
        "concepts.erase=[dog]",
        "store=outputs",
    ]
    for command in ("plan", "run"):
        monkeypatch.setattr(sys, "argv", ["overpaint", command, *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 2 and NORM in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_the_loaded_weights_are_the_stored_ones(folder, tiny_sd):
    stored = load_file(folder / UNET)
    loaded = overpaint.load_model(str(folder)).named_parameters()
    assert all(torch.equal(loaded[name].data, tensor) for name, tensor in stored.items())
    text = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(folder / TEXT).items()}
    assert all(torch.equal(loaded[name].data, tensor) for name, tensor in text.items() if name in loaded)
    assert loaded.keys() == stored.keys() | (text.keys() & loaded.keys()) and len(text.keys() & loaded.keys()) > 20


def test_text_encoder_files_of_every_version_of_transformers_load(folder, tiny_sd):
    """Version 5 writes names without the prefix ``text_model.``, which earlier versions write and need."""
    plain = {name.removeprefix("text_model."): tensor for name, tensor in load_file(folder / TEXT).items()}
    for prefix in ("", "text_model."):
        (folder / TEXT).unlink()
        save_file({prefix + name: tensor for name, tensor in plain.items()}, folder / TEXT, metadata={"format": "pt"})
        assert torch.equal(overpaint.load_model(str(folder)).encode(["dog"]), tiny_sd.encode(["dog"]))


def test_published_files_of_stable_diffusion_load(folder, tiny_sd):
    """They contain a buffer that is no longer a weight, and old names of the autoencoder's attention layers."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for name in [n for n in tensors if "mid_block.attentions" in n]:
            layer, _, leaf = name.rpartition(".")
            before = next(
                (f"{layer.removesuffix(new)}{was}.{leaf}" for new, was in old.items() if layer.endswith(new)), name
            )
            tensors[before] = tensors.pop(name)

    rewrite(folder / "vae/diffusion_pytorch_model.safetensors", rename)
    rewrite(folder / TEXT, lambda t: t.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))
    model = overpaint.load_model(str(folder))
    assert torch.equal(model.encode(["dog"]), tiny_sd.encode(["dog"]))
    for one, other in zip(model.vae.parameters(), tiny_sd.vae.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_network_that_a_library_left_at_random_gets_its_weights(tiny_sd, goldens):
    """transformers 4 does this with a file of version 5: it reports every tensor as missing."""
    part = copy.deepcopy(tiny_sd.text_encoder)
    wanted = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    for parameter in part.parameters():
        parameter.data.normal_()
    found, info = loading.renamed(part, [goldens / "tiny_sd" / TEXT], {"missing_keys": list(wanted)})
    assert not info.get("missing_keys") and all(torch.equal(found.state_dict()[name], t) for name, t in wanted.items())


def test_precisions_that_the_weights_overflow_are_told(folder):
    rewrite(folder / UNET, lambda t: t[NORM].fill_(1e6))
    assert overpaint.load_model(str(folder)).dtype == torch.float32
    with pytest.raises(overpaint.UserError, match="unet has non-finite weights in float16"):
        overpaint.load_model(str(folder), dtype="float16")


def test_variants_beside_the_weights_do_not_count(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from overpaint.models.sources import fingerprint_model

    before = fingerprint_model(str(folder))
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not loaded")
    fingerprint_model.cache_clear()
    assert fingerprint_model(str(folder)) == before
    rewrite(folder / UNET, lambda t: t[NORM].add_(1))
    fingerprint_model.cache_clear()
    assert fingerprint_model(str(folder)) != before


# --- pipeline objects ------------------------------------------------------------------------------------------


def test_a_pipeline_object_is_a_model(goldens, tiny_sd):
    pipeline = overpaint.load_model(str(goldens / "tiny_sd")).pipeline
    model = overpaint.load_model(pipeline)
    assert model.family == "sd" and model.pipeline is pipeline
    assert torch.equal(model.encode(["dog"]), tiny_sd.encode(["dog"]))
    assert overpaint.load_model(pipeline, dtype="bfloat16").dtype == torch.bfloat16


def test_pipeline_objects_that_cannot_be_used_are_refused(goldens, tiny_sd):
    pipeline = copy.copy(tiny_sd.pipeline)
    pipeline.vae = None
    with pytest.raises(overpaint.UserError, match="the pipeline has no vae"):
        overpaint.load_model(pipeline)
    with pytest.raises(overpaint.UserError, match="a folder, a hub id or a diffusers pipeline, got int"):
        overpaint.load_model(5)
    pipeline = overpaint.load_model(str(goldens / "tiny_sd")).pipeline
    pipeline.unet.conv_norm_out.weight.data.fill_(float("nan"))
    with pytest.raises(overpaint.UserError, match="unet has non-finite weights"):
        overpaint.load_model(pipeline)


def test_parts_that_do_not_fit_each_other_are_told(goldens):
    pipeline = overpaint.load_model(str(goldens / "tiny_sd")).pipeline
    pipeline.tokenizer.add_tokens([f"<{n}>" for n in range(3)])
    with pytest.raises(overpaint.UserError, match=r"the tokenizer has \d+ words and the text encoder"):
        overpaint.load_model(pipeline)


def test_the_shipped_model_is_a_folder():
    assert resolve("testbed").endswith("pipeline")
