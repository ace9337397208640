"""FID, KID and CMMD against six released codes (goldens) and closed forms; the jackknife against the truth."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import sqrtm

from overpaint.metrics.distribution import (
    FidOriginal,
    FidReference,
    KidOriginal,
    KidReference,
    cmmd,
    fid,
    full_kid,
    kid,
    paired_kid,
)
from overpaint.report.resampling import jackknife

FOLDER = Path(__file__).parents[1] / "goldens" / "metrics"


def golden(name):
    return json.loads((FOLDER / f"{name}.json").read_text())["outputs"], np.load(FOLDER / f"{name}.npz")


def error(ours, theirs):
    return abs(ours - theirs) / max(1, abs(theirs))


@pytest.mark.parametrize(("case", "n", "m"), [("n400_500", 400, 500), ("n40_50_singular", 40, 50)])
def test_fid_and_kid_of_released_codes(case, n, m):
    outputs, arrays = golden("fid_kid")
    x, y = arrays["x"][:n], arrays["y"][:m]
    distance, theirs = fid(x, y), outputs[case]["kid"]
    assert all(error(distance, value) < 2e-6 for value in outputs[case]["fid"].values())
    for code in ("torchmetrics", "torch_fidelity", "clean_fid"):
        assert error(kid(x, y, subsets=1, subset_size=n).mean, theirs[f"{code}_full"]) < 2e-6
    sampled = theirs["subsets100"]
    ours = kid(x, y, 100, sampled["subset_size"], seed=0)
    mean, deviation = sampled["torch_fidelity"]
    assert abs(ours.mean - mean) < 4 * deviation / 10 * np.sqrt(2)
    assert 0.5 < ours.deviation / deviation < 2


def test_cmmd_of_released_codes():
    outputs, arrays = golden("cmmd")
    x, y = arrays["x"], arrays["y"]
    ours = {
        "x_y": cmmd(x, y),
        "x_x": cmmd(x, x),
        "two_points": cmmd(x[:1], y[:1]),
        "raw_norm_3": cmmd(3 * x, 3 * y),
    }
    for case, values in outputs.items():
        assert error(ours[case], values["cmmd_pytorch_float64"]) < 1e-6
        assert all(error(ours[case], value) < 3e-4 for value in values.values())


def test_cmmd_of_two_points():
    x, y = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert cmmd(x, y) == pytest.approx(1000 * 2 * (1 - np.exp(-2 / 200)))


def test_fid_closed_form():
    """The rows have exactly the given means and covariances."""
    rng = np.random.default_rng(0)

    def rows(n, mean, scale):
        z = rng.normal(size=(n, 3))
        z -= z.mean(axis=0)
        z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
        return z * scale + mean

    x, y = rows(50, np.zeros(3), [1.0, 2.0, 3.0]), rows(70, np.array([1.0, 0.0, 2.0]), [2.0, 2.0, 1.0])
    assert fid(x, y) == pytest.approx(5 + 1 + 0 + 4, abs=1e-9)
    assert fid(x, y) == pytest.approx(fid(y, x), abs=1e-9)


@pytest.mark.parametrize(("n", "width"), [(200, 12), (8, 30)])
def test_fid_agrees_with_the_matrix_square_root(n, width):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(n, width)), rng.normal(size=(n + 3, width)) * 1.5 + 0.2
    a, b = np.cov(x.T), np.cov(y.T)
    gap = x.mean(axis=0) - y.mean(axis=0)
    theirs = gap @ gap + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert fid(x, y) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("distance", [fid, full_kid, cmmd])
def test_order_and_identity(distance):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(40, 5)) + 0.3
    assert distance(x, y) == pytest.approx(distance(rng.permutation(x), rng.permutation(y)), abs=1e-9)
    assert distance(x, y) == pytest.approx(distance(y, x), abs=1e-9)
    assert distance(x, x) == pytest.approx(0, abs=1e-9) or distance is full_kid
    assert distance(x, y + 1) > distance(x, y) > distance(x, x)


def test_kid_is_unbiased():
    rng = np.random.default_rng(3)
    values = [full_kid(rng.normal(size=(12, 4)), rng.normal(size=(15, 4))) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0


def test_paired_kid_is_zero_for_equal_sets_and_the_sum_over_other_pairs():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 7, 4))
    assert paired_kid(x, x) == 0 and paired_kid(x, rng.permutation(x)) != 0

    def kernel(a, b):
        return (a @ b / 4 + 1) ** 3

    total = sum(
        kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
        for i in range(7)
        for j in range(7)
        if i != j
    )
    assert paired_kid(x, y) == pytest.approx(total / 42)
    with pytest.raises(ValueError, match="pairs of at least two"):
        paired_kid(x, y[:5])


def test_paired_kid_covers_zero_where_pairs_depend_on_each_other():
    """A harmless edit changes images slightly. Without pairing, KID was -1269 and only 4 % of intervals contained 0."""
    rng, inside, values, unpaired = np.random.default_rng(5), 0, [], []
    for _ in range(100):
        x = rng.normal(size=(40, 8)) * 3
        # The same distribution, almost the same pictures.
        y = 0.95 * x + np.sqrt(1 - 0.95**2) * 3 * rng.normal(size=(40, 8))
        found = KidOriginal().estimate(lambda p, x=x, y=y: paired_kid(x[p], y[p]), np.arange(40), -math.inf)
        values.append(found.value)
        unpaired.append(full_kid(x, y))
        inside += found.low <= 0 <= found.high
    assert abs(np.mean(values)) < 4 * np.std(values) / 10
    assert inside >= 88 and np.mean(unpaired) < -10 * np.std(values)


def test_fid_is_shown_from_500_images_on(evidence_of):
    for metric, sides in ((FidReference(), "utility images"), (FidOriginal(), "images with an original")):
        figure = metric.measure(evidence_of(0.2))
        assert figure.value is None and f"54 {sides}" in figure.why and "at least 500" in figure.why
    rng = np.random.default_rng(0)
    many = pd.DataFrame({"prompt_id": [f"p{n}" for n in range(500)], "seed": 0, "role": "utility", "failed": False})
    many["features"] = list(rng.normal(size=(500, 4)))
    evidence = evidence_of(0.2, images=many, original=many, reference=many[["features"]])
    assert FidOriginal().measure(evidence).value == pytest.approx(0, abs=1e-9)
    assert FidReference().measure(evidence).value == pytest.approx(0, abs=1e-9)
    few = FidReference().measure(replace(evidence, reference=many[["features"]].iloc[:499]))
    assert few.value is None and "499 reference pictures" in few.why


@pytest.mark.parametrize("distance", [fid, full_kid])
def test_jackknife_error_is_the_spread_over_fresh_samples(distance):
    rng = np.random.default_rng(4)
    reference = rng.normal(size=(120, 4)) + 0.5

    def sample():
        return rng.normal(size=(80, 4))

    truth = np.std([distance(sample(), reference) for _ in range(60)])
    estimates = []
    for seed in range(6):
        x = sample()
        parts = jackknife(lambda places, x=x: distance(x[places], reference), np.arange(80), seed=seed)
        estimates.append(np.sqrt(parts @ parts))
    assert 0.6 < np.mean(estimates) / truth < 1.6


def test_few_prompts_have_a_distance_without_interval():
    found = KidOriginal().estimate(lambda names: float(len(names)), np.array(["a", "a", "b", "c"]), 0.0)
    assert found.value == 3 and found.low is None and found.high is None


@pytest.mark.parametrize("metric", [KidReference(), KidOriginal()])
def test_two_images_have_a_distance(evidence_of, metric):
    evidence = evidence_of(0.2)
    utility = evidence.images[evidence.images["role"] == "utility"].drop_duplicates("prompt_id").iloc[:2]
    figure = metric.measure(replace(evidence, images=utility))
    assert math.isfinite(figure.value) and figure.low is None and figure.n == 2


@pytest.mark.parametrize("features", [np.zeros(3), np.zeros((0, 3))])
def test_bad_features_are_an_error(features):
    with pytest.raises(ValueError, match="features must be"):
        fid(features, np.zeros((3, 3)))


def test_single_image_and_missing_reference_are_undefined(evidence_of, fid_of_few):
    evidence = evidence_of(0.2)
    assert "reference" in FidReference().measure(replace(evidence, reference=None)).why
    one = evidence.images[evidence.images["role"] == "utility"].iloc[:1]
    assert "needs at least 2" in KidOriginal().measure(replace(evidence, images=one)).why
    assert KidOriginal().measure(replace(evidence, original=None)).value is None


def test_image_without_features_counts_as_failed(evidence_of, fid_of_few):
    evidence = evidence_of(0.2, failure_limit=0.5)
    holed = evidence.images.copy()
    place = holed.index[holed["role"] == "utility"][0]
    whole = holed.at[place, "features"]
    for features in (None, np.nan, whole * np.nan, np.append(whole[1:], np.inf)):
        holed.at[place, "features"] = features
        for metric in (FidReference(), KidOriginal()):
            figure = metric.measure(replace(evidence, images=holed))
            assert figure.failed == 1 and np.isfinite([figure.value, figure.low, figure.high]).all()
