"""The common test suite of detectors. It runs over every ``conf/detector/*.yaml``, so a new one is tested automatically.

Weights that are not on this machine are replaced by random ones of the same architecture (``tests/random_weights.py``).
"""

import json
import re
from dataclasses import fields
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import overpaint
from overpaint.detectors import detector_identity
from overpaint.detectors.detector import OTHERS, Detector
from overpaint.errors import AssetMissing
from overpaint.grid.assets import referred
from overpaint.grid.registry import component, components
from overpaint.images.stages.score import scores
from requirements import unmet

DETECTORS = sorted(components("detector"))
OBJECTS = {"cat": "a photo of a cat", "cup": "a photo of a cup", "car": "a photo of a car"}
#: Classes of detectors that take a concept set's own words.
CLASSES = {
    "clip": OBJECTS,
    "clip_b32": OBJECTS,
    "imagenet": {"tabby": "a tabby", "espresso": "a cup", "n04065272": "a caravan"},
    "style_vit": {"Van Gogh": "by Van Gogh", "artist-7": "by another"},
    "unlearncanvas": {"Van Gogh": "by Van Gogh"},
    "celebrity": {"Emma Watson": "a portrait of Emma Watson", "50 Cent": "a portrait of 50 Cent"},
}


@pytest.fixture(params=DETECTORS)
def chosen(request, random_cache, monkeypatch):
    pytest.importorskip("skimage")
    why = missing(request.param, random_cache, monkeypatch)
    if why:
        pytest.skip(why)
    return component("detector", request.param)


#: Why a detector cannot be tested here, by name.
MISSING: dict[str, str] = {}


def missing(name, random_cache, monkeypatch):
    """Why a detector cannot be tested here; empty if all its weights are in place."""
    found = component("detector", name)
    for asset in referred(found.defaults):
        monkeypatch.setenv("OVERPAINT_ASSETS", str(random_cache(asset)))
    if name not in MISSING:
        try:
            detector = built(found)
            detector.assets()
            detector.check()
            MISSING[name] = ""
        except AssetMissing as error:
            MISSING[name] = str(error)
    return MISSING[name]


#: Settings that a detector needs besides classes; `people` adds the folder of ``face``.
SETTINGS: dict[str, dict[str, str]] = {}


@pytest.fixture(scope="session", autouse=True)
def people(photographs, tmp_path_factory):
    """A folder with a photograph of one person, for the detector ``face``."""
    folder = tmp_path_factory.mktemp("people")
    (folder / "Eileen").mkdir()
    photographs[0].save(folder / "Eileen" / "1.png")
    SETTINGS["face"] = {"references": str(folder)}


def built(chosen):
    classes = {"classes": CLASSES[chosen.name]} if chosen.name in CLASSES else {}
    return chosen.build(classes | SETTINGS.get(chosen.name, {}))


@pytest.fixture
def detector(chosen):
    return built(chosen)


@pytest.fixture
def pictures(chosen, request):
    """Six different images: drawn ones for the testbed's detectors, photographs with a small and a gray one for the others."""
    if chosen.name.startswith("oracle"):
        return request.getfixturevalue("drawn")
    shown = request.getfixturevalue("photographs")
    return [*shown, shown[0].resize((96, 80)), shown[1].convert("L")]


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
    for column in {"detections", "answers"} & set(frame):
        assert all(isinstance(json.loads(text), list | dict) for text in frame[column])


def test_twice_the_same_whatever_the_global_seed(chosen, pictures):
    torch.manual_seed(1)
    one = built(chosen).score(pictures)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = built(chosen).score(pictures)
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
    assert list(getattr(detector, "labels", labels(empty))) == labels(empty)


def test_a_failed_picture_is_neither_present_nor_absent(detector, pictures, tmp_path):
    """The stage scores only the other images, and keeps the positions of all images."""
    found = scores(detector, [pictures[0], None, pictures[1]])
    assert found["failed"].tolist() == [False, True, False]
    assert found.loc[1, labels(found)].isna().all()
    assert_close(found.iloc[[0, 2]].reset_index(drop=True), detector.score(pictures[:2]), 1e-5)
    found.to_parquet(tmp_path / "scores.parquet", index=False)
    again = pd.read_parquet(tmp_path / "scores.parquet")
    for column in set(OTHERS) & set(found) - {"failed"}:
        assert again[column].isna().tolist() == [False, True, False]


def test_its_assets_are_named_and_hashed(chosen, detector):
    assets = detector.assets()
    assert assets and detector.assets() == assets
    assert all(name and re.fullmatch("[0-9a-f]{64}", digest) for name, digest in assets.items())
    identity = detector_identity(chosen.name, CLASSES.get(chosen.name), SETTINGS.get(chosen.name))
    assert identity["assets"] == assets and identity["version"] == detector.version >= 1
    assert identity.keys() >= chosen.defaults.keys(), "what decides its scores is in its identity"
    assert identity.get("classes") == CLASSES.get(chosen.name)


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


def test_detectors_are_told_apart(drawn, photographs, random_cache, monkeypatch):
    """Two detectors never have the same identity. Two networks never have the same scores; otherwise their agreement would mean
    nothing."""
    names = [name for name in DETECTORS if not missing(name, random_cache, monkeypatch)]
    identities = [repr(sorted(detector_identity(name, settings=SETTINGS.get(name)).items(), key=str)) for name in names]
    assert len(set(identities)) == len(names)
    found = {name: built(component("detector", name)).score([*drawn[:2], *photographs[:2]]) for name in names}
    for one, other in combinations(names, 2):
        if component("detector", one).defaults.get("weights", one) != component("detector", other).defaults.get(
            "weights", other
        ):
            assert not found[one].equals(found[other])


def test_a_white_picture_of_any_size_has_scores(detector):
    for size in ((64, 64), (1, 1), (200, 30)):
        assert not detector.score([Image.new("RGB", size, "white")])["failed"].any(), size
