"""Fixtures: the tiny pipeline on which the official code was run, and its recordings."""

import copy
import json
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import overpaint
from overpaint.attacks.attack import AttackContext, Verdict
from overpaint.grid.concepts import Catalogue, Concept
from overpaint.grid.prompts import Prompt, shots

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def goldens():
    return GOLDENS


@pytest.fixture(scope="session")
def tiny_sd():
    """A random Stable-Diffusion-layout pipeline of 1.5 M parameters."""
    return overpaint.load_model(str(GOLDENS / "tiny_sd"))


@pytest.fixture
def predicting(tiny_sd):
    """``predicting("v_prediction")``: the tiny model with that prediction type."""

    def read(kind):
        model, scheduler = copy.copy(tiny_sd), tiny_sd.pipeline.scheduler
        model.pipeline = copy.copy(tiny_sd.pipeline)
        model.pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=kind)
        return model

    return read


@pytest.fixture(scope="session")
def tiny_sd_float64():
    return overpaint.load_model(str(GOLDENS / "tiny_sd"), dtype="float64")


@pytest.fixture(scope="session")
def tiny_sd_in(request):
    """``tiny_sd_in("f64")``: the tiny model in the precision of a recording."""
    return lambda precision: request.getfixturevalue({"f32": "tiny_sd", "f64": "tiny_sd_float64"}[precision])


@pytest.fixture(scope="session")
def tiny_sdxl_folder(tmp_path_factory):
    """A random SDXL-layout pipeline with ``tiny_sd``'s tokenizer. Its second tokenizer has another padding token."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    first, second = (CLIPTokenizer.from_pretrained(GOLDENS / "tiny_sd" / "tokenizer") for _ in range(2))
    second.pad_token = "!"
    words = {"bos_token_id": first.bos_token_id, "eos_token_id": first.eos_token_id, "vocab_size": len(first)}

    def text(width, layers):
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": 24, "num_attention_heads": 4}
        return CLIPTextConfig(num_hidden_layers=layers, max_position_embeddings=77, **sizes, **words)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionXLPipeline(
            vae=AutoencoderKL.from_pretrained(GOLDENS / "tiny_sd" / "vae"),
            text_encoder=CLIPTextModel(text(16, 2)),
            text_encoder_2=CLIPTextModelWithProjection(text(32, 3)),
            tokenizer=first,
            tokenizer_2=second,
            unet=UNet2DConditionModel(
                sample_size=16,
                block_out_channels=(32, 64),
                norm_num_groups=8,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=1,
                transformer_layers_per_block=(1, 2),
                attention_head_dim=(4, 8),
                cross_attention_dim=48,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 24,
            ),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
            ),
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny_sdxl")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl(tiny_sdxl_folder):
    return overpaint.load_model(str(tiny_sdxl_folder))


@pytest.fixture(scope="session")
def golden():
    """``golden("esd/esdold_x")`` -> (meta, results, draws and intermediates) of one run of official code."""

    def read(tag):
        meta = json.loads((GOLDENS / f"{tag}.json").read_text())["meta"]
        files = [GOLDENS / f"{tag}{ending}.safetensors" for ending in ("", ".extra")]
        return meta, *(load_file(file) if file.exists() else {} for file in files)

    return read


@pytest.fixture
def cat():
    return Concept(
        "cat",
        article="a",
        label="cat",
        synonyms=("dog", "ship", "the old bird"),
        paraphrases=("an animal on the ground",),
        translations={"es": ("gato",), "de": ("katze", "kater")},
    )


@pytest.fixture
def context(tiny_sd, cat, judge):
    """An attack context for a cat on the tiny model: two prompts with three seeds each."""
    catalogue = Catalogue(
        {"cat": cat},
        {"object": {"en": ("a photo of {}", "a picture of {}"), "es": ("una foto de {}", "un cuadro de {}")}},
        implicit=("something furry on the sofa", "it purrs"),
    )
    plain = [
        Prompt("a photo of a cat", "target", "cat", ("cat",)),
        Prompt("a cat and a ship", "target", "cat", ("cat",)),
    ]
    pictures = tiny_sd.sample(["cat"] * 2, [0, 1], steps=1, guidance_scale=1)
    protocol = {"scheduler": "ddim", "steps": 1, "guidance_scale": 7.5, "size": 32}
    return AttackContext(
        cat,
        shots(plain, 3),
        catalogue,
        tiny_sd,
        lambda n: pictures[:n],
        unedited=lambda: nullcontext(tiny_sd),
        adapted=lambda change: nullcontext(tiny_sd),
        paint=painter(tiny_sd, protocol),
        judge=judge,
        protocol=protocol,
        features=lambda images: torch.stack([torch.tensor(list(image.tobytes())).float() for image in images]),
    )


def painter(model, protocol):
    """The ``paint`` function of a context for that model."""

    def paint(texts, seeds, embeds=None, guidance=None, worded=True):
        scale = guidance or protocol["guidance_scale"]
        return model.sample(texts, seeds, embeds=embeds, worded=worded, **protocol | {"guidance_scale": scale})

    return paint


@pytest.fixture
def in_front_of(context):
    """``in_front_of(model)``: the context for another model."""

    def moved(model):
        paint = painter(model, context.protocol)
        here = {"unedited": lambda: nullcontext(model), "adapted": lambda change: nullcontext(model)}
        return replace(context, victim=model, paint=paint, **here)

    return moved


class ScriptedJudge:
    """Reports the concept in the images whose numbers, counted from 0, are in ``fires``."""

    def __init__(self):
        self.fires, self.seen = (), []

    def __call__(self, images):
        numbers = range(len(self.seen), len(self.seen) + len(images))
        self.seen += images
        return [Verdict(n in self.fires, float(n in self.fires)) for n in numbers]


@pytest.fixture
def judge():
    return ScriptedJudge()


@pytest.fixture
def erased(context, tiny_sd):
    """``with erased(erasure) as context:`` the context with an erasure attached; ``context.unedited`` detaches it and
    ``context.adapted`` changes its adapters."""

    @contextmanager
    def attached(erasure):
        detach = erasure.attach(tiny_sd)

        @contextmanager
        def instead(other=None):
            nonlocal detach
            detach()
            with other.attached(tiny_sd) if other else nullcontext():
                yield tiny_sd
            detach = erasure.attach(tiny_sd)

        try:
            yield replace(context, unedited=instead, adapted=lambda change: instead(erasure.adapted(change)))
        finally:
            detach()

    return attached
