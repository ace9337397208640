"""Fixtures: photographs, and random weights of every detector's real architecture, as assets of a temporary cache."""

from pathlib import Path

import pytest
from PIL import Image

from overpaint.testbed.captions import draw_world
from random_weights import fill

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@pytest.fixture(scope="session")
def photographs():
    """Photographs that scikit-image ships: a woman, a cat, a cup and a rocket."""
    folder = Path(pytest.importorskip("skimage").__file__).parent / "data"
    return [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]


@pytest.fixture(scope="session")
def drawn():
    """Six images of the drawn world, one of another size and one in gray."""
    images = [image for _, _, image in draw_world(6, seed=3)]
    return [*images[:4], images[4].resize((96, 80)), images[5].convert("L")]


@pytest.fixture(scope="session")
def random_cache(tmp_path_factory):
    """``random_cache(name)`` fills one asset of a temporary cache with random weights, and returns the cache's folder."""
    root = tmp_path_factory.mktemp("assets")

    def filled(name):
        fill(root, name)
        return root

    return filled
