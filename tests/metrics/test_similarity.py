"""Similarity to the unedited model's images of the same noise: closed forms, identity, and undefined cases."""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from overpaint.metrics.similarity import COLUMNS, PsnrOriginal, SsimOriginal, similarity


def grey(value, size=16):
    return Image.new("RGB", (size, size), (value,) * 3)


def noise(seed, size=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_equal_pictures_are_at_no_distance():
    (row,) = similarity([noise(0)], [noise(0)]).to_numpy()
    assert row == pytest.approx((0, 1))


def test_the_error_of_two_greys_is_the_square_of_their_difference():
    (row,) = similarity([grey(51)], [grey(102)]).to_numpy()
    assert row[0] == pytest.approx(0.2**2, abs=1e-6)
    luminance = (2 * 0.2 * 0.4 + 0.01**2) / (0.2**2 + 0.4**2 + 0.01**2)  # SSIM of flat pictures is its first factor
    assert row[1] == pytest.approx(luminance, abs=1e-4)


def test_other_noise_is_another_picture():
    assert similarity([noise(0)], [noise(1)])["ssim_original"][0] < 0.1


def test_a_failed_picture_is_compared_with_nothing():
    table = similarity([None, grey(0), grey(0)], [grey(0), None, grey(0)])
    assert list(table.columns) == list(COLUMNS) and table.isna().all(axis=1).tolist() == [True, True, False]


@pytest.mark.parametrize("others", [[grey(0, 8)], []])
def test_pictures_that_do_not_match_are_an_error(others):
    with pytest.raises(ValueError):
        similarity([grey(0)], others)


def test_the_unedited_model_beside_itself(evidence_of):
    same = evidence_of(0.2).images.assign(mse_original=0.0, ssim_original=1.0)
    evidence = evidence_of(0.2, images=same)
    psnr, ssim = PsnrOriginal().measure(evidence), SsimOriginal().measure(evidence)
    assert psnr.value is None and "infinite" in psnr.why
    assert (ssim.value, ssim.low, ssim.high) == (1, 1, 1)


def test_psnr_is_that_of_the_mean_error(evidence_of):
    evidence = evidence_of(0.5)
    errors = evidence.images_of("utility")["mse_original"]
    assert PsnrOriginal().measure(evidence).value == pytest.approx(-10 * math.log10(errors.mean()))


def test_figures_that_nobody_compared_are_not_asked_for(evidence_of):
    evidence = evidence_of(0.5)
    bare = replace(evidence, images=evidence.images.drop(columns=list(COLUMNS)))
    assert not SsimOriginal.relevant(bare) and "compared" in SsimOriginal().measure(bare).why
