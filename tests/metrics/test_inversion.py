"""The distance between initial noises: numbers of official code, closed forms, and synthetic images."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from overpaint.attacks.inversion import nll, psnr
from overpaint.metrics.inversion import (
    LikelihoodDistance,
    LikelihoodDistanceFloor,
    ReconstructionPsnr,
    likelihood_distance,
    moments,
    normal_moments,
    wasserstein,
)


def test_official_code(golden):
    meta, results, extra = golden("inversion/mfc_scores")
    assert nll(extra["z"].flatten(0, 1)).tolist() == pytest.approx(results["nll"].tolist(), rel=1e-6)
    assert psnr(extra["img1"], extra["img2"]) == pytest.approx(results["psnr"].item(), rel=1e-6)
    for case in meta["cases"]:
        goal, ref, normal = (moments(extra[f"{case}.{name}"]) for name in ("goal", "ref", "normal"))
        for pair, (one, other) in {
            "goal_and_source": (goal, ref),
            "goal_and_normal": (goal, normal),
            "source_and_normal": (ref, normal),
        }.items():
            wanted = results[f"{case}.{pair}_emd_score"].item()
            assert wasserstein(one, other) == pytest.approx(wanted, rel=1e-6, abs=1e-9), pair
        wanted = results[f"{case}.goal_and_normal_emd_score"] / results[f"{case}.source_and_normal_emd_score"]
        assert likelihood_distance(goal, ref, normal) == pytest.approx(wanted.item(), rel=1e-6)


def test_moments_of_normal_noise_are_its_likelihoods():
    """The mean of 400 likelihoods is within 4 standard errors of D/2 (1 + ln 2π), their deviation within 15 %."""
    noise = torch.randn(400, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found, wanted = moments(nll(noise)), normal_moments(4 * 8 * 8)
    assert wanted.mean == 128 * (1 + math.log(2 * math.pi))
    assert abs(found.mean - wanted.mean) < 4 * wanted.deviation / math.sqrt(400)
    assert found.deviation == pytest.approx(wanted.deviation, rel=0.15)


def test_likelihood_is_that_of_independent_normals():
    z = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = -torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(dim=1)
    torch.testing.assert_close(nll(z), wanted, rtol=1e-12, atol=0)


def test_psnr_of_pictures_a_tenth_apart_is_20_db_and_of_equal_ones_infinite():
    picture = np.random.default_rng(0).uniform(0, 0.9, size=(4, 4, 3))
    assert psnr(picture, picture + 0.1) == pytest.approx(20)
    assert psnr(picture, picture) == math.inf


def test_ordinary_pictures_are_one_from_themselves(evidence_of):
    evidence = evidence_of(0.5)
    ordinary = evidence.images[evidence.images["role"] == "ordinary"]
    same = evidence.images[evidence.images["role"] != "attacked"]
    same = replace(evidence, images=pd.concat([same, ordinary.assign(role="attacked")], ignore_index=True))
    assert LikelihoodDistance().measure(same).value == 1


def test_its_parts_are_those_of_the_pictures(evidence_of):
    evidence = evidence_of(0.3)
    found = {role: moments(part["nll"]) for role, part in evidence.images.groupby("role")}
    normal = normal_moments(256)
    figure = LikelihoodDistance().measure(evidence)
    assert figure.value == pytest.approx(likelihood_distance(found["attacked"], found["ordinary"], normal))
    assert figure.control == pytest.approx(likelihood_distance(found["scrambled"], found["ordinary"], normal))
    assert figure.against == "control" and figure.difference == figure.value - figure.control
    assert figure.original == LikelihoodDistance().measure(replace(evidence, images=evidence.original)).value
    floor = LikelihoodDistanceFloor().measure(evidence)
    assert floor == replace(LikelihoodDistance().measure(replace(evidence, images=evidence.floor)), original=None)


@pytest.mark.parametrize("metric", [LikelihoodDistance, ReconstructionPsnr])
def test_pictures_no_other_than_scrambled_ones_are_not_told_from_them(metric, evidence_of):
    evidence = evidence_of(0.3)
    assert metric().measure(evidence).p_value < 0.01
    blind = evidence.images[evidence.images["role"] != "attacked"]
    scrambled = blind[blind["role"] == "scrambled"].assign(role="attacked")
    figure = metric().measure(replace(evidence, images=pd.concat([blind, scrambled], ignore_index=True)))
    assert figure.difference == 0 and figure.p_value == 1


def test_the_interval_of_a_mean_is_the_bootstraps_over_prompts(evidence_of):
    """If PSNR differs only between prompts, the interval has the width of the spread of the prompts' means."""
    evidence = evidence_of(0.3, prompts=24)
    quality = evidence.images["prompt_id"].map(lambda name: float(int(name.split("-")[1]) ** 2 % 97))
    figure = ReconstructionPsnr().measure(replace(evidence, images=evidence.images.assign(psnr=quality)))
    means = quality[evidence.images["role"] == "attacked"].groupby(evidence.images["prompt_id"]).mean()
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * means.std(ddof=0) / math.sqrt(24), rel=0.1)


def test_pictures_of_one_text_are_resampled_as_one(evidence_of):
    evidence = evidence_of(0.3)
    alike = replace(evidence, images=evidence.images.assign(cluster="a"))
    whole, one = (ReconstructionPsnr().measure(e) for e in (evidence, alike))
    assert one.value == whole.value and one.low is None and whole.low is not None


def test_what_cannot_be_had_is_undefined(evidence_of):
    evidence = evidence_of(0.3)
    alone = replace(evidence, images=evidence.images[evidence.images["role"] != "ordinary"])
    assert LikelihoodDistance().measure(alone).why == "no ordinary pictures"
    assert ReconstructionPsnr().measure(alone).value == ReconstructionPsnr().measure(evidence).value
    equal = ReconstructionPsnr().measure(replace(evidence, images=evidence.images.assign(psnr=math.inf)))
    assert equal.value is None and equal.why == "the figure of psnr is non-finite"
    assert not LikelihoodDistance.relevant(replace(evidence, images=evidence.images.drop(columns="nll")))
