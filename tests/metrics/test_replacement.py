"""What is drawn instead of the concept, on images whose labels are known."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from overpaint.grid.concepts import Concept
from overpaint.metrics.metric import Evidence
from overpaint.metrics.replacement import NOTHING, NothingShown, ReplacementEntropy, ReplacementRate, entropy

KINDS = {"church": "object", "house": "object", "tree": "object", "sketch": "style", "flat": "style", "stamp": "mark"}


def images_of(shown, concept="church", seeds=1):
    """One target image of each entry, which lists the labels that it shows; ``None`` for a failed image."""
    rows = []
    for number, labels in enumerate(shown):
        scores = {name: math.nan if labels is None else 0.9 if name in labels else 0.1 for name in KINDS}
        about = {"prompt_id": f"p{number // seeds}", "seed": number % seeds, "role": "target", "concept": concept}
        rows.append(about | {"expects": [concept], "failed": labels is None} | scores)
    return pd.DataFrame(rows)


def evidence_of(shown, anchor="house", concept="church", seeds=1, **changes):
    frame = images_of(shown, concept, seeds)
    erased = [Concept(concept, kind=KINDS[concept], label=concept, anchor=anchor)]
    return Evidence(erased, frame, images_of([[concept]] * len(shown), concept, seeds), kinds=KINDS, **changes)


def test_the_anchor_counts_without_the_concept_only():
    evidence = evidence_of([["house"], ["house", "church"], ["church"], ["tree"], []] * 4)
    figure = ReplacementRate().measure(evidence)
    assert (figure.value, figure.original, figure.n) == (0.2, 0.0, 20)
    assert figure.low < 0.2 < figure.high and figure.difference == pytest.approx(0.2)


def test_parts_are_the_other_things_that_are_shown():
    parts = ReplacementRate().parts(
        evidence_of([["house", "flat"], ["tree", "stamp"], ["tree", "house"], ["church", "tree"]])
    )
    assert {name: figure.value for name, figure in parts.items()} == {"house": 0.5, "tree": 0.5}, (
        "neither a style nor a mark replaces a thing"
    )


def test_a_label_that_is_never_shown_has_a_share_of_0():
    """A mean over seeds and concepts would otherwise be that of the cells that show it."""
    shown, unshown = (ReplacementRate().parts(evidence_of([labels] * 10)) for labels in (["tree"], ["house"]))
    assert set(shown) == set(unshown) == {"house", "tree"}
    figure = unshown["tree"]
    assert (figure.value, figure.low, figure.n) == (0, 0, 10) and 0 < figure.high < 0.35 and figure.p_value == 1


def test_an_image_shows_nothing_if_it_has_no_label_of_any_kind():
    figure = NothingShown().measure(evidence_of([["church"], ["flat"], ["stamp"], [], []] * 4))
    assert (figure.value, figure.original, figure.n, figure.failed) == (0.4, 0.0, 20, 0)
    figure = NothingShown().measure(evidence_of([["church"], None, [], []], failure_limit=0.5))
    assert (figure.value, figure.n, figure.failed) == (pytest.approx(2 / 3), 3, 1), "a failed image is left out"


@pytest.mark.parametrize("anchor", ["a house", "House", "house"])
def test_an_anchor_is_known_by_its_words(anchor):
    assert ReplacementRate().measure(evidence_of([["house"]] * 8, anchor)).value == 1


@pytest.mark.parametrize("anchor", [None, "", "a palace"])
def test_without_an_anchor_that_the_detector_names_the_rate_is_undefined(anchor):
    figure = ReplacementRate().measure(evidence_of([["house"]] * 8, anchor))
    assert figure.value is None and "set concepts.anchor" in figure.why


def test_a_style_is_replaced_by_styles():
    evidence = evidence_of([["flat", "house"]] * 6 + [["house"]] * 6, anchor="flat", concept="sketch")
    assert ReplacementRate().measure(evidence).value == 0.5
    assert set(ReplacementRate().parts(evidence)) == {"flat"}
    assert list(ReplacementEntropy().shown(evidence.images, evidence)) == ["flat"] * 6 + [NOTHING] * 6


@pytest.mark.parametrize("count", [1, 2, 4])
def test_equal_shares_of_many_images_have_the_logarithm_of_their_number(count):
    labels = np.repeat([f"label {n}" for n in range(count)], 400)
    found = entropy(labels, np.arange(len(labels)))
    assert found.value == pytest.approx(math.log2(count), abs=0.01)
    assert found.low <= math.log2(count) <= found.high


def test_the_jackknife_removes_the_bias_of_small_samples():
    rng, p = np.random.default_rng(3), np.array([0.4, 0.3, 0.2, 0.1])
    true = float(-(p * np.log2(p)).sum())
    drawn = [rng.choice(4, size=24, p=p) for _ in range(300)]
    plain = []
    for labels in drawn:
        q = np.bincount(labels)[np.bincount(labels) > 0] / 24
        plain.append(float(-(q * np.log2(q)).sum()))
    corrected = [entropy(labels.astype(str), np.arange(24)) for labels in drawn]
    assert np.mean(plain) < true - 0.06
    assert np.mean([found.value for found in corrected]) == pytest.approx(true, abs=0.03)
    covered = np.mean([found.low <= true <= found.high for found in corrected])
    assert covered >= 0.9, covered


@pytest.mark.parametrize(
    ("p", "groups"), [([0.5, 0.5], 24), ([0.85, 0.05, 0.05, 0.05], 50), ([0.9, 0.1], 24), ([0.125] * 8, 24)]
)
def test_its_interval_covers(p, groups):
    """Also where the entropy is flat, and for images of one prompt that show the same."""
    rng, true = np.random.default_rng(4), float(-(np.array(p) * np.log2(p)).sum())
    for repeats in (1, 3):
        drawn = [np.repeat(rng.choice(len(p), size=groups, p=p), repeats).astype(str) for _ in range(150)]
        found = [entropy(labels, np.repeat(np.arange(groups), repeats)) for labels in drawn]
        assert np.mean([f.low <= true + 1e-9 and true <= f.high + 1e-9 for f in found]) >= 0.92, repeats


def test_one_thing_only_still_has_an_upper_limit():
    few, many = (entropy(np.array(["house"] * n), np.arange(n)) for n in (12, 100))
    assert few.value == few.low == 0 and few.high > many.high > 0
    repeated = entropy(np.array(["house"] * 100), np.repeat(np.arange(10), 10))
    assert repeated.high > many.high, "images of one prompt depend on each other"


def test_entropy_is_of_images_without_the_concept():
    shown = [["house"], ["tree"]] * 8
    alone, among = (ReplacementEntropy().measure(evidence_of(s)) for s in (shown, shown + [["church"]] * 30))
    assert among.value == alone.value == pytest.approx(1, abs=0.05) and among.n == alone.n == 16
    nothing = ReplacementEntropy().measure(evidence_of([["church"]] * 8))
    assert nothing.value is None and nothing.why == "every target image shows the concept"


def test_failed_images_are_neither():
    evidence = evidence_of([["house"]] * 8 + [None] * 2, failure_limit=0.5)
    assert ReplacementRate().measure(evidence).value == 1
    figure = ReplacementEntropy().measure(evidence)
    assert (figure.value, figure.n, figure.failed) == (0, 8, 2)
    refused = ReplacementEntropy().measure(replace(evidence, failure_limit=0.05))
    assert refused.value is None and "2 of 10 target images failed" in refused.why


@pytest.mark.parametrize(("without", "defined"), [(7, False), (8, True)])
def test_the_entropy_of_a_few_images_is_undefined(without, defined):
    """Two images say little about the share of each thing that a model draws."""
    found = ReplacementEntropy().measure(evidence_of([["house"]] * without + [["church"]] * (12 - without)))
    assert (found.value is not None) == defined and found.n == without
    assert defined or found.why == "images of 7 prompts lack the concept, entropy needs 8"


def test_the_entropy_needs_several_prompts():
    found = ReplacementEntropy().measure(evidence_of([["house"], ["tree"]] * 7, seeds=2))
    assert found.value is None and found.why.startswith("images of 7 prompts")
