"""The safety checker as a guard: which images turn black, by a stand-in detector and by Stable Diffusion's own rule."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import overpaint
from overpaint.grid.concepts import Concept
from overpaint.methods.safety_checker import ImageScreen

CHURCH = Concept("church", label="church", article="a")
ORACLE = {"detector": "oracle_b", "weights": None}


def screen(**values):
    settings = {"classes": {}, "labels": ["church"], "threshold": 0.5, "device": "cpu"} | ORACLE
    return ImageScreen(**settings | values)


def grey(shade, size=(64, 64)):
    return Image.new("RGB", size, (shade,) * 3)


class Brightness:
    """Scores an image by its brightness; an image of shade 255 cannot be scored."""

    device = "cpu"

    def score(self, images):
        shades = np.array([np.asarray(image).mean() / 255 for image in images])
        shades[shades == 1] = np.nan
        return pd.DataFrame({"church": shades, "boat": 1 - shades, "failed": np.isnan(shades)})


@pytest.fixture
def bright():
    found = screen(threshold=0.5)
    found.__dict__["_network"] = Brightness()
    return found


def test_images_from_the_threshold_on_and_those_without_a_score_turn_black(bright):
    images = [grey(100), None, grey(200, (32, 48)), grey(255)]
    screened = bright.screened(images)
    assert screened[0] is images[0] and screened[1] is None
    assert screened[2].size == (32, 48)
    assert not np.asarray(screened[2]).any() and not np.asarray(screened[3]).any()
    assert bright.screened([None]) == [None] and bright.screened([]) == []


def test_the_largest_score_of_several_labels_counts(bright):
    bright.labels = ["church", "boat"]
    assert [not np.asarray(image).any() for image in bright.screened([grey(140), grey(100)])] == [True, True]
    bright.labels, bright.threshold = ["boat"], 0.7
    assert [not np.asarray(image).any() for image in bright.screened([grey(140), grey(10)])] == [False, True]


def test_every_image_of_the_model_passes_through_it_and_others_are_unchanged(tiny_sd):
    plain = tiny_sd.sample(["a church"] * 3, [0, 1, 2], steps=3)
    scores = screen()._network.score(plain)["church"]
    middle = float(scores.sort_values().iloc[1])
    with overpaint.erase(tiny_sd, "safety_checker", erase=[CHURCH], threshold=middle, **ORACLE).attached(tiny_sd):
        screened = tiny_sd.sample(["a church"] * 3, [0, 1, 2], steps=3)
    for before, after, score in zip(plain, screened, scores, strict=True):
        assert np.array_equal(after, Image.new("RGB", before.size) if score >= middle else before)


def test_sequences_screen_one_after_the_other(tiny_sd):
    boat = Concept("boat", label="boat")
    both = overpaint.erase(tiny_sd, "safety_checker", erase=[CHURCH, boat], sequential=True, **ORACLE)
    with both.attached(tiny_sd):
        assert len(tiny_sd.screens) == 2
    assert tiny_sd.screens == ()


def test_a_detector_with_words_of_its_own_gets_the_concepts(monkeypatch):
    asked = {}

    class Chosen:
        def told(self, classes):
            return {"classes": classes}

        def build(self, values):
            asked.update(values)
            return Brightness()

    monkeypatch.setattr("overpaint.methods.safety_checker.component", lambda kind, name: Chosen())
    assert isinstance(screen(classes={"nudity": "nudity"}, weights="folder")._network, Brightness)
    assert asked == {"weights": "folder", "classes": {"nudity": "nudity"}}


@pytest.mark.parametrize(
    "values, word",
    [
        (ORACLE | {"detector": "oracel"}, "did you mean 'oracle'"),
        (ORACLE | {"threshold": 1.5}, "threshold"),
        (ORACLE | {"labels": ["chruch"]}, "did you mean 'church'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny_sd, values, word):
    with pytest.raises(overpaint.UserError, match=word):
        overpaint.erase(tiny_sd, "safety_checker", erase=[CHURCH], **values)


def test_a_concept_that_the_detector_does_not_know_is_refused(tiny_sd):
    with pytest.raises(overpaint.UserError, match="label"):
        overpaint.erase(tiny_sd, "safety_checker", erase=["zeppelin"], **ORACLE)
