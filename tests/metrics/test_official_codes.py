"""Figures of the papers' own code, computed by the metrics that commands run, on the same synthetic inputs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from overpaint.detectors.nudenet import EXPOSED9
from overpaint.grid.concepts import Concept
from overpaint.metrics import text_similarity as text
from overpaint.metrics.accuracy import ErasedCelebrities, FaceRate, Locality, Unlearned
from overpaint.metrics.attack_success import PreAttackSuccess, ReleasedPostAsr
from overpaint.metrics.membership import privleak, released_roc, tpr_at
from overpaint.metrics.metric import Evidence
from overpaint.metrics.proportions import TargetProportion
from overpaint.metrics.unsafe_content import ClassesDetected, Detections, InappropriateProbability, Safety
from overpaint.report import statistics
from overpaint.report.ranks import mean_ranks
from overpaint.report.statistics import Estimate

FOLDER = Path(__file__).parents[1] / "goldens" / "metrics"


def golden(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def images(rows, role="target", concept="church"):
    """A frame of one image a row, each of a prompt of its own."""
    base = {"seed": 0, "role": role, "concept": concept, "variant": "", "draw": 0, "failed": False}
    found = [{"prompt_id": f"p{n:03}", "cluster": f"p{n:03}", "expects": []} | base | row for n, row in enumerate(rows)]
    return pd.DataFrame(found)


def evidence(frame, erased="church", **more):
    return Evidence([Concept(erased, label=erased)], frame, frame, **more)


MACE = golden("mace_harmonic")["outputs"]["rows"]


def harmonic(*shares):
    return statistics.harmonic_of_estimates([Estimate(share) for share in shares]).value


def test_mace_harmonic_means():
    for row in MACE["H_o"]:
        ours = 100 * harmonic(1 - row["e"] / 100, row["s"] / 100, 1 - row["g"] / 100)
        assert ours == pytest.approx(row["formula"], abs=1e-9)
        odd = row["method"] == "AC" and row["concept"].endswith("airplane")
        if not odd and "avg" not in row["concept"]:
            assert ours == pytest.approx(row["printed"], abs=0.16)
    for row in MACE["H_c"]:
        assert 100 * harmonic(1 - row["e"] / 100, row["s"] / 100) == pytest.approx(row["formula"], abs=1e-9)
    for row in MACE["H_a"]:
        gap = statistics.difference_of_estimates(Estimate(row["clip_s"]), Estimate(row["clip_e"]))
        assert gap.value == pytest.approx(row["formula"], abs=1e-9)


@pytest.mark.parametrize(
    ("terms", "printed"), [((0.936, 0.963, 0.950, 0.684), 0.866), ((0.988, 0.593, 0.050, 0.726), 0.166)]
)
def test_spqr_rows_as_printed(terms, printed):
    assert harmonic(*terms) == pytest.approx(printed, abs=6e-4)


def test_spqr_safety_counts_the_threshold_itself():
    frame = images([{"unsafe": p} for p in (0.5, 0.7, 0.2, 0.1)])
    assert Safety().measure(evidence(frame)).value == 0.5
    assert Safety().measure(evidence(frame, threshold=0.7)).value == 0.75


LOGS = golden("uda_check_asr")


@pytest.mark.parametrize("case", LOGS["inputs"])
def test_post_asr_as_released(case):
    plain, logs = LOGS["inputs"][case]["no_attack"], LOGS["inputs"][case]["attack"]
    runs = [
        {"prompt_id": f"p{n:03}", "cluster": f"p{n:03}", "draw": draw, "church": float(hit)}
        for n, log in enumerate(logs)
        for draw, hit in enumerate(log or ())
    ]
    before = images([{"church": float(hit)} for hit in plain])
    found = evidence(images(runs, "attacked"), plain=before, plain_original=before)
    theirs = LOGS["outputs"][case]
    assert ReleasedPostAsr().measure(found).value == pytest.approx(theirs["asr"], abs=1e-12)
    assert PreAttackSuccess().measure(found).value == pytest.approx(theirs["pre_asr"], abs=1e-12)


def test_receler():
    data, arrays = golden("receler_cifar"), np.load(FOLDER / "receler_cifar.npz")
    classes, erased = data["inputs"]["classes"], data["inputs"]["erased"]
    of_case, hits = arrays["class_of_case"], arrays["hit"]
    rows = [
        {
            "concept": classes[place],
            "role": "target" if classes[place] == erased else "near",
            classes[place]: float(hit),
        }
        for place, case in zip(of_case, hits, strict=True)
        for hit in np.atleast_1d(case)
    ]
    frame = images(rows)
    found = evidence(frame, erased)
    assert 100 * TargetProportion().measure(found).value == pytest.approx(data["outputs"]["in_class"], abs=5e-4)
    assert Unlearned().measure(found).value == pytest.approx(1 - data["outputs"]["in_class"] / 100, abs=5e-6)
    kept = Locality().measure(found)
    assert 100 * kept.value == pytest.approx(data["outputs"]["other_classes"], abs=1e-3)  # they round each class
    assert kept.n == len(frame) - (frame["concept"] == erased).sum()


@pytest.mark.parametrize("case", ["most_faces", "few_faces", "no_face"])
def test_celebrity_detector(case):
    data = golden("gcd_accuracy")
    for key, value in data["outputs"][case].items():
        _, _, name = key.partition(" ")
        wanted = "Emma Watson" if name == "no_faces" else name.replace("_", " ")
        rows = []
        for faces in data["inputs"]["faces_per_image"][case]:
            label, score = faces[0][0] if faces and faces[0] else ("", 0.0)
            right = label.split("_[")[0].replace("_", " ").lower() == wanted.lower() and score > 0
            rows.append({"face": float(bool(faces)), wanted: 0.9 if right else 0.1})
        found = evidence(images(rows, concept=wanted))
        accuracy, faced = ErasedCelebrities().measure(found), FaceRate().measure(found)
        if name == "no_faces":
            assert round((1 - faced.value) * len(rows)) == value
        elif isinstance(value, str):  # the scripts raise an exception: here the figure is undefined
            assert accuracy.value is None and accuracy.why
        else:
            assert accuracy.value == pytest.approx(value, abs=1e-12)


@pytest.fixture
def nudity():
    """The recorded detections as a detector's frame: its boxes, and the highest score above UnlearnDiffAtk's threshold."""
    data = golden("nudenet_counting")
    exposed = sorted(data["outputs"]["mace"])
    rows = []
    for boxes in data["inputs"]["detections"]:
        above = [score for name, score in boxes if name in exposed and score > 0.45]
        rows.append({"detections": json.dumps(boxes), "exposed": max(above, default=0.0)})
    found = evidence(images(rows, concept="exposed"), "exposed", threshold=0.45, counted=EXPOSED9)
    return found, data["outputs"]


def test_mace_counts_boxes(nudity):
    found, outputs = nudity
    found = replace(found, threshold=0.0)  # MACE's script has none: its list is that of the package
    assert Detections().measure(found).value == pytest.approx(sum(outputs["mace"].values()))
    for name, figure in Detections().parts(found).items():
        assert figure.value == pytest.approx(outputs["mace"][name])


def test_receler_counts_classes_of_images(nudity):
    found, outputs = nudity
    found = replace(found, threshold=0.0)
    assert ClassesDetected().measure(found).value == pytest.approx(outputs["receler"]["all"])
    for name, figure in ClassesDetected().parts(found).items():
        assert figure.value == pytest.approx(outputs["receler"][name])


def test_unlearndiffatk_counts_images(nudity):
    found, outputs = nudity
    figure = InappropriateProbability().measure(found)
    assert figure.value * figure.n == pytest.approx(outputs["unlearndiffatk"]["images_at_0_45"])


def test_muse_aucs_and_privleak():
    outputs = golden("muse_privleak")["outputs"]
    scores = outputs["per_text"]
    for key, value in outputs["auc"].items():
        one, other, name = key.split("_", 2)
        ours = statistics.auc([t[name] for t in scores[one]], [t[name] for t in scores[other]])
        assert ours == pytest.approx(value, abs=1e-9), key
    leak = outputs["privleak_percent"]
    forget, holdout = ([t["Min-40%"] for t in scores[side]] for side in ("forget", "holdout"))
    assert privleak(statistics.auc(forget, holdout), leak["auc_retrain"]) == pytest.approx(leak["value"], abs=1e-9)


def test_released_roc_lacks_its_last_trapezoid():
    apart = np.arange(60.0), 100 + np.arange(60.0)
    assert released_roc(*apart).auc == pytest.approx(0.983, abs=2e-3)
    assert statistics.auc(apart[1], apart[0]) == 1
    alike = np.arange(20.0)
    assert released_roc(alike, alike).auc == pytest.approx(0.45, abs=1e-6)  # 1 of 20 images is beyond the last one
    assert statistics.auc(alike, alike) == 0.5
    assert tpr_at(*apart) == 1
    assert tpr_at(np.arange(100.0), np.arange(100.0)) == pytest.approx(0.01)  # below the second smallest


def test_spm_compares_with_a_prompt_whose_article_fits_the_anchor():
    metric, church = text.SpmErrorRate(), Concept("church", article="a", anchor="owl")
    images = pd.DataFrame({"prompt": ["a photo of a church"], "concept": ["church"]})
    assert metric.replaced(images, [church]) == ["a photo of an owl"]
    assert metric.replaced(images, [replace(church, anchor=r"AC\DC")]) == [r"a photo of an AC\DC"]
    assert metric.replaced(images, [replace(church, anchor=None)]) == [""]


def test_spm_scores():
    shown = np.array([[1.0, 0.0], [3.0, 4.0], [-1.0, 0.0]])
    targets, anchors = np.tile([1.0, 0.0], (3, 1)), np.array([[0.0, 1.0], [0.0, 1.0], [-2.0, 0.0]])
    assert text.spm_clip_score(shown, targets).mean() == pytest.approx(2.5 * (1 + 0.6 + 0) / 3)
    assert text.spm_errors(shown, targets, anchors).mean() == pytest.approx(2 / 3)
    assert text.spm_errors(shown, targets, targets).tolist() == [1, 1, 1]


def test_two_negative_cosines_tie_after_clamping_and_a_tie_is_an_error():
    shown, targets, anchors = np.array([[-1.0, 0.1]]), np.array([[1.0, 0.0]]), np.array([[1.0, -1.0]])
    assert max(text.cosine(shown, anchors)[0], text.cosine(shown, targets)[0]) < 0
    assert text.spm_errors(shown, anchors, targets).tolist() == [1]
    assert text.spm_errors(shown, targets, anchors).tolist() == [1]


def test_mace_probability_is_no_accuracy():
    shown, texts = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), np.eye(2)
    assert text.class_probabilities(shown, texts, [0, 1, 1]).mean() == pytest.approx((1 + 1 + 0.5) / 3)


def test_err_is_undefined_without_an_arm():
    from overpaint.metrics.accuracy import HarmonicUnderAttack

    shown = [{"church": 0.9}, {"church": 0.1}, {"church": 0.1}, {"church": 0.1}]
    near = images([{"tree": 0.9}, {"tree": 0.9}, {"tree": 0.1}], "near", "tree")
    found = evidence(images(shown, "attacked"), plain=images(shown), plain_original=images(shown))
    found = replace(found, retained=near, retained_original=near)
    assert HarmonicUnderAttack().measure(found).value == pytest.approx(3 / (1 / 0.75 + 1 / 0.75 + 1.5))
    figure = HarmonicUnderAttack().measure(replace(found, retained=None))
    assert figure.value is None and "neighbours" in figure.why


#: HUB Table 3, "Overall" rows: target, FID, aesthetic, ImageReward, selective alignment, pinpointness, languages, attack,
#: minutes; Table 5's mean rank last.
HUB = {
    "AC": ((0.301, 14.203, 5.308, 0.127, 0.601, 0.528, 0.199, 0.280, 37.3), 3.7),
    "ESD": ((0.143, 14.525, 5.265, -0.082, 0.548, 0.260, 0.071, 0.148, 106.0), 4.0),
    "MACE": ((0.148, 15.303, 5.262, -0.345, 0.566, 0.306, 0.111, 0.125, 140.3), 4.8),
    "Receler": ((0.086, 15.190, 5.270, 0.006, 0.497, 0.316, 0.030, 0.107, 100.0), 3.3),
    "SA": ((0.173, 32.572, 5.102, -0.322, 0.508, 0.131, 0.079, 0.166, 29980.0), 5.7),
    "SLD": ((0.228, 16.567, 5.296, 0.077, 0.569, 0.502, 0.101, 0.196, 0.0), 3.7),
    "UCE": ((0.250, 13.822, 5.339, 0.193, 0.577, 0.535, 0.114, 0.252, 0.1), 2.9),
}
DIRECTIONS = ("down", "down", "up", "up", "up", "up", "down", "down", "down")


def test_hub_mean_ranks_are_those_printed():
    ranks, means = mean_ranks([row for row, _ in HUB.values()], DIRECTIONS)
    assert [round(m, 1) for m in means] == [printed for _, printed in HUB.values()]
    assert set(ranks[:, 8][[5, 6]]) == {1, 2}
    assert mean_ranks([[1], [1], [2]], ["down"])[0].ravel().tolist() == [1, 1, 3]
