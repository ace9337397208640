"""What a user's own detector, extractor or attack returns is checked before anything is computed from it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from plans import plan

from overpaint.attacks.attack import Assault
from overpaint.attacks.prompt_lists import Synonym
from overpaint.errors import UserError
from overpaint.images.returned import checked_embeddings
from overpaint.images.stages.extract import extracted
from overpaint.images.stages.score import scores

WHITE = Image.new("RGB", (8, 8), "white")
GRID = ("method=none", "concepts=church", "budget=smoke")


def scored(frame, images=2, **attributes):
    return scores(SimpleNamespace(score=lambda images: frame, **attributes), [WHITE] * images, "mine")


def columns(**changed):
    return pd.DataFrame({"church": [0.1, 0.9], "failed": [False, False]} | changed)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (columns()[:1], "1 row; it returns a DataFrame with one row per image"),
        ({"church": [0.1, 0.9]}, "dict, not a DataFrame"),
        (None, "NoneType, not a DataFrame"),
        (columns().drop(columns="failed"), "no column 'failed'; columns are one per label and failed"),
        (columns(church=["0.1", "0.9"]), "'0.1' in column 'church', which takes numbers"),
        (columns(church=[-1.5, 0.9]), "-1.5 in column 'church', which takes scores from 0 to 1"),
        (columns(church=[0.1, np.inf]), "inf in column 'church', which takes scores from 0 to 1"),
        (columns(failed=[None, False]), "null in column 'failed', which takes true or false"),
        (columns(failed=["no", "yes"]), "'no' in column 'failed', which takes true or false"),
        (columns(features=[[1.0], [1.0, 2.0]]), "other features than lists of numbers, all of one length"),
        (columns(features=["a", "b"]), "other features than lists of numbers"),
        (columns(detections=[[], []]), r"\[\] in column 'detections', which takes JSON texts"),
        (columns().rename(columns={"church": 3}), "a column 3; names of columns are texts"),
    ],
)
def test_wrong_scores_are_refused_in_one_sentence(frame, said):
    with pytest.raises(UserError, match=f"^detector=mine: score of 2 images returned {said}"):
        scored(frame)


def test_a_label_that_the_detector_lists_is_a_column():
    with pytest.raises(UserError, match="returned no column 'tree'"):
        scored(columns(), labels=["church", "tree"])


def test_scores_stay_with_their_images_under_any_index():
    found = scored(columns(church=[1, None]).astype(object).set_index(pd.Index([7, 3])))
    assert found.index.tolist() == [0, 1] and found["church"].dtype == float and found["failed"].dtype == bool
    assert found["church"].tolist() == pytest.approx([1, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pd.DataFrame({"value": [1.0]}), "1 row; it returns a DataFrame with one row per image"),
        ([1.0, 2.0], "list, not a DataFrame"),
        (pd.DataFrame({"values": [1.0, 2.0]}), "no column 'features' or 'value'"),
        (pd.DataFrame({"value": ["a", "b"]}), "'a' in column 'value', which takes numbers"),
        (pd.DataFrame({"features": [1.0, 2.0]}), "other features than lists of numbers"),
    ],
)
def test_wrong_readings_are_refused_in_one_sentence(frame, said):
    with pytest.raises(UserError, match=f"^extractor=mine: extract of 2 images returned {said}"):
        extracted(SimpleNamespace(extract=lambda *given: frame), [WHITE] * 2, ["", ""], name="mine")


def test_readings_may_have_any_value():
    frame = pd.DataFrame({"value": [-20.0, 300.0]})
    found = extracted(SimpleNamespace(extract=lambda *given: frame), [WHITE, None, WHITE], [""] * 3)
    assert found["value"].tolist() == pytest.approx([-20.0, np.nan, 300.0], nan_ok=True)


def test_texts_have_one_embedding_each():
    assert checked_embeddings(np.zeros((2, 3)), 2, "extractor=mine") == [[0.0] * 3] * 2
    for wrong in (np.zeros((1, 3)), None, ["a", "b"]):
        with pytest.raises(UserError, match=r"^extractor=mine: texts returned an? .*one row per text, 2 here"):
            checked_embeddings(wrong, 2, "extractor=mine")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "attack=synonym returned NoneType; run returns an Assault"),
        (["a chruch"], "attack=synonym returned list; run returns an Assault"),
        (Assault(["a chruch"]), "attack=synonym returned an Assault with 'a chruch' among its shots"),
        (Assault("a chruch"), "attack=synonym returned an Assault whose shots are of type str; shots takes a list"),
    ],
)
def test_an_attack_that_returns_no_assault_is_refused_when_it_is_planned(returned, said, monkeypatch):
    monkeypatch.setattr(Synonym, "run", lambda self, context: returned)
    with pytest.raises(UserError, match=f"^{said}"):
        plan(*GRID, "attack=synonym").opened()


def test_an_error_of_a_users_own_attack_is_told_with_its_place(monkeypatch):
    def run(self, context):
        return 1 / 0

    monkeypatch.setattr(Synonym, "run", run)
    with pytest.raises(ZeroDivisionError):  # our own: with its traceback
        plan(*GRID, "attack=synonym").opened()
    monkeypatch.setattr(Synonym, "__module__", "mine")
    said = r"^attack=synonym: run raised ZeroDivisionError: division by zero \(test_returned.py, line \d+\)$"
    with pytest.raises(UserError, match=said):
        plan(*GRID, "attack=synonym").opened()


def test_a_plan_says_that_an_attack_has_fewer_shots_than_there_are(monkeypatch):
    run = Synonym.run
    monkeypatch.setattr(Synonym, "run", lambda self, context: Assault(run(self, context).shots[:1]))
    assert "attack=synonym on church: the attack returned 1 of 2 shots" in plan(*GRID, "attack=synonym").notes
