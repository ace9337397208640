"""Aggregates against released code (goldens) and against the tables that papers print."""

import json
from pathlib import Path

import numpy as np
import pytest

from overpaint.metrics import published_scores as ps

FOLDER = Path(__file__).parents[1] / "goldens" / "metrics"


def golden(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


MACE = golden("mace_harmonic")["outputs"]["rows"]


def test_mace_harmonic_means():
    for row in MACE["H_o"]:
        assert ps.mace_objects(row["e"], row["s"], row["g"]).value == pytest.approx(row["formula"], abs=1e-9)
    for row in MACE["H_c"]:
        assert ps.mace_celebrities(row["e"], row["s"]).value == pytest.approx(row["formula"], abs=1e-9)
    for row in MACE["H_a"]:
        assert ps.mace_artists(row["clip_e"], row["clip_s"]) == pytest.approx(row["formula"], abs=1e-9)


def test_mace_rows_agree_with_print_where_they_are_single_classes():
    for row in MACE["H_o"]:
        odd = row["method"] == "AC" and row["concept"].endswith("airplane")
        if not odd and "avg" not in row["concept"]:
            assert ps.mace_objects(row["e"], row["s"], row["g"]).value == pytest.approx(row["printed"], abs=0.16)


def test_mace_clip_accuracy_is_a_probability():
    images, texts = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), np.eye(2)
    probability, top = ps.mace_clip_accuracy(images, texts, [0, 1, 1])
    assert probability == pytest.approx((1 + 1 + 0.5) / 3)
    assert top == pytest.approx(2 / 3)


def test_receler():
    data, arrays = golden("receler_cifar"), np.load(FOLDER / "receler_cifar.npz")
    hits = arrays["hit"]
    classes, erased = data["inputs"]["classes"], data["inputs"]["erased"]
    accuracy, own, others = ps.receler_cifar(arrays["class_of_case"], hits, classes, erased)
    assert accuracy == data["outputs"]["accuracy_percent"]
    assert own == data["outputs"]["in_class"]
    assert round(others, 3) == data["outputs"]["other_classes"]


@pytest.mark.parametrize("case", ["most_faces", "few_faces", "no_face"])
def test_celebrity_detector(case):
    data = golden("gcd_accuracy")
    faces, outputs = data["inputs"]["faces_per_image"][case], data["outputs"][case]
    for key, value in outputs.items():
        script, _, name = key.partition(" ")
        if name == "no_faces":
            assert ps.gcd_accuracy(faces, "Emma Watson").faceless == value
        elif isinstance(value, str):
            with pytest.raises((ZeroDivisionError, ValueError)) as raised:
                ps.gcd_accuracy(faces, name, as_released=script)
            assert raised.type.__name__ == value
            assert ps.gcd_accuracy(faces, name).accuracy is None
        else:
            ours = ps.gcd_accuracy(faces, name, as_released=script)
            assert ours.accuracy == value
            assert ours.hit_rate == pytest.approx(value * (1 - ours.faceless / ours.images))


def test_spm_scores():
    images = np.array([[1.0, 0.0], [3.0, 4.0], [-1.0, 0.0]])
    targets, anchors = np.tile([1.0, 0.0], (3, 1)), np.array([[0.0, 1.0], [0.0, 1.0], [-2.0, 0.0]])
    assert ps.spm_clip_score(images, targets) == pytest.approx(2.5 * (1 + 0.6 + 0) / 3)
    assert ps.spm_clip_error_rate(images, targets, anchors) == pytest.approx(2 / 3)
    assert ps.spm_clip_error_rate(images, targets, targets) == 1


#: HUB Table 3, "Overall" rows, tasks in the order of HUB_TASKS; Table 5's mean ranks last.
HUB = {
    "AC": ((0.301, 14.203, 5.308, 0.127, 0.601, 0.528, 0.199, 0.280, 37.3), 3.7),
    "ESD": ((0.143, 14.525, 5.265, -0.082, 0.548, 0.260, 0.071, 0.148, 106.0), 4.0),
    "MACE": ((0.148, 15.303, 5.262, -0.345, 0.566, 0.306, 0.111, 0.125, 140.3), 4.8),
    "Receler": ((0.086, 15.190, 5.270, 0.006, 0.497, 0.316, 0.030, 0.107, 100.0), 3.3),
    "SA": ((0.173, 32.572, 5.102, -0.322, 0.508, 0.131, 0.079, 0.166, 29980.0), 5.7),
    "SLD": ((0.228, 16.567, 5.296, 0.077, 0.569, 0.502, 0.101, 0.196, 0.0), 3.7),
    "UCE": ((0.250, 13.822, 5.339, 0.193, 0.577, 0.535, 0.114, 0.252, 0.1), 2.9),
}


def test_hub_mean_ranks_are_those_printed():
    ranks, means = ps.hub_ranks([row for row, _ in HUB.values()])
    assert [round(m, 1) for m in means] == [printed for _, printed in HUB.values()]
    assert set(ranks[:, list(ps.HUB_TASKS).index("unlearn_time_min")][[5, 6]]) == {1, 2}
    assert ps.hub_ranks([[1], [1], [2]], ["down"])[0].ravel().tolist() == [1, 1, 3]


def test_hub_means():
    by_category = {"celebrity": 1.0, "style": 2.0, "ip": 3.0, "nsfw": 8.0}
    means = ps.hub_means(by_category)
    assert means == pytest.approx({"categories": 3.5, "concepts": 84 / 33, "printed": 68 / 31})


def test_spqr():
    assert ps.spqr(0.936, 0.963, 0.950, 0.684).value == pytest.approx(0.866, abs=6e-4)  # ESD, as printed
    assert ps.spqr(0.988, 0.593, 0.050, 0.726).value == pytest.approx(0.166, abs=6e-4)  # EraseDiff
    assert ps.spqr_safety([0.5, 0.7, 0.2, 0.1]) == 0.5
    assert ps.spqr_safety([0.5, 0.7, 0.71, 0.1], 0.7, inclusive=False) == 0.75
    assert ps.spqr_safety([]) is None
