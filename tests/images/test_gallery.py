"""The table of scores: what is read from many artefacts at once is what each of them holds."""

import numpy as np
import pandas as pd
import pytest

from overpaint.images.gallery import SCORE_COLUMNS, score_table
from overpaint.report.gathered import ARTEFACT
from overpaint.run.plan import Plan
from overpaint.run.store import FEW, CorruptArtefact, Store
from overpaint.run.tasks import Task

CELL = dict.fromkeys(("model", "concepts", "method", "attack", "protocol", "budget"), "x")
#: Labels of two detectors.
LABELS = [["church", "car"], ["cat", "car", "dog"]]


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def shots(count):
    shared = {"role": "target", "concept": "church", "expects": ["church"], "variant": ""}
    return [shared | {"text": f"prompt {n}", "noise": f"p{n}", "index": n} for n in range(count)]


def planned(store, cells, images=3):
    """A plan whose scores are stored, of two detectors in turn, and its scores by key."""
    plan, random, files = Plan("images"), np.random.default_rng(0), {}
    for number in range(cells):
        made = plan.add(Task("generate", {"n": number}))
        scored = plan.add(Task("score", {"n": number, "detector": f"detector {number % 2}"}, {"images": made.key}))
        config = {"cell": CELL | {"seed": number}, "shots": {"images": [shots(images)]}}
        plan.cells.append((number, plan.add(Task("measure", config, {"images/0": scored.key}))))
        labels = LABELS[number % 2]
        frame = pd.DataFrame(random.random((images, len(labels))), columns=labels)
        frame["failed"] = [False, *[bool(number % 3 == 0)] * (images - 1)]
        frame.loc[frame["failed"], labels] = np.nan
        frame["features"] = [[1.0, 2.0]] * images
        files[scored.key] = frame
        with store.workspace() as folder:
            frame.to_parquet(folder / "scores.parquet", index=False)
            store.publish("score", scored.key, folder, {})
    return plan, files


@pytest.mark.parametrize("cells", [4, FEW + 10])
def test_the_table_holds_the_scores_of_every_image(store, cells):
    plan, files = planned(store, cells)
    one = [plan.tasks[task.inputs["images/0"]].key for _, task in plan.cells]
    wanted = pd.concat([files[key].drop(columns="features") for key in one], ignore_index=True)
    for _ in range(2):  # from the artefacts, and from what the index keeps of them
        found = score_table(plan, store)
        assert list(found) == [*SCORE_COLUMNS, "church", "car", "cat", "dog"] and "features" not in found
        labels = ["failed", "church", "car", "cat", "dog"]
        pd.testing.assert_frame_equal(found[labels], wanted[labels], check_exact=True)
        assert list(found["seed"]) == [number for number in range(cells) for _ in range(3)]
        assert list(found["prompt_id"]) == ["p0", "p1", "p2"] * cells and ARTEFACT not in found


def test_cells_without_scores_are_left_out(store):
    plan, _ = planned(store, 2)
    store.set_aside("score", plan.tasks[plan.cells[0][1].inputs["images/0"]].key)
    assert set(score_table(plan, store)["seed"]) == {1}
    store.set_aside("score", plan.tasks[plan.cells[1][1].inputs["images/0"]].key)
    assert list(score_table(plan, store)) == list(SCORE_COLUMNS)


def test_scores_that_are_not_those_of_the_images_are_damage(store):
    plan, _ = planned(store, 1)
    plan.cells[0][1].config["shots"]["images"][0].append(shots(4)[3])
    with pytest.raises(CorruptArtefact, match="scores of 3 images instead of 4"):
        score_table(plan, store)
