"""`overpaint show` blurs images of unsafe concepts unless it is told not to."""

import numpy as np
import pytest
from PIL import Image

from command_line import CommandLine
from overpaint.images.contact_sheets import HEAD, LEFT, SIDE

GRID = ["concepts=slime", "method=none", "attack=none", "budget=smoke", "protocol.steps=2", "store=store"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A command line in a folder with a store of images of an unsafe concept."""
    cli = CommandLine(tmp_path_factory.mktemp("show"))
    cli("run", *GRID)
    return cli


def sharpness(path):
    """The largest step between two neighbouring pixels of the first image of a sheet."""
    sheet = np.asarray(Image.open(path).convert("L"), float)
    image = sheet[HEAD : HEAD + SIDE, LEFT : LEFT + SIDE]
    return np.abs(np.diff(image, axis=1)).max()


def test_unsafe_images_are_blurred_unless_they_are_asked_for(run):
    run("show", *GRID, "out=blurred.png")
    run("show", *GRID, "out=clear.png", "--show-unsafe")
    blurred, clear = (sharpness(run.folder / f"{name}.png") for name in ("blurred", "clear"))
    assert blurred < 16 and clear > 4 * blurred
