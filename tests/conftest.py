"""The tiny pipeline that official code was run on, and the folder of what it wrote."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import overpaint
from overpaint.attacks.attack import Scene
from overpaint.concepts import Catalogue, Concept
from overpaint.prompts import Prompt, shots

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def goldens():
    return GOLDENS


@pytest.fixture(scope="session")
def tiny_sd():
    """A random Stable-Diffusion-layout pipeline of 1.5 M parameters."""
    return overpaint.load_model(str(GOLDENS / "tiny_sd"))


@pytest.fixture(scope="session")
def tiny_sd_float64():
    return overpaint.load_model(str(GOLDENS / "tiny_sd"), dtype="float64")


@pytest.fixture(scope="session")
def golden():
    """``golden("esd/esdold_x")`` -> (meta, results, draws and intermediates) of one run of official code."""

    def read(tag):
        path = GOLDENS / tag
        extra = path.with_name(f"{path.name}.extra.safetensors")
        meta = json.loads(path.with_name(f"{path.name}.json").read_text())["meta"]
        return meta, load_file(f"{path}.safetensors"), load_file(extra) if extra.exists() else {}

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
def scene(tiny_sd, cat):
    """A cat in front of the tiny model: two prompts, three seeds each."""
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
    return Scene(cat, shots(plain, 3), catalogue, tiny_sd, lambda n: pictures[:n])
