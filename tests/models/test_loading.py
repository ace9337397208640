"""Loading: a model runs with the weights that its files hold, whichever version of the libraries wrote them."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import overpaint
from overpaint.models import loading
from overpaint.models.sources import resolve

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
NORM = "conv_norm_out.weight"


@pytest.fixture
def folder(goldens, tmp_path):
    """A copy of the tiny pipeline."""
    return shutil.copytree(goldens / "tiny_sd", tmp_path / "model")


def rewrite(file, change):
    """Rewrite a safetensors file by a function of its tensors."""
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)


def test_the_loaded_weights_are_the_stored_ones(folder, tiny_sd):
    stored = load_file(folder / UNET)
    loaded = overpaint.load_model(str(folder)).named_parameters()
    assert all(torch.equal(loaded[name].data, tensor) for name, tensor in stored.items())
    text = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(folder / TEXT).items()}
    assert all(torch.equal(loaded[name].data, tensor) for name, tensor in text.items() if name in loaded)
    assert loaded.keys() == stored.keys() | (text.keys() & loaded.keys()) and len(text.keys() & loaded.keys()) > 20


def test_text_encoder_files_of_every_version_of_transformers_load(folder, tiny_sd):
    """Newer versions write names without the prefix ``text_model.``, which older versions write and need."""
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
    """transformers 5.0 does this with a file of newer versions: it reports every tensor as missing."""
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


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_check_of_a_new_model_holds_one_network_at_a_time(request, family, folder, monkeypatch, tmp_path):
    """All networks of SDXL together take 14 GB in single precision, which a machine that only plans may lack."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from overpaint.models.sources import fingerprint_model

    place = folder if family == "sd" else shutil.copytree(request.getfixturevalue("tiny_sdxl_folder"), tmp_path / "xl")
    parts, held, load = [], [], loading.load_component

    def load_component(*asked):
        networks = [part for part in parts if isinstance(part, torch.nn.Module)]
        held.append(sum(weight.numel() for part in networks for weight in part.parameters() if not weight.is_meta))
        parts.append(load(*asked))
        return parts[-1]

    monkeypatch.setattr(loading, "load_component", load_component)
    fingerprint_model(str(place))
    assert held == [0] * {"sd": 5, "sdxl": 7}[family]


def test_a_folder_of_variants_alone_says_so(folder):
    """As saved with ``variant="fp16"``."""
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(overpaint.UserError, match=r"model.fp16.safetensors is not read: save .* without variant="):
        overpaint.load_model(str(folder))


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


def test_a_pipeline_with_a_lora_beside_its_weights_is_refused(goldens):
    """Its factors would count as layers of the network; fused, they are a part of the weights."""
    from peft import LoraConfig

    pipeline = overpaint.load_model(str(goldens / "tiny_sd")).pipeline
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]))
    with pytest.raises(overpaint.UserError, match="the pipeline's unet has a LoRA beside its weights; call fuse_lora"):
        overpaint.load_model(pipeline)


def test_parts_that_do_not_fit_each_other_are_told(goldens):
    pipeline = overpaint.load_model(str(goldens / "tiny_sd")).pipeline
    pipeline.tokenizer.add_tokens([f"<{n}>" for n in range(3)])
    with pytest.raises(overpaint.UserError, match=r"the tokenizer has \d+ words and the text encoder"):
        overpaint.load_model(pipeline)


def test_the_shipped_model_is_a_folder():
    assert resolve("testbed").endswith("pipeline")
