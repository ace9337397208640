"""Stage *replicate*: distances to training images, on vectors and images that are checked by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from overpaint.images.stages import replicate
from overpaint.images.stages.generate import write_images


def gray(level, side=2):
    return Image.new("RGB", (side, side), (level,) * 3)


def test_distances_are_root_mean_squares():
    """The image is (0, 0); its training image (3, 4) is sqrt(25 / 2) away, and the others 1, sqrt(2) and 2."""
    others = np.array([[2, 2], [1, 1], [2, 0]], float)
    own, nearest, closest = replicate.distances(np.zeros(2), np.array([3.0, 4.0]), others)
    assert own == pytest.approx(np.sqrt(12.5)) and closest == pytest.approx(1)
    assert nearest == pytest.approx((1 + np.sqrt(2) + 2) / 3)


def test_the_mean_is_over_the_nearest_images_only(monkeypatch):
    monkeypatch.setattr(replicate, "NEAREST", 2)
    others = np.array([[2, 2], [1, 1], [2, 0]], float)
    assert replicate.distances(np.zeros(2), np.zeros(2), others)[1:] == pytest.approx(((1 + np.sqrt(2)) / 2, 1))


def test_a_row_an_image_and_nan_for_a_failed_one(tmp_path):
    """Pixels are from 0 to 1. An image of another size is resized to its training image's."""
    source = SimpleNamespace(
        repeated=lambda: [(gray(51), "dark"), (gray(255), "white")],
        ordinary_training=lambda count: [gray(0), gray(102)],
    )
    write_images(tmp_path, [gray(51), None, gray(204, side=4)], [{"prompt": p} for p in ("dark", "dark", "white")])
    task = SimpleNamespace(runtime={"pictures": "mine"})
    bench = SimpleNamespace(pictures={"mine": source}.__getitem__)
    assert replicate.run(task, {"images": tmp_path}, tmp_path, bench) == {"images": 3}
    found = pd.read_parquet(tmp_path / "replication.parquet")
    assert list(found.columns) == ["own", "nearest", "closest"]
    assert found.loc[0].tolist() == pytest.approx([0, 0.2, 0.2], abs=1e-6)
    assert found.loc[1].isna().all()
    assert found.loc[2].tolist() == pytest.approx([0.2, 0.6, 0.4], abs=1e-6)
