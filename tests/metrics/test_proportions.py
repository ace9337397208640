"""The images and labels that each share uses."""

import math
from dataclasses import replace

import numpy as np
import pytest

from overpaint.metrics.proportions import InPromptPreservation, NeighbourRetention, PromptAgreement, TargetProportion
from overpaint.report import statistics


def test_one_image_a_prompt_gets_wilsons_interval_and_mcnemars_score_test(evidence_of):
    evidence = evidence_of(0.3, prompts=40, seeds=1)
    figure = TargetProportion().measure(evidence)
    a, b = (f[f["role"] == "target"]["church"] > 0.5 for f in (evidence.images, evidence.original))
    assert (figure.value, figure.n) == (a.mean(), 40)
    assert (figure.low, figure.high) == pytest.approx(statistics.wilson(a.sum(), 40), abs=0.004)
    assert figure.original == b.mean()
    gained, lost = int((a & ~b).sum()), int((b & ~a).sum())
    assert figure.p_value == pytest.approx(statistics.mcnemar(gained, lost, exact=False, corrected=False).p_value)


def test_several_seeds_are_clusters(evidence_of):
    evidence = evidence_of(0.3)
    target = evidence.images[evidence.images["role"] == "target"]
    expected = statistics.proportion(target["church"] > 0.5, target["prompt_id"])
    figure = TargetProportion().measure(evidence)
    assert (figure.value, figure.low, figure.high) == expected[:3]


def test_the_threshold_is_inclusive(evidence_of):
    evidence = evidence_of(0.3)
    at_it = replace(evidence, images=evidence.images.assign(church=0.5))
    assert TargetProportion().measure(at_it).value == 1
    assert TargetProportion().measure(replace(at_it, threshold=0.51)).value == 0


def test_neighbours_are_judged_on_themselves(evidence_of):
    evidence = evidence_of(0.0)
    assert NeighbourRetention().measure(evidence).value == 1
    gone = replace(evidence, images=evidence.images.assign(house=0.0))
    assert NeighbourRetention().measure(gone).value == 0.5


def test_in_prompt_preservation_leaves_the_erased_concept_out(evidence_of):
    evidence = evidence_of(0.0)
    half = replace(evidence, images=evidence.images.assign(sketch=0.0, church=0.0))
    figure = InPromptPreservation().measure(half)
    assert figure.value == 0.5
    assert figure.n == (half.images["role"] == "in_prompt").sum()


def test_general_prompts_with_an_erased_concept_are_left_out(evidence_of):
    evidence = evidence_of(0.0)
    figure = PromptAgreement().measure(replace(evidence, images=evidence.images.assign(house=0.0)))
    asked = evidence.images[evidence.images["role"] == "utility"]["expects"].map(lambda e: "church" not in e)
    assert (figure.value, figure.n) == (1, asked.sum())


def test_one_missing_score_fails_the_whole_image(evidence_of):
    evidence = evidence_of(0.0, failure_limit=0.5)
    holed = evidence.images.copy()
    places = holed.index[holed["role"] == "in_prompt"][:3]
    holed.loc[places, "sketch"] = math.nan
    figure = InPromptPreservation().measure(replace(evidence, images=holed))
    assert (figure.failed, figure.value) == (3, 1)


def test_a_label_the_detector_lacks_is_unknown(evidence_of):
    evidence = evidence_of(0.3)
    figure = TargetProportion().measure(replace(evidence, images=evidence.images.drop(columns="church")))
    assert figure.value is None and figure.n == 0 and figure.failed > 0
    assert "church" in figure.why


def test_a_broken_original_leaves_the_value_alone(evidence_of):
    evidence = evidence_of(0.3)
    broken = evidence.original.assign(failed=True)
    figure = TargetProportion().measure(replace(evidence, original=broken))
    assert figure.value == TargetProportion().measure(evidence).value
    assert figure.original is None and figure.difference is None and figure.p_value is None


@pytest.mark.parametrize("container", [tuple, np.array])
def test_expected_labels_in_any_container(evidence_of, container):
    evidence = evidence_of(0.3)
    same = evidence.images.assign(expects=evidence.images["expects"].map(container))
    assert PromptAgreement().measure(replace(evidence, images=same)) == PromptAgreement().measure(evidence)
