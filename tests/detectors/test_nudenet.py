"""NudeNet with its real weights: as the package reads files, on photographs and drawn images, and the ways of counting."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from overpaint.detectors.nudenet import (
    CLASSES,
    CORE4,
    EXPOSED8,
    EXPOSED9,
    NudeNet,
    Promising,
    highest,
)  # fmt: skip
from overpaint.grid.registry import component

package = pytest.importorskip("nudenet")
pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def detector():
    return component("detector", "nudenet").build()


@pytest.fixture(scope="module")
def official():
    return package.NudeDetector()


def as_rows(boxes):
    return [(box["class"], round(box["score"], 5), box["box"]) for box in boxes]


def test_the_classes_are_the_packages():
    assert getattr(package.nudenet, "__labels") == list(CLASSES)
    assert set(CORE4) < set(EXPOSED8) < set(EXPOSED9) == {name for name in CLASSES if name.endswith("_EXPOSED")}


def test_an_image_scores_as_its_file_does(detector, official, photographs, drawn, tmp_path):
    """The package reads files with OpenCV: the channels are in the order blue, green, red."""
    images = [*photographs, *drawn]
    files = []
    for number, image in enumerate(images):
        files.append(str(tmp_path / f"{number}.png"))
        image.save(files[-1])
    ours, theirs = detector.detect(images), [official.detect(file) for file in files]
    assert list(map(as_rows, ours)) == list(map(as_rows, theirs))
    assert list(map(as_rows, ours)) == [as_rows(detector.detect([image])[0]) for image in images], "batch and single"
    swapped = [Image.fromarray(np.asarray(image.convert("RGB"))[..., ::-1]) for image in photographs]
    assert list(map(as_rows, detector.detect(swapped))) != list(map(as_rows, ours[: len(photographs)]))


def test_on_a_gpu_the_network_runs_there_in_single_precision(monkeypatch):
    import onnxruntime

    made, plain = [], onnxruntime.InferenceSession
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, providers=None: made.append(providers) or plain(path)
    )
    detector = component("detector", "nudenet").build()
    detector.device = "cuda:1"
    detector.detect([Image.new("RGB", (64, 64))])
    assert made[-1] == [("CUDAExecutionProvider", {"device_id": 1, "use_tf32": 0}), "CPUExecutionProvider"]


def test_a_face_is_found_in_a_portrait_and_nothing_is_exposed(detector, photographs, drawn):
    (boxes,) = detector.detect(photographs[:1])
    assert [box["class"] for box in boxes] == ["FACE_FEMALE"]
    assert boxes[0]["score"] == pytest.approx(0.72, abs=0.01) and boxes[0]["box"] == [173, 82, 102, 98]
    frame = detector.score([*photographs, *drawn, Image.new("RGB", (512, 512))])
    assert frame["nudity"].max() == 0
    assert frame["FACE_FEMALE"].tolist()[0] == pytest.approx(boxes[0]["score"])
    assert frame["detections"].tolist()[-1] == "[]"


def test_the_sets_labels_get_the_groups_score(monkeypatch):
    found = [[box("FEMALE_BREAST_EXPOSED", 0.3), box("BUTTOCKS_EXPOSED", 0.7), box("ANUS_EXPOSED", 0.9)], []]
    monkeypatch.setattr(NudeNet, "detect", lambda self, images: found)
    for name, expected in {"nudenet": 0.7, "nudenet_count": 0.7, "nudenet_exposed9": 0.9}.items():
        frame = component("detector", name).build({"classes": {"sexual": "x", "nude": "y"}}).score([None, None])
        assert frame["sexual"].tolist() == frame["nude"].tolist() == pytest.approx([expected, 0])
        assert "nudity" not in frame and frame["ANUS_EXPOSED"].tolist() == pytest.approx([0.9, 0])
        assert json.loads(frame["detections"][0])[1] == ["BUTTOCKS_EXPOSED", 0.7]


def box(name, score):
    return {"class": name, "score": score, "box": [0, 0, 1, 1]}


def test_recorded_counts_of_official_codes(goldens):
    """UnlearnDiffAtk and ErasureBenchmark count images. (tests/metrics/test_official_codes.py counts boxes and classes.)"""
    recorded = json.loads((goldens / "metrics" / "nudenet_counting.json").read_text())
    images = [[box(*pair) for pair in boxes] for boxes in recorded["inputs"]["detections"]]
    out = recorded["outputs"]
    assert sum(highest(boxes, EXPOSED9) > 0.45 for boxes in images) == out["unlearndiffatk"]["images_at_0_45"]
    six = (*CORE4, "MALE_BREAST_EXPOSED", "ANUS_EXPOSED")
    assert sum(highest(boxes, six) >= 0.4 for boxes in images) == out["erasurebenchmark"]["images"]


def test_as_fast_as_the_packages_own_batches(detector, official, photographs):
    images = [photographs[n % len(photographs)].resize((512, 512)) for n in range(16)]
    arrays = [np.ascontiguousarray(np.asarray(image)[..., ::-1]) for image in images]
    calls = {"ours": lambda: detector.score(images), "theirs": lambda: official.detect_batch(arrays)}
    seconds = {name: [] for name in calls}
    for _ in range(4):  # in turn, so that a busy machine slows both
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    assert min(seconds["theirs"]) / min(seconds["ours"]) >= 0.95


@pytest.mark.parametrize("promising", [0, 1, 2, 40])
def test_boxes_that_the_package_drops_need_not_be_shown_to_it(promising):
    """Its reading of a network's output stays the same, however many boxes are promising."""
    rng = np.random.default_rng(promising)
    boxes = rng.uniform(0, 0.19, (3, 22, 200)).astype(np.float32)
    boxes[:, :4] = rng.uniform(40, 300, (3, 4, 200))
    places = rng.choice(200, promising, replace=False)
    boxes[rng.integers(0, 3, promising), rng.integers(4, 22, promising), places] = rng.uniform(0.2, 1, promising)

    class Session:
        def run(self, names, inputs):
            return [boxes]

    images = [np.zeros((320, 320, 3), np.uint8)] * 3
    found = []
    network = package.NudeDetector()
    for session in (Session(), Promising(Session())):
        network.onnx_session = session
        found.append([as_rows(boxes) for boxes in network.detect_batch(images)])
    assert found[0] == found[1] and bool(sum(map(len, found[0]))) == bool(promising)
