"""Hostile pipeline folders: a row is a name, a function that spoils a good folder, and a part of the sentence."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

UNET, TEXT, VAE = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "vae/config.json"
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
MODEL, SCHEDULER, TOKENIZER = "model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
UNET_CONFIG, TEXT_CONFIG = "unet/config.json", "text_encoder/config.json"
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


def configured(file, **values):
    """Set values of a JSON file."""
    edit(file, lambda content: content.update(values))


def rewrite(file, change):
    """Rewrite a safetensors file by a function of its tensors."""
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)


def header(file, content):
    """A safetensors file with this header and 12 bytes of values."""
    file.write_bytes(len(content).to_bytes(8, "little") + content + b"\0" * 12)


def lie(file, **tensors):
    """A safetensors file whose header names tensors by their number of values, first and last byte."""
    said = {n: {"dtype": "F32", "shape": [size], "data_offsets": [a, b]} for n, (size, a, b) in tensors.items()}
    header(file, json.dumps(said).encode())


def clear(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def link(path, target):
    clear(path)
    path.symlink_to(target)


def pipe(path):
    clear(path)
    os.mkfifo(path)


def folder_at(path):
    clear(path)
    path.mkdir()


def text_at(path, text):
    clear(path)
    path.write_text(text)


def index(folder, shards):
    """An index of these shards instead of the weights."""
    (folder / UNET).unlink()
    (folder / INDEX).write_text(shards if isinstance(shards, str) else json.dumps({"weight_map": shards}))


def sharded(folder):
    """Remove one of two shards."""
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    shutil.copy(folder / UNET, folder / "unet" / shards[0])
    index(folder, {"a": shards[0], "b": shards[1]})


DAMAGES = {
    "no index": (lambda f: (f / MODEL).unlink(), "has no model_index.json"),
    "an index that is no JSON": (lambda f: (f / MODEL).write_text("{"), "model_index.json is not readable"),
    "an index that is a list": (lambda f: (f / MODEL).write_text("[]"), "names no pipeline class"),
    "an index nested deeply": (lambda f: (f / MODEL).write_text("[" * 10**6), "is not readable JSON"),
    "binary in the index": (lambda f: (f / MODEL).write_bytes(b"\xff\xfe\x00"), "is not readable JSON"),
    "an unknown pipeline": (
        lambda f: configured(f / MODEL, _class_name="StableDiffusionPipelin"),
        "did you mean 'StableDiffusionPipeline'",
    ),
    "a class that is a number": (lambda f: configured(f / MODEL, _class_name=5), "names no pipeline class"),
    "no tokenizer in the index": (
        lambda f: edit(f / MODEL, lambda c: c.pop("tokenizer")),
        "names no tokenizer, which StableDiffusionPipeline needs",
    ),
    "a null part": (lambda f: configured(f / MODEL, vae=[None, None]), "names no vae"),
    "a library of its own": (lambda f: configured(f / MODEL, unet=["os", "system"]), "unknown library 'os'"),
    "a class that is no network": (
        lambda f: configured(f / MODEL, unet=["diffusers", "UNet3000"]),
        "diffusers has no class UNet3000",
    ),
    "another network": (lambda f: configured(f / MODEL, unet=["diffusers", "AutoencoderKL"]), "unet"),
    "no folder of a part": (lambda f: shutil.rmtree(f / "vae"), "vae holds no safetensors weights"),
    "no weights": (lambda f: (f / UNET).unlink(), "unet holds no safetensors weights"),
    "weights of a variant only": (
        lambda f: (f / TEXT).rename(f / "text_encoder/model.fp16.safetensors"),
        "text_encoder holds no safetensors weights",
    ),
    "a missing shard": (sharded, "lacks the weight file diffusion_pytorch_model-00002-of-00002"),
    "shards outside the folder": (
        lambda f: index(f, {"a": "../../secret.safetensors"}),
        "names weight files outside its folder",
    ),
    "empty weights": (lambda f: (f / UNET).write_bytes(b""), "is not a readable safetensors file"),
    "a cut download": (lambda f: os.truncate(f / UNET, 100_000), "is not a readable safetensors file"),
    "weights that are text": (lambda f: (f / UNET).write_text("<html>" * 100), "is not a readable safetensors file"),
    "a missing tensor": (
        lambda f: rewrite(f / UNET, lambda t: t.pop(NORM)),
        f"the weights of unet lack 1 tensors, such as {NORM}",
    ),
    "a missing tensor of the text encoder": (
        lambda f: rewrite(f / TEXT, lambda t: t.pop(next(n for n in t if n.endswith("final_layer_norm.weight")))),
        "the weights of text_encoder lack 1 tensors, such as ",
    ),
    "an unknown tensor": (
        lambda f: rewrite(f / UNET, lambda t: t.update(extra=torch.zeros(2))),
        "the weights of unet hold 1 tensors that its config.json has no place for, such as extra",
    ),
    "a tensor of another shape": (lambda f: rewrite(f / UNET, lambda t: t.update({NORM: torch.zeros(7)})), "unet"),
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
    "a configuration of other sizes": (lambda f: configured(f / UNET_CONFIG, cross_attention_dim=7), "unet"),
    "a configuration of wrong types": (
        lambda f: configured(f / UNET_CONFIG, block_out_channels="many"),
        "unet cannot be loaded",
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "cannot be loaded"),
    "a scheduler of strings": (lambda f: configured(f / SCHEDULER, beta_start="low"), "cannot be loaded"),
    "a prediction of another kind": (
        lambda f: configured(f / SCHEDULER, prediction_type="sample"),
        "unknown prediction_type 'sample'",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer holds no words"),
    "a tokenizer of one bracket": (
        lambda f: [t.write_text("{") for t in (f / "tokenizer").glob("*")],
        "cannot be loaded",
    ),
    "a folder as the index": (lambda f: folder_at(f / MODEL), "has no model_index.json"),
    "a device as the index": (lambda f: link(f / MODEL, "/dev/zero"), "has no model_index.json"),
    "a pipe as the index": (lambda f: pipe(f / MODEL), "has no model_index.json"),
    "a text file as the index": (lambda f: link(f / MODEL, "/etc/passwd"), "is not readable JSON"),
    "a class of 100,000 letters": (
        lambda f: configured(f / MODEL, _class_name="x" * 100_000),
        "unknown pipeline class 'xxx",
    ),
    "a class with an escape": (lambda f: configured(f / MODEL, _class_name="a\x1b[31m\n"), "unknown pipeline class"),
    "a network with an escape": (
        lambda f: configured(f / MODEL, unet=["diffusers", "a\x1b[31m\nb"]),
        "that can be loaded (unet)",
    ),
    "a module of a library": (
        lambda f: configured(f / MODEL, unet=["diffusers.models", "UNet2DConditionModel"]),
        "unknown library 'diffusers.models'",
    ),
    "an attribute of a library": (
        lambda f: configured(f / MODEL, unet=["diffusers", "__name__"]),
        "that can be loaded (unet)",
    ),
    "a pipeline as a network": (lambda f: configured(f / MODEL, unet=["diffusers", "StableDiffusionPipeline"]), "unet"),
    "a network as the scheduler": (
        lambda f: configured(f / MODEL, scheduler=["diffusers", "UNet2DConditionModel"]),
        "scheduler",
    ),
    "a network as the tokenizer": (
        lambda f: configured(f / MODEL, tokenizer=["transformers", "CLIPTextModel"]),
        "tokenizer",
    ),
    "another text encoder": (
        lambda f: configured(f / MODEL, text_encoder=["transformers", "BertModel"]),
        "text_encoder",
    ),
    "parts of the wrong pipeline": (
        lambda f: configured(f / MODEL, _class_name="StableDiffusionXLPipeline"),
        "which StableDiffusionXLPipeline needs",
    ),
    "a file as the folder of a part": (lambda f: text_at(f / "unet", "x"), "unet holds no safetensors weights"),
    "a link to itself as a part": (lambda f: link(f / "unet", "unet"), "unet holds no safetensors weights"),
    "a folder as the weights": (lambda f: folder_at(f / UNET), "unet holds no safetensors weights"),
    "a device as the weights": (lambda f: link(f / UNET, "/dev/zero"), "is not a regular file"),
    "a pipe as the weights": (lambda f: pipe(f / UNET), "is not a regular file"),
    "a broken link as the weights": (lambda f: link(f / UNET, "gone"), "is not a regular file"),
    "a text file as the weights": (lambda f: link(f / UNET, "/etc/passwd"), "is not a readable safetensors file"),
    "a device as a configuration": (lambda f: link(f / VAE, "/dev/zero"), "is not a regular file"),
    "a device as the scheduler's configuration": (lambda f: link(f / SCHEDULER, "/dev/zero"), "is not a regular file"),
    "a device as the tokenizer's words": (
        lambda f: link(f / "tokenizer/vocab.json", "/dev/zero"),
        "is not a regular file",
    ),
    "a list as a configuration": (lambda f: text_at(f / VAE, "[]"), "vae cannot be loaded"),
    "null as a configuration": (lambda f: text_at(f / VAE, "null"), "vae cannot be loaded"),
    "a configuration nested deeply": (lambda f: text_at(f / VAE, "[" * 10**6), "vae cannot be loaded"),
    "a list as the text encoder's configuration": (
        lambda f: text_at(f / TEXT_CONFIG, "[]"),
        "text_encoder cannot be loaded",
    ),
    "a list as the scheduler's configuration": (lambda f: text_at(f / SCHEDULER, "[]"), "scheduler cannot be loaded"),
    "a list as the tokenizer's configuration": (lambda f: text_at(f / TOKENIZER, "[]"), "tokenizer cannot be loaded"),
    "a tokenizer without its files": (
        lambda f: [t.unlink() for t in (f / "tokenizer").glob("*") if t.name != "tokenizer_config.json"],
        "tokenizer holds no words (tokenizer.json or vocab.json with merges.txt)",
    ),
    "a tokenizer that pads to a billion tokens": (
        lambda f: configured(f / TOKENIZER, model_max_length=10**9),
        "the tokenizer pads to 1000000000 tokens, and the text encoder reads 3 to 77",
    ),
    "a tokenizer that pads to nothing": (
        lambda f: configured(f / TOKENIZER, model_max_length=0),
        "the tokenizer pads to 0 tokens",
    ),
    "a word beyond the embeddings": (
        lambda f: edit(
            f / TOKENIZER,
            lambda c: c.setdefault("added_tokens_decoder", {}).update(
                {"99999999": {"content": "<x>", "special": True}}
            ),
        ),
        "tokenizer",
    ),
    "ten million layers": (
        lambda f: configured(f / TEXT_CONFIG, num_hidden_layers=10**7),
        "asks for 10000000 layers, and the weights have",
    ),
    "ten million layers per block": (
        lambda f: configured(f / UNET_CONFIG, layers_per_block=10**7),
        "asks for 10000000 layers, and the weights have",
    ),
    "a vocabulary of 10**12 words": (
        lambda f: configured(f / TEXT_CONFIG, vocab_size=10**12),
        "text_encoder cannot be loaded",
    ),
    "a negative width": (lambda f: configured(f / TEXT_CONFIG, hidden_size=-1), "text_encoder cannot be loaded"),
    "no head": (lambda f: configured(f / TEXT_CONFIG, num_attention_heads=0), "text_encoder cannot be loaded"),
    "an unknown activation": (
        lambda f: configured(f / TEXT_CONFIG, hidden_act="nope"),
        "text_encoder cannot be loaded",
    ),
    "code from the hub": (
        lambda f: configured(f / TEXT_CONFIG, _attn_implementation="owner/kernel"),
        "text_encoder cannot be loaded",
    ),
    "unknown quantization": (
        lambda f: configured(f / UNET_CONFIG, quantization_config={"quant_method": "nope"}),
        "unet cannot be loaded",
    ),
    "more channels": (lambda f: configured(f / UNET_CONFIG, in_channels=9), "unet cannot be loaded"),
    "images of 0 pixels": (
        lambda f: configured(f / UNET_CONFIG, sample_size=0),
        "the network's sample_size takes a whole number from 1 to 1024, got 0",
    ),
    "images of a billion pixels": (
        lambda f: configured(f / UNET_CONFIG, sample_size=10**9),
        "the network's sample_size takes a whole number from 1 to 1024",
    ),
    "images without a size": (
        lambda f: configured(f / UNET_CONFIG, sample_size=None),
        "the network's sample_size takes a whole number from 1 to 1024, got null",
    ),
    "latents times 0": (
        lambda f: configured(f / VAE, scaling_factor=0),
        "the autoencoder's scaling_factor takes a number from 1e-06",
    ),
    "latents times NaN": (
        lambda f: configured(f / VAE, scaling_factor=float("nan")),
        "the autoencoder's scaling_factor takes a number from 1e-06",
    ),
    "latents of other channels": (lambda f: configured(f / VAE, latent_channels=3), "vae cannot be loaded"),
    "no timestep": (lambda f: configured(f / SCHEDULER, num_train_timesteps=0), "scheduler cannot be loaded"),
    "one timestep": (lambda f: configured(f / SCHEDULER, num_train_timesteps=1), "the scheduler's betas give no noise"),
    "ten billion timesteps": (
        lambda f: configured(f / SCHEDULER, num_train_timesteps=10**10),
        "scheduler cannot be loaded",
    ),
    "noise that is NaN": (
        lambda f: configured(f / SCHEDULER, beta_start=float("nan")),
        "the scheduler's betas give no noise",
    ),
    "noise above 1": (lambda f: configured(f / SCHEDULER, beta_end=5.0), "the scheduler's betas give no noise"),
    "no noise": (
        lambda f: configured(f / SCHEDULER, beta_start=0.0, beta_end=0.0),
        "the scheduler's betas give no noise",
    ),
    "noise of one step": (
        lambda f: configured(f / SCHEDULER, trained_betas=[0.1]),
        "the scheduler's betas give no noise",
    ),
    "an empty header": (lambda f: header(f / UNET, b""), "is not a readable safetensors file"),
    "a header of 2**62 bytes": (
        lambda f: (f / UNET).write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        "is not a readable safetensors file",
    ),
    "a header nested deeply": (lambda f: header(f / UNET, b"[" * 10**6), "is not a readable safetensors file"),
    "tensors that overlap": (lambda f: lie(f / UNET, a=[2, 0, 8], b=[2, 4, 12]), "is not a readable safetensors file"),
    "a tensor beyond the file": (lambda f: lie(f / UNET, a=[2, 0, 800]), "is not a readable safetensors file"),
    "a tensor of 2**80 values": (lambda f: lie(f / UNET, a=[2**80, 0, 8]), "is not a readable safetensors file"),
    "a tensor of fewer bytes": (lambda f: lie(f / UNET, a=[3, 0, 8]), "is not a readable safetensors file"),
    "no tensor": (lambda f: lie(f / UNET), "unet"),
    "a tensor with an escape": (lambda f: lie(f / UNET, **{"a\x1b[31m\n": [2, 0, 8]}), "unet"),
    "shards by their whole path": (lambda f: index(f, {"a": "/etc/passwd"}), "names weight files outside its folder"),
    "shards in the folder above": (lambda f: index(f, {"a": ".."}), "names weight files outside its folder"),
    "a shard that is the configuration": (
        lambda f: index(f, {"a": "config.json"}),
        "is not a readable safetensors file",
    ),
    "a shard that is a number": (lambda f: index(f, {"a": 5}), "names weight files outside its folder"),
    "shards that are numbers and names": (lambda f: index(f, {"a": 5, "b": "x"}), "is not an index of weight files"),
    "shards that are lists": (lambda f: index(f, {"a": ["x"]}), "is not an index of weight files"),
    "an index of no shards": (lambda f: index(f, {}), "names weight files outside its folder"),
    "an index of shards nested deeply": (lambda f: index(f, "[" * 10**6), "is not an index of weight files"),
}


def arguments(folder):
    return [
        "plan",
        "model=local",
        f"model.path={folder}",
        "model.detector=null",
        "method=uce",
        "concepts.erase=[dog]",
        "budget=smoke",
    ]


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_sentence(refused, folder, name):
    spoil, said = DAMAGES[name]
    spoil(folder)
    refused(*arguments(folder), said=[str(folder), said])


def test_a_run_says_it_before_it_makes_a_store(refused, folder):
    rewrite(folder / UNET, lambda t: t.pop(NORM))
    refused("run", *arguments(folder)[1:], "store=outputs", said=NORM)


def test_the_good_folder_is_taken(here, called, folder):
    assert called(*arguments(folder)) == 0
