"""The common test suite of detectors. It runs over every ``conf/detector/*.yaml``, so a new one is tested automatically."""

import re
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import overpaint
from overpaint.detectors import detector_identity
from overpaint.detectors.detector import Detector
from overpaint.errors import AssetMissing
from overpaint.grid.registry import component, components
from overpaint.images.stages.score import scores
from overpaint.testbed.captions import draw_world
from requirements import unmet

DETECTORS = sorted(components("detector"))
#: Columns that are not labels.
OTHERS = ["features", "failed"]


@pytest.fixture(scope="module")
def pictures():
    """Six different images of the drawn world, one of another size and one in gray."""
    drawn = [image for _, _, image in draw_world(6, seed=3)]
    return [*drawn[:4], drawn[4].resize((96, 80)), drawn[5].convert("L")]


@pytest.fixture(params=DETECTORS)
def chosen(request):
    try:
        component("detector", request.param).build().assets()
    except AssetMissing as error:
        pytest.skip(str(error))
    return component("detector", request.param)


@pytest.fixture
def detector(chosen):
    return chosen.build()


def labels(frame):
    return [column for column in frame.columns if column not in OTHERS]


def assert_close(one: pd.DataFrame, other: pd.DataFrame, tolerance: float):
    assert list(one.columns) == list(other.columns) and len(one) == len(other)
    np.testing.assert_allclose(one[labels(one)], other[labels(one)], rtol=0, atol=tolerance)
    assert one["failed"].tolist() == other["failed"].tolist()
    if "features" in one:
        np.testing.assert_allclose(np.stack(one["features"]), np.stack(other["features"]), rtol=0, atol=100 * tolerance)


def test_a_row_a_picture_with_scores_from_0_to_1(detector, pictures):
    frame = detector.score(pictures)
    assert isinstance(detector, Detector)
    assert list(frame.index) == list(range(len(pictures)))
    assert labels(frame) and frame.columns.is_unique and all(isinstance(c, str) for c in frame.columns)
    assert frame["failed"].dtype == bool and not frame["failed"].any()
    found = frame[labels(frame)].to_numpy(float)
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
    assert np.ptp(found, axis=0).max() > 0, "it tells some of these pictures apart"
    if "features" in frame:
        assert len({len(row) for row in frame["features"]}) == 1
        assert np.isfinite(np.stack(frame["features"])).all()


def test_twice_the_same_whatever_the_global_seed(chosen, pictures):
    torch.manual_seed(1)
    one = chosen.build().score(pictures)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = chosen.build().score(pictures)
    pd.testing.assert_frame_equal(one, two)
    assert torch.equal(torch.get_rng_state(), state), "a detector draws nothing from the global generator"


def test_a_score_depends_on_its_picture_alone(detector, pictures):
    """It does not depend on the batch or on the position in the batch."""
    whole = detector.score(pictures)
    single = pd.concat([detector.score([picture]) for picture in pictures], ignore_index=True)
    assert_close(whole, single, 1e-5)
    order = [3, 0, 5, 1, 4, 2]
    mixed = detector.score([pictures[n] for n in order])
    assert_close(whole.iloc[order].reset_index(drop=True), mixed, 1e-5)


def test_the_pictures_are_left_alone(detector, pictures):
    before = [picture.tobytes() for picture in pictures]
    detector.score(pictures)
    assert [picture.tobytes() for picture in pictures] == before


def test_no_picture_no_row_and_the_same_columns(detector, pictures):
    empty = detector.score([])
    assert len(empty) == 0 and labels(empty) == labels(detector.score(pictures[:1]))


def test_a_failed_picture_is_neither_present_nor_absent(detector, pictures):
    """The stage scores only the other images, and keeps the positions of all images."""
    found = scores(detector, [pictures[0], None, pictures[1]])
    assert found["failed"].tolist() == [False, True, False]
    assert found.loc[1, labels(found)].isna().all()
    assert_close(found.iloc[[0, 2]].reset_index(drop=True), detector.score(pictures[:2]), 1e-5)


def test_its_assets_are_named_and_hashed(chosen, detector):
    assets = detector.assets()
    assert assets and detector.assets() == assets
    assert all(name and re.fullmatch("[0-9a-f]{64}", digest) for name, digest in assets.items())
    identity = detector_identity(chosen.name)
    assert identity["assets"] == assets and identity["version"] == detector.version >= 1
    assert identity.keys() >= chosen.defaults.keys(), "what decides its scores is in its identity"


def test_an_unknown_or_wrong_setting_is_refused(chosen):
    names = [f.name for f in fields(chosen.load())]
    assert sorted(chosen.defaults) == sorted(names)
    with pytest.raises(overpaint.UserError, match=f"'qqq' in detector={chosen.name} "):
        chosen.build({"qqq": 1})
    for key in names:
        with pytest.raises(overpaint.UserError, match=f"did you mean '{key}'"):
            chosen.build({f"{key}x": 1})
        with pytest.raises(overpaint.UserError, match=f"(?s){chosen.name}.*{key}"):
            chosen.build({key: {"a": 1}})


@pytest.mark.parametrize("name", DETECTORS)
def test_the_yaml_is_complete(name):
    missing = unmet("detector", name, Detector)
    assert not missing, f"conf/detector/{name}.yaml:\n- " + "\n- ".join(missing)


def test_detectors_are_told_apart(pictures):
    """Two detectors never have the same scores; otherwise their agreement would mean nothing."""
    found = {name: component("detector", name).build().score(pictures) for name in DETECTORS}
    identities = [repr(sorted(detector_identity(name).items(), key=str)) for name in DETECTORS]
    assert len(set(identities)) == len(DETECTORS)
    for one, other in pairwise(DETECTORS):
        assert not found[one].equals(found[other])


def test_a_white_picture_of_any_size_has_scores(detector):
    for size in ((64, 64), (1, 1), (200, 30)):
        assert not detector.score([Image.new("RGB", size, "white")])["failed"].any(), size
