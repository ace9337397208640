"""Published erasures: every format gives the same change, and what does not fit the model is refused."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import overpaint
from command_line import CommandLine
from overpaint.grid.digests import file_digest
from overpaint.models import checkpoints
from published import cross_attention, factors, write_kohya, write_peft


def read(model, path, **values):
    return overpaint.erase(model, "checkpoint", erase=["dog"], file=str(path), **values)


def picture(model):
    return np.asarray(model.sample(["a photo of a dog"], [0], steps=3, guidance_scale=5)[0])


@pytest.fixture(scope="module")
def edited(tiny_sd):
    """Changed tensors of an ESD-x like edit: every key and value of cross-attention."""
    generator = torch.Generator().manual_seed(0)
    own = tiny_sd.named_parameters()
    return {
        name: own[name].data + 0.1 * torch.randn(own[name].shape, generator=generator) * own[name].data.std()
        for name in cross_attention(tiny_sd, "to_k", "to_v")
    }


def assert_is(erasure, tensors):
    assert erasure.changes.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(erasure.tensors[name], tensor), name


def denoiser(model, edited):
    return model.denoiser.state_dict() | edited


def in_names_of(prefix, tensors):
    return {f"{prefix}{name}": tensor.contiguous() for name, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", ["", "unet.", "module."])
def test_changed_tensors_are_read_under_the_names_of_every_format(prefix, tiny_sd, edited, tmp_path):
    save_file(in_names_of(prefix, edited), tmp_path / "esd.safetensors")
    assert_is(read(tiny_sd, tmp_path / "esd.safetensors"), edited)


def test_a_strength_of_what_is_no_lora_and_other_files_are_refused_before_anything_runs(
    tiny_sd, edited, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    overpaint.erase(tiny_sd, "uce", erase=["dog"]).save(tmp_path / "uce.safetensors")
    save_file(edited, tmp_path / "esd.safetensors")
    save_file(edited, tmp_path / "spm.safetensors", {"prompts": "dog", "rank": "1"})
    (tmp_path / "found.csv").write_text("prompt\na\n")
    command = CommandLine(tmp_path)
    grid = ("plan", "method=checkpoint", "concepts=church", "attack=none", "budget=smoke")
    for name in ("uce", "esd", "spm"):
        said = command(*grid, f"checkpoint.file={name}.safetensors", "checkpoint.lora_scale=2", code=2).stderr
        assert (
            f"checkpoint.lora_scale=2 is the strength of a LoRA, and {name}.safetensors is none: leave it out" in said
        )
    said = command(*grid, "checkpoint.file=found.csv", code=2).stderr
    assert "found.csv is not a checkpoint: checkpoint.file takes .safetensors" in said
    torch.save(edited, tmp_path / "esd.pt")
    with pytest.raises(overpaint.UserError, match="is the strength of a LoRA"):
        read(tiny_sd, tmp_path / "esd.pt", lora_scale=2)


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s}, lambda s: {"epoch": 3, "unet": s}])
def test_a_pickled_denoiser_is_read_as_weights_only_and_its_changes_are_found(wrap, tiny_sd, edited, tmp_path):
    torch.save(wrap(denoiser(tiny_sd, edited)), tmp_path / "unet.pt")
    assert_is(read(tiny_sd, tmp_path / "unet.pt"), edited)


def test_rounding_of_half_precision_files_is_no_change(tiny_sd, edited, tmp_path):
    half = {name: tensor.half() for name, tensor in denoiser(tiny_sd, edited).items()}
    save_file({name: tensor.contiguous() for name, tensor in half.items()}, tmp_path / "unet.safetensors")
    assert_is(read(tiny_sd, tmp_path / "unet.safetensors"), {name: half[name].float() for name in edited})


def test_folders_of_a_pipeline_and_of_its_networks(goldens, tiny_sd, edited, tmp_path):
    other = overpaint.load_model(str(goldens / "tiny_sd"))
    word = "text_model.embeddings.token_embedding.weight"
    changes = edited | {word: other.named_parameters()[word].data * 1.1}
    for name, tensor in changes.items():
        other.named_parameters()[name].data.copy_(tensor)
    other.pipeline.save_pretrained(tmp_path / "pipeline")
    assert_is(read(tiny_sd, tmp_path / "pipeline"), changes)
    assert_is(read(tiny_sd, tmp_path / "pipeline" / "unet"), edited)
    assert_is(read(tiny_sd, tmp_path / "pipeline" / "text_encoder"), {word: changes[word]})


@pytest.fixture
def pipeline(goldens, tiny_sd, edited, tmp_path):
    """The folder of a pipeline with the edit in its UNet."""
    other = overpaint.load_model(str(goldens / "tiny_sd"))
    for name, tensor in edited.items():
        other.named_parameters()[name].data.copy_(tensor)
    other.pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def planned(goldens, tmp_path):
    """Plan to measure a checkpoint on the small model; returns what the command printed."""
    grid = ["plan", "model=local", f"model.path={goldens / 'tiny_sd'}", "model.detector=null", "model.reference=null",
            "method=checkpoint", "concepts=inline", "concepts.erase=[dog]", "attack=none", "budget=smoke"]  # fmt: skip
    return lambda file, *more, code=0: CommandLine(tmp_path)(*grid, f"checkpoint.file={file}", *more, code=code)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prediction_type", "v_prediction"),
        ("beta_schedule", "linear"),
        ("beta_end", 0.02),
        ("num_train_timesteps", 900),
        ("rescale_betas_zero_snr", True),
    ],
)
def test_a_pipeline_of_another_schedule_is_refused(key, value, tiny_sd, pipeline, planned):
    file = pipeline / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    own = tiny_sd.pipeline.scheduler.config.get(key, False)
    told = f"{file} has {key}={value}, and the model has {own}, which an erasure does not change: model.path={pipeline}"
    with pytest.raises(overpaint.UserError, match=re.escape(told)):
        read(tiny_sd, pipeline)
    assert told in planned(pipeline, code=2).stderr
    assert read(tiny_sd, pipeline / "unet")


def test_a_pipeline_with_another_vae_is_noted(pipeline, planned):
    told = f"the VAE of {pipeline} is another than the model's and is not used: model.path={pipeline} evaluates"
    file = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    own = load_file(file)
    old = {name.replace(".to_q.", ".query."): tensor.half() for name, tensor in own.items()}
    save_file(old, file)
    done = planned(pipeline)
    assert told not in done.stdout + done.stderr
    save_file({name: 1.1 * tensor for name, tensor in own.items()}, file)
    done = planned(pipeline)
    assert told in " ".join((done.stdout + done.stderr).split())


def test_a_checkpoint_that_does_not_fit_is_refused_while_planning(tiny_sd, edited, tmp_path, planned, monkeypatch):
    monkeypatch.setattr(checkpoints, "hub_commit", lambda name: None)
    save_file(edited, tmp_path / "esd.safetensors")
    whole = (tmp_path / "esd.safetensors").read_bytes()
    torch.save(edited, tmp_path / "esd.pt")
    for good in ("esd.safetensors", "esd.pt"):
        planned(good)
    for name, content in {
        "none.safetensors": b"", "short.safetensors": whole[:-100], "page.safetensors": b"<html>", "none.pt": b"",
        "short.pt": (tmp_path / "esd.pt").read_bytes()[:-100], "page.pt": b"<!DOCTYPE html>",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    save_file({}, tmp_path / "nothing.safetensors")
    torch.save({"x": Harmful()}, tmp_path / "harmful.pt")
    for name in ("another shape", "another name", "whole numbers"):
        save_file(refused(name)[0](edited), tmp_path / f"{name.replace(' ', '_')}.safetensors")
        torch.save(refused(name)[0](edited), tmp_path / f"{name.replace(' ', '_')}.pt")
    save_file(spoiled_lora("no up", tiny_sd, tmp_path)[0], tmp_path / "lora.safetensors")
    for name, told in {
        "none.safetensors": "is not a readable safetensors file", "short.safetensors": "is not a readable safetensors file",
        "page.safetensors": "is not a readable safetensors file", "nothing.safetensors": "holds no tensors",
        "none.pt": "is empty", "short.pt": "is truncated", "page.pt": "is no file that torch.save has written",
        "harmful.pt": "could run code", "./folder": "holds no weights of a network", "nothere/hub": "no file or folder here",
        "another_shape.safetensors": "does not fit the model", "another_name.safetensors": "has no parameter x.",
        "whole_numbers.safetensors": "finite numbers", "another_shape.pt": "does not fit the model",
        "another_name.pt": "has no parameter x.", "whole_numbers.pt": "finite numbers", "lora.safetensors": "without",
    }.items():  # fmt: skip
        assert told in planned(name, code=2).stderr, name


def original_name(name, config):
    """A parameter's name in the original Stable Diffusion code, for networks with attention on every level."""
    blocks = config["layers_per_block"]
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
              "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
    whole = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
    for ours, theirs in whole.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    kind, rest = name.split(".", 1)
    if kind == "mid_block":
        part, number, rest = rest.split(".", 2)
        place = f"middle_block.{1 if part == 'attentions' else 2 * int(number)}"
    else:
        level, part, number, rest = rest.split(".", 3)
        level, number, down = int(level), int(number), kind == "down_blocks"
        if part == "downsamplers":
            return f"input_blocks.{(level + 1) * (blocks + 1)}.0.op.{rest.removeprefix('conv.')}"
        first = level * (blocks + 1)
        if part == "upsamplers":
            place = f"output_blocks.{first + blocks}"
            attended = config["up_block_types"][level].startswith("CrossAttn")
            return f"{place}.{2 if attended else 1}.{rest}"
        place = f"input_blocks.{first + 1 + number}" if down else f"output_blocks.{first + number}"
        place += ".1" if part == "attentions" else ".0"
    if part == "resnets":
        head, tail = rest.split(".", 1)
        rest = f"{resnet[head]}.{tail}"
    return f"{place}.{rest}"


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_names_of_the_original_code(prefix, tiny_sd, edited, tmp_path):
    state, config = denoiser(tiny_sd, edited), dict(tiny_sd.denoiser.config)
    named = {prefix + original_name(name, config): tensor.contiguous() for name, tensor in state.items()}
    assert len(named) == len(state)
    if prefix:
        text = {f"cond_stage_model.transformer.{n}": p.data.clone() for n, p in tiny_sd.named_parameters().items()
                if n.startswith("text_model.")}  # fmt: skip
        named |= text | {"first_stage_model.encoder.conv_in.weight": torch.zeros(1), "betas": torch.zeros(1000)}
    torch.save({"state_dict": named}, tmp_path / "compvis.ckpt")
    assert_is(read(tiny_sd, tmp_path / "compvis.ckpt"), edited)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_lora_in_kohyas_and_in_diffusers_names_is_one_change(scale, tiny_sd, tmp_path):
    pairs = factors(tiny_sd, cross_attention(tiny_sd, "to_k", "to_v", "to_out.0"))
    kohya = read(tiny_sd, write_kohya(pairs, tmp_path / "kohya.safetensors"), lora_scale=scale)
    peft = read(tiny_sd, write_peft(pairs, tmp_path / "peft.safetensors"), lora_scale=scale)
    assert kohya.changes.keys() == peft.changes.keys() == pairs.keys()
    for name, (up, down) in pairs.items():
        assert torch.equal(kohya.tensors[name], peft.tensors[name])
        expected = tiny_sd.named_parameters()[name].data + scale * up @ down
        torch.testing.assert_close(kohya.tensors[name], expected, rtol=0, atol=1e-6)


def test_alpha_scales_a_lora(tiny_sd, tmp_path):
    pairs = factors(tiny_sd, cross_attention(tiny_sd, "to_v"), rank=4)
    erasure = read(tiny_sd, write_kohya(pairs, tmp_path / "a.safetensors", alpha=2))
    for name, (up, down) in pairs.items():
        expected = tiny_sd.named_parameters()[name].data + 0.5 * up @ down
        torch.testing.assert_close(erasure.tensors[name], expected, rtol=0, atol=1e-6)


def expected(model, pairs, factor):
    own = model.named_parameters()
    return {name: own[name].data + factor * up @ down for name, (up, down) in pairs.items()}


def assert_close(erasure, tensors):
    assert erasure.changes.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(erasure.tensors[name], tensor, rtol=0, atol=1e-6)


def peft_names(pairs, prefix):
    """What peft names the factors of one network's layers: no name says which network it is."""
    tensors = {}
    for name, (up, down) in pairs.items():
        layer = prefix + name.removesuffix(".weight")
        tensors |= {f"{layer}.lora_A.weight": down.contiguous(), f"{layer}.lora_B.weight": up.contiguous()}
    return tensors


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_a_lora_with_the_names_that_peft_writes(prefix, tiny_sd, tmp_path):
    pairs = factors(tiny_sd, cross_attention(tiny_sd, "to_k", "to_v"))
    save_file(peft_names(pairs, prefix), tmp_path / "lora.safetensors")
    assert_close(read(tiny_sd, tmp_path / "lora.safetensors"), expected(tiny_sd, pairs, 1))


@pytest.mark.parametrize("root", [False, True])
def test_the_folder_that_peft_writes_for_a_network_has_its_alpha(root, tiny_sd, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    generator = torch.Generator().manual_seed(0)
    for network in ("denoiser", "text_encoder"):
        targets = ["to_k", "to_v"] if network == "denoiser" else ["q_proj"]
        config = LoraConfig(r=4, lora_alpha=2, target_modules=targets, use_rslora=root, alpha_pattern={targets[-1]: 12})
        adapted = get_peft_model(copy.deepcopy(getattr(tiny_sd, network)), config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
        adapted.save_pretrained(tmp_path / network)
        erasure = read(tiny_sd, tmp_path / network)
        fresh = copy.deepcopy(getattr(tiny_sd, network))
        merged = PeftModel.from_pretrained(fresh, tmp_path / network).merge_and_unload().state_dict()
        own = tiny_sd.named_parameters()
        names = {n: n if n in own else f"text_model.{n}" for n in merged if n.endswith("weight")}
        changed = {
            names[n]: t for n, t in merged.items() if n in names and names[n] in own
            and not torch.equal(own[names[n]].data, t)
        }  # fmt: skip
        assert changed
        assert_close(erasure, changed)
    with pytest.raises(
        overpaint.UserError, match=r"adapter_config\.json beside it has the strength .* give the folder"
    ):
        read(tiny_sd, tmp_path / "denoiser" / "adapter_model.safetensors")


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_lora_of_attention_processors_in_the_names_of_older_diffusers(prefix, tiny_sd, tmp_path):
    pairs = factors(tiny_sd, cross_attention(tiny_sd, "to_q", "to_k", "to_out.0"))
    tensors = {}
    for name, (up, down) in pairs.items():
        attention, _, layer = name.removesuffix(".weight").rpartition(".to_")
        stored = f"{prefix}{attention}.processor.to_{layer.removesuffix('.0')}_lora"
        tensors |= {f"{stored}.up.weight": up.contiguous(), f"{stored}.down.weight": down.contiguous()}
    save_file(tensors, tmp_path / "lora.safetensors")
    assert_close(read(tiny_sd, tmp_path / "lora.safetensors"), expected(tiny_sd, pairs, 1))


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_lora_that_diffusers_writes_has_its_alpha_in_the_header(as_folder, tiny_sd, tmp_path):
    pairs = factors(tiny_sd, cross_attention(tiny_sd, "to_k", "to_v"), rank=4)
    config = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["to_k", "to_v"],
        "alpha_pattern": {"to_v": 2},
        "rank_pattern": {},
    }
    type(tiny_sd.pipeline).save_lora_weights(
        tmp_path, unet_lora_layers=peft_names(pairs, ""), unet_lora_adapter_metadata=config
    )
    erasure = read(tiny_sd, tmp_path if as_folder else tmp_path / "pytorch_lora_weights.safetensors")
    keys = {name: pair for name, pair in pairs.items() if "to_k" in name}
    values = {name: pair for name, pair in pairs.items() if "to_v" in name}
    assert_close(erasure, expected(tiny_sd, keys, 2) | expected(tiny_sd, values, 0.5))
    other = copy.deepcopy(tiny_sd.pipeline)
    other.load_lora_weights(tmp_path)
    other.fuse_lora()
    other.unload_lora_weights()
    theirs = other.unet.state_dict()
    assert_close(erasure, {name: theirs[name] for name in pairs})


def test_the_folder_of_a_lora_is_known_by_its_content(tmp_path):
    (tmp_path / "sample.png").write_bytes(b"a picture of the training")
    save_file({"a": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    before = file_digest(str(tmp_path))
    save_file({"a": torch.ones(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    assert before and file_digest(str(tmp_path)) != before


def test_the_file_of_overpaint_erase_gives_the_same_erasure(tiny_sd, tmp_path):
    made = overpaint.erase(tiny_sd, "uce", erase=["dog"], anchor="cat")
    made.save(tmp_path / "uce.safetensors")
    again = read(tiny_sd, tmp_path / "uce.safetensors")
    assert_is(again, made.tensors)
    assert again.manifest["method"] == "checkpoint" and again.manifest["made_by"] == "uce"
    with made.attached(tiny_sd):
        ours = picture(tiny_sd)
    with again.attached(tiny_sd):
        assert np.array_equal(picture(tiny_sd), ours)


def test_the_file_of_an_spm_is_gated_by_prompts(tiny_sd, tmp_path):
    small = {"iterations": 2, "warmup_steps": 0, "rollout_steps": 4, "learning_rate": 0.1, "transport": "released"}
    ours = overpaint.erase(tiny_sd, "spm", erase=["dog"], **small)
    pairs = {}
    for key, tensor in ours.parts.items():
        layer, side = key.removeprefix("0.").rsplit(".", 1)
        pairs.setdefault(f"{layer}.weight", {})[side] = tensor
    pairs = {name: (found["up"], found["down"]) for name, found in pairs.items()}
    header = {"prompts": "dog", "rank": "1", "alpha": "1.0"}
    theirs = read(tiny_sd, write_kohya(pairs, tmp_path / "dog.safetensors", alpha=1, metadata=header))
    assert theirs.kind == "adapter" and theirs.settings == ours.settings
    with ours.attached(tiny_sd):
        expected = picture(tiny_sd)
    with theirs.attached(tiny_sd):
        assert np.array_equal(picture(tiny_sd), expected)
    header["prompts"] = "dog,cat"
    path = write_kohya(pairs, tmp_path / "two.safetensors", metadata=header)
    with pytest.raises(overpaint.UserError, match="one concept are supported"):
        read(tiny_sd, path)


def test_one_file_a_concept(tiny_sd, edited, tmp_path):
    save_file(edited, tmp_path / "dog.safetensors")
    assert_is(read(tiny_sd, tmp_path / "{concept}.safetensors"), edited)
    with pytest.raises(overpaint.UserError, match=r"cat\.safetensors does not exist"):
        overpaint.erase(tiny_sd, "checkpoint", erase=["cat"], file=str(tmp_path / "{concept}.safetensors"))


def test_int8_tensors_are_multiplied_by_their_scale(tiny_sd, edited, tmp_path):
    packed, expected = {}, {}
    for name, tensor in edited.items():
        scale = tensor.abs().amax(1) / 127
        packed |= {name: (tensor / scale[:, None]).round().to(torch.int8), f"{name}.scale": scale}
        expected[name] = packed[name].float() * scale[:, None]
    save_file(packed, tmp_path / "int8.safetensors")
    assert_is(read(tiny_sd, tmp_path / "int8.safetensors"), expected)


class Harmful:
    def __reduce__(self):
        return print, ("it ran",)


def refused(name):
    return {
        "another shape": (lambda s: {n: t[:-1].clone() for n, t in s.items()}, "does not fit the model"),
        "another name": (lambda s: {f"x.{n}": t for n, t in s.items()}, "has no parameter x."),
        "not finite": (lambda s: {n: t * float("nan") for n, t in s.items()}, "finite numbers"),
        "whole numbers": (lambda s: {n: t.to(torch.int8) for n, t in s.items()}, "finite numbers"),
    }[name]


@pytest.mark.parametrize("name", ["another shape", "another name", "not finite", "whole numbers"])
def test_what_does_not_fit_is_refused(name, tiny_sd, edited, tmp_path):
    spoil, told = refused(name)
    save_file(spoil(edited), tmp_path / "file.safetensors")
    with pytest.raises(overpaint.UserError, match=told):
        read(tiny_sd, tmp_path / "file.safetensors")


def test_a_network_of_another_model_is_refused_but_edits_may_replace_their_matrices(tiny_sd, edited, tmp_path):
    random = {name: torch.randn_like(tensor) for name, tensor in tiny_sd.denoiser.state_dict().items()}
    save_file(random, tmp_path / "network.safetensors")
    with pytest.raises(
        overpaint.UserError, match=r"for another model: .* or accept it with checkpoint\.trained_apart=true"
    ):
        read(tiny_sd, tmp_path / "network.safetensors")
    assert_is(read(tiny_sd, tmp_path / "network.safetensors", trained_apart=True), random)
    replaced = {name: torch.randn_like(tensor) for name, tensor in edited.items()}
    save_file(replaced, tmp_path / "edit.safetensors")
    assert_is(read(tiny_sd, tmp_path / "edit.safetensors"), replaced)


def test_files_that_are_no_checkpoint_are_refused(tiny_sd, tmp_path, capsys):
    own = {name: tensor.clone() for name, tensor in tiny_sd.denoiser.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in own.items()}, tmp_path / "same.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "notes.txt").write_text("no tensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "unnamed" / "unet").mkdir(parents=True)
    torch.save({"weights": Harmful()}, tmp_path / "harmful.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    pairs = factors(tiny_sd, cross_attention(tiny_sd, "to_v"))
    wrong = {name.replace("attn2", "attn7"): tuple(f.clone() for f in pair) for name, pair in pairs.items()}
    write_kohya(pairs | wrong, tmp_path / "lora.safetensors")
    for name, told in {
        "same.safetensors": "changes nothing",
        "text.safetensors": "not a readable safetensors file",
        "notes.txt": "is not a checkpoint",
        "folder": "holds no weights of a network",
        "unnamed": "has unet/ and no model_index.json: give .*unnamed/unet, or add the file",
        "harmful.pt": "could run code",
        "empty.pt": "holds no named tensors",
        "lora.safetensors": "does not fit the model",
        "missing.safetensors": "does not exist",
    }.items():
        with pytest.raises(overpaint.UserError, match=re.escape(name) + ".*" + told):
            read(tiny_sd, tmp_path / name)
    assert "it ran" not in capsys.readouterr().out
    with pytest.raises(overpaint.UserError, match=r"needs checkpoint\.file"):
        read(tiny_sd, "")


def test_a_text_in_the_header_is_read_without_tensors(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"prompts": "dog"})
    assert checkpoints.metadata(tmp_path / "a.safetensors") == {"prompts": "dog"}
    assert checkpoints.metadata(tmp_path / "a.pt") == {}


def layers_of(model, *ends):
    return [name for name in model.named_parameters() if name.endswith(tuple(f"{end}.weight" for end in ends))]


#: Linear layers and convolutions of both networks.
MANY = ("attn1.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "proj_in", "resnets.0.conv1", "self_attn.q_proj",
        "self_attn.out_proj", "mlp.fc2")  # fmt: skip


def uneven(model, names, ranks, alphas):
    """Factors (up (out, r, …), down (r, in, …)), alphas and W + alpha / r · up·down of layers that differ in both."""
    generator, own, pairs, given, wanted = torch.Generator().manual_seed(0), model.named_parameters(), {}, {}, {}
    for number, name in enumerate(names):
        rank, alpha, weight = ranks[number % len(ranks)], alphas[number % len(alphas)], own[name].data
        up = 0.1 * torch.randn(weight.shape[0], rank, generator=generator)
        down = 0.1 * torch.randn(rank, *weight.shape[1:], generator=generator)
        product = (up @ down.flatten(1)).reshape(weight.shape)
        pairs[name] = (up.reshape(*up.shape, *[1] * (weight.ndim - 2)), down)
        given[name], wanted[name] = alpha, weight + (1 if alpha is None else alpha / rank) * product
    return pairs, given, wanted


def kohya_names(pairs, alphas):
    tensors = {}
    for name, (up, down) in pairs.items():
        layer = name.removesuffix(".weight").replace(".", "_")
        layer = f"lora_te_{layer}" if layer.startswith("text_model") else f"lora_unet_{layer}"
        tensors |= {f"{layer}.lora_up.weight": up.contiguous(), f"{layer}.lora_down.weight": down.contiguous()}
        if alphas[name] is not None:
            tensors[f"{layer}.alpha"] = torch.tensor(float(alphas[name]))
    return tensors


@pytest.mark.parametrize(
    "ranks, alphas", [((2,), (1, 2, 3)), ((1, 2, 4), (2,)), ((4, 1, 2), (3, 2)), ((2, 4), (None,))]
)
def test_every_layer_of_a_lora_has_its_own_rank_and_alpha(ranks, alphas, tiny_sd, tmp_path):
    pairs, given, wanted = uneven(tiny_sd, layers_of(tiny_sd, *MANY), ranks, alphas)
    assert any(name.startswith("text_model") for name in pairs) and any(up.ndim == 4 for up, _ in pairs.values())
    save_file(kohya_names(pairs, given), tmp_path / "kohya.safetensors")
    assert_close(read(tiny_sd, tmp_path / "kohya.safetensors"), wanted)
    halved = read(tiny_sd, tmp_path / "kohya.safetensors", lora_scale=0.5)
    own = tiny_sd.named_parameters()
    assert_close(halved, {name: (tensor + own[name].data) / 2 for name, tensor in wanted.items()})


def test_layers_of_a_lora_in_diffusers_names_have_their_own_rank(tiny_sd, tmp_path):
    pairs, _, wanted = uneven(tiny_sd, layers_of(tiny_sd, "attn1.to_q", "attn2.to_k", "proj_in"), (2, 4, 1), (None,))
    save_file(peft_names(pairs, "unet."), tmp_path / "diffusers.safetensors")
    assert_close(read(tiny_sd, tmp_path / "diffusers.safetensors"), wanted)
    save_file(peft_names(pairs, "base_model.model."), tmp_path / "peft.safetensors")
    assert_close(read(tiny_sd, tmp_path / "peft.safetensors"), wanted)


def test_kohyas_lora_of_a_part_of_the_text_encoder(tiny_sd, tmp_path):
    pairs, given, wanted = uneven(tiny_sd, layers_of(tiny_sd, "self_attn.q_proj"), (2,), (1, 3))
    save_file(kohya_names(pairs, given), tmp_path / "kohya.safetensors")
    assert_close(read(tiny_sd, tmp_path / "kohya.safetensors"), wanted)


def test_a_lora_of_sdxl_in_the_names_of_its_own_code_has_its_alphas(tiny_sdxl, tmp_path):
    names = [name for name in layers_of(tiny_sdxl, "attn1.to_q", "attn2.to_k", "attn2.to_out.0") if "text" not in name]
    pairs, given, wanted = uneven(tiny_sdxl, names, (2, 4), (1, 2, 3))
    config, tensors = dict(tiny_sdxl.denoiser.config), {}
    for name, (up, down) in pairs.items():
        layer = "lora_unet_" + original_name(name.removesuffix(".weight"), config).replace(".", "_")
        tensors |= {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}
        tensors[f"{layer}.alpha"] = torch.tensor(float(given[name]))
    save_file(tensors, tmp_path / "sgm.safetensors")
    assert_close(read(tiny_sdxl, tmp_path / "sgm.safetensors"), wanted)


@pytest.mark.parametrize("prefix", ["base_model.model.", "text_encoder.", ""])
@pytest.mark.parametrize("old", [True, False])
def test_a_lora_of_a_text_encoder_is_read_with_the_names_of_old_and_new_transformers(prefix, old, tiny_sd, tmp_path):
    pairs = factors(tiny_sd, layers_of(tiny_sd, "self_attn.q_proj"))
    named = {name if old else name.removeprefix("text_model."): pair for name, pair in pairs.items()}
    save_file(peft_names(named, prefix), tmp_path / "lora.safetensors")
    assert_close(read(tiny_sd, tmp_path / "lora.safetensors"), expected(tiny_sd, pairs, 1))


def spoiled_lora(name, model, tmp_path):
    """The tensors of a LoRA that is refused, and what is said of it."""
    names = cross_attention(model, "to_k")
    pairs, given, _ = uneven(model, names, (2,), (1,))
    kohya, peft = kohya_names(pairs, given), peft_names(pairs, "unet.")
    first = names[0].removesuffix(".weight")
    up, layer = f"unet.{first}.lora_B.weight", f"lora_unet_{first.replace('.', '_')}"
    return {
        "kohya's DoRA": (kohya | {f"{layer}.dora_scale": torch.ones(1, 4)}, "is a DoRA"),
        "peft's DoRA": (peft | {f"unet.{first}.lora_magnitude_vector": torch.ones(4)}, "is a DoRA"),
        "biases": (peft | {f"unet.{first}.lora_B.bias": torch.ones(4)}, "is a bias beside the factors"),
        "another tensor": (peft | {f"unet.{first}.bias": torch.ones(4)}, "is no factor of a LoRA"),
        "a third factor": (kohya | {f"{layer}.lora_mid.weight": torch.ones(2, 2)}, "is no factor of a LoRA"),
        "not finite": (peft | {up: peft[up] * float("nan")}, "finite numbers"),
        "alpha of nothing": (kohya | {"lora_unet_x.alpha": torch.tensor(1.0)}, "without the factors of this layer"),
        "no up": ({n: t for n, t in peft.items() if n != up}, "has .*lora_A.weight without .*lora_B.weight"),
        "no down": ({n: t for n, t in kohya.items() if n != f"{layer}.lora_down.weight"}, "without .*lora_down.weight"),
        "no A at all": ({n: t for n, t in peft.items() if "lora_A" not in n}, "without .*lora_A.weight"),
        "another rank": (peft | {up: torch.ones(peft[up].shape[0], 3)}, r"has rank 2 and .*lora_B\.weight has 3"),
        "another width": (
            peft | {up: torch.ones(5, 2)},
            r".*lora_B\.weight is \(5, 2\), and the model's layer takes \(",
        ),
        "a convolution": (
            kohya | {f"{layer}.lora_up.weight": torch.ones(32, 2, 1, 1)},
            r"\(32, 2, 1, 1\), and the model's",
        ),
        "no such layer": (
            {n.replace("mid_block", "x"): t for n, t in kohya.items()},
            "has no layer for lora_unet_x_",
        ),
        "no such part": ({f"x.{n}": t for n, t in peft.items()}, r"has no layer for x\.unet"),
        "empty": (peft | {up: torch.ones(4, 0)}, "is empty"),
        "two alphas": (kohya | {f"{layer}.alpha": torch.ones(2)}, "is not a finite number"),
    }[name]


@pytest.mark.parametrize("name", ["kohya's DoRA", "peft's DoRA", "biases", "another tensor", "a third factor", "not finite",
                                  "alpha of nothing", "two alphas", "no up", "no down", "no A at all", "another rank",
                                  "another width", "a convolution", "empty", "no such layer", "no such part"])  # fmt: skip
def test_what_is_not_a_plain_lora_is_refused(name, tiny_sd, tmp_path, capfd):
    tensors, told = spoiled_lora(name, tiny_sd, tmp_path)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(overpaint.UserError, match=r"lora\.safetensors.* " + told):
        read(tiny_sd, tmp_path / "lora.safetensors")
    assert not capfd.readouterr().err


@pytest.mark.parametrize("setting, told", [("use_dora", "is a DoRA"), ("lora_bias", "is a bias beside the factors")])
def test_the_folder_of_peft_with_more_than_a_plain_lora_is_refused(setting, told, tiny_sd, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["to_out.0"], **{setting: True})
    get_peft_model(copy.deepcopy(tiny_sd.denoiser), config).save_pretrained(tmp_path / "peft")
    with pytest.raises(overpaint.UserError, match=f"peft.* {told}"):
        read(tiny_sd, tmp_path / "peft")


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
@pytest.mark.parametrize("part", ["keys", "middle and out", "all but one block"])
def test_a_part_of_a_network_in_names_of_the_original_code(part, prefix, tiny_sd, edited, tmp_path):
    own, config = tiny_sd.denoiser.state_dict(), dict(tiny_sd.denoiser.config)
    changed = {
        "keys": edited,
        "middle and out": {n: own[n] * 1.1 for n in own if n.startswith(("mid_block.", "up_blocks.2.", "conv_out."))},
        "all but one block": {n: own[n] * 1.1 for n in own if not n.startswith("down_blocks.0.resnets.0.")},
    }[part]
    named = {prefix + original_name(name, config): tensor.contiguous() for name, tensor in changed.items()}
    save_file(named, tmp_path / "part.safetensors")
    changed = {name: tensor for name, tensor in changed.items() if not torch.equal(own[name], tensor)}
    assert_is(read(tiny_sd, tmp_path / "part.safetensors"), changed)
    named[f"{prefix}input_blocks.99.0.in_layers.2.weight"] = torch.ones(1)
    save_file(named, tmp_path / "more.safetensors")
    with pytest.raises(overpaint.UserError, match=r"has no parameter .*input_blocks\.99"):
        read(tiny_sd, tmp_path / "more.safetensors")


def test_a_whole_denoiser_of_sdxl_in_names_of_the_original_code(tiny_sdxl, tmp_path):
    own, config = tiny_sdxl.denoiser.state_dict(), dict(tiny_sdxl.denoiser.config)
    changed = {
        name: own[name] * 1.1 for name in own if name.endswith(("attn2.to_k.weight", "add_embedding.linear_1.weight"))
    }
    labels = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    named = {}
    for name, tensor in (own | changed).items():
        layer = name.rpartition(".")[0]
        theirs = name.replace(layer, labels[layer]) if layer in labels else original_name(name, config)
        named[f"model.diffusion_model.{theirs}"] = tensor.contiguous()
    save_file(named, tmp_path / "sdxl.safetensors")
    assert_is(read(tiny_sdxl, tmp_path / "sdxl.safetensors"), changed)


def test_two_tensors_for_one_parameter_are_refused(tiny_sd, edited, tmp_path):
    save_file(edited | in_names_of("unet.", {n: t + 1 for n, t in edited.items()}), tmp_path / "two.safetensors")
    with pytest.raises(overpaint.UserError, match=r"two\.safetensors does not fit the model: it has two tensors for"):
        read(tiny_sd, tmp_path / "two.safetensors")


@pytest.mark.parametrize("file", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("own", ["float16", "bfloat16"])
def test_rounding_of_a_half_precision_model_is_no_change(own, file, goldens, tiny_sd, edited, tmp_path):
    model = overpaint.load_model(str(goldens / "tiny_sd"), dtype=own)
    stored = {name: tensor.to(getattr(torch, file)).contiguous() for name, tensor in denoiser(tiny_sd, edited).items()}
    save_file(stored, tmp_path / "unet.safetensors")
    assert_is(read(model, tmp_path / "unet.safetensors"), {name: stored[name].to(model.dtype) for name in edited})
    plain = {
        name: tensor.to(getattr(torch, file)).contiguous() for name, tensor in tiny_sd.denoiser.state_dict().items()
    }
    save_file(plain, tmp_path / "same.safetensors")
    with pytest.raises(overpaint.UserError, match="changes nothing"):
        read(model, tmp_path / "same.safetensors")


def test_one_step_of_a_half_precision_is_a_change(goldens, tmp_path):
    model = overpaint.load_model(str(goldens / "tiny_sd"), dtype="bfloat16")
    name = cross_attention(model, "to_k")[0]
    weight = model.named_parameters()[name].data.clone()
    biggest = weight.abs().argmax()
    weight.view(torch.int16).flatten()[biggest] += 1
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        save_file({name: weight.to(dtype)}, tmp_path / "step.safetensors")
        assert_is(read(model, tmp_path / "step.safetensors"), {name: weight})


def test_a_transfer_in_half_precision_leaves_the_text_encoder_that_the_checkpoint_leaves(goldens, tmp_path):
    folder, generator = str(goldens / "tiny_sd"), torch.Generator().manual_seed(0)
    edit, other = overpaint.load_model(folder), overpaint.load_model(folder)
    name = cross_attention(edit, "to_k")[0]
    edit.named_parameters()[name].data.mul_(1.2)
    edit.pipeline.save_pretrained(tmp_path / "edited")
    for parameter in other.named_parameters().values():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    other.pipeline.save_pretrained(tmp_path / "other")
    model = overpaint.load_model(str(tmp_path / "other"), dtype="bfloat16")
    assert read(model, tmp_path / "edited", transfer=True, base=folder).names == [name]


WORD = "text_model.embeddings.token_embedding.weight"


def test_a_pickle_of_several_networks_is_read_whole(tiny_sd, edited, tmp_path):
    word = tiny_sd.named_parameters()[WORD].data * 1.1
    inner = {"module." + name: tensor for name, tensor in edited.items()}
    torch.save({"unet": inner, "text_encoder": {WORD: word}, "vae": {"x": word}, "step": 3}, tmp_path / "both.pt")
    assert_is(read(tiny_sd, tmp_path / "both.pt"), edited | {WORD: word})
    torch.save({"state_dict": {"unet": {"state_dict": edited}, "text_encoder": {WORD: word}}}, tmp_path / "deep.pt")
    assert_is(read(tiny_sd, tmp_path / "deep.pt"), edited | {WORD: word})
    torch.save({"text_encoder": {WORD: word}, "unet": {}}, tmp_path / "text.pt")
    assert_is(read(tiny_sd, tmp_path / "text.pt"), {WORD: word})


def test_a_pickle_of_several_sets_of_tensors_of_unknown_networks_is_refused(tiny_sd, edited, tmp_path):
    for name, other in {"unet": "ema", "model": "unet", "state_dict": "text_encoder"}.items():
        torch.save({name: edited, other: edited}, tmp_path / "two.pt")
        with pytest.raises(overpaint.UserError, match=r"two\.pt holds several sets of tensors, .*; save only those of"):
            read(tiny_sd, tmp_path / "two.pt")
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}
    torch.save(
        {"model": edited, "optimizer": optimizer, "rng": {"cpu": torch.get_rng_state()}}, tmp_path / "training.pt"
    )
    assert_is(read(tiny_sd, tmp_path / "training.pt"), edited)


def test_the_file_of_a_sequence_keeps_its_levels_on_top_of_an_earlier_erasure(tiny_sd, tmp_path):
    both = overpaint.erase(tiny_sd, "uce", erase=["dog", "bird"], anchor=["cat", "ship"], sequential=True)
    both.save(tmp_path / "both.safetensors")
    small = {"iterations": 1, "warmup_steps": 0, "rollout_steps": 2}
    before = overpaint.erase(tiny_sd, "spm", erase=["ship"], **small)
    on_top = read(tiny_sd, tmp_path / "both.safetensors", before=before)
    assert [level.method for level in on_top.sequence] == ["spm", "uce", "uce"]
    own = tiny_sd.named_parameters()
    with both.attached(tiny_sd):
        wanted = {name: own[name].data.clone() for name in both.names}
    with on_top.attached(tiny_sd):
        assert all(torch.equal(own[name].data, tensor) for name, tensor in wanted.items())
