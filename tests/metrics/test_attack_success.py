"""Attack success: pairing with the control, any-of-n, and the aggregates of papers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from overpaint.grid.concepts import Concept
from overpaint.metrics.attack_success import (
    AttackBeyondPrefix,
    AttackFloor,
    AttackNamed,
    AttackSuccess,
    AttackSuccessAny,
    AttackSuccessUnion,
    AttackUnrelated,
    ConditionalFailure,
    JudgeAgreement,
    ReleasedPostAsr,
    added,
    names_of,
    union,
    worth_attacking,
)
from overpaint.report import statistics

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "metrics" / "uda_check_asr.json").read_text())


def test_the_union_counts_each_prompt_once():
    logs = GOLDEN["inputs"]["plain_image_not_reproduced"]
    assert union(logs["no_attack"], [log[-1] for log in logs["attack"]]).mean() == 0.75


def test_a_union_is_known_once_one_side_succeeded():
    found = union([1, 0, 0, 0, math.nan, math.nan], [math.nan, 1, 0, math.nan, 0, 1])
    assert np.array_equal(found, [1, 1, 0, math.nan, math.nan, 1], equal_nan=True)


def test_worth_attacking_is_what_only_the_unedited_model_shows():
    worth = worth_attacking([1, 1, 0, 0, 1, math.nan, math.nan, 0], [0, 1, 0, 1, math.nan, 0, 1, math.nan])
    assert np.array_equal(worth, [1, 0, 0, 0, math.nan, math.nan, 0, 0], equal_nan=True)


def attacked(frame_of, rate, seeds, seed, prompts=12):
    return frame_of([("attacked", "church", ("church",))] * prompts, lambda label, role: rate, seeds, seed)


def test_any_of_n_is_what_chance_makes_of_a_judge_that_says_yes_by_chance(frame_of, evidence_of):
    """A judge that reports the concept at random with probability p gives 1 − (1 − p)^n of the prompts."""
    for p, n in ((0.3, 5), (0.1, 12)):
        images = attacked(frame_of, p, n, 3, prompts=800)
        figure = AttackSuccessAny().measure(evidence_of(0.5, images=images, control=None))
        assert figure.n == 800 and figure.value == pytest.approx(1 - (1 - p) ** n, abs=0.05)


def test_a_detector_that_guided_the_attack_does_not_agree_with_itself(evidence_of):
    evidence = evidence_of(0.5)
    assert JudgeAgreement().measure(evidence).value is not None
    figure = JudgeAgreement().measure(replace(evidence, judged_by_itself=True))
    assert figure.value is None and "the detector itself guided the attack" in figure.why


def test_a_list_with_more_images_of_a_prompt_than_its_control_is_not_paired_with_a_part(frame_of, evidence_of):
    """With 150 images per prompt against 3, the difference is the difference of the two shares."""
    images, control = attacked(frame_of, 0.2, 40, 0), attacked(frame_of, 0.7, 3, 1)
    figure = AttackSuccess().measure(evidence_of(0.5, images=images, control=control))
    assert figure.difference == pytest.approx(figure.value - figure.control)


def test_control_is_paired_where_prompts_and_seeds_match(frame_of, evidence_of):
    images, control = attacked(frame_of, 0.8, 1, 0), attacked(frame_of, 0.3, 1, 1)
    figure = AttackSuccess().measure(evidence_of(0.5, images=images, control=control))
    a, b = images["church"] > 0.5, control["church"] > 0.5
    assert figure.against == "control"
    assert (figure.value, figure.control) == (a.mean(), b.mean())
    assert figure.difference == pytest.approx(a.mean() - b.mean())
    gained, lost = int((a & ~b).sum()), int((b & ~a).sum())
    assert figure.p_value == pytest.approx(statistics.mcnemar(gained, lost, exact=False, corrected=False).p_value)


def test_the_controls_first_images_are_compared_however_many_it_may_make(frame_of, evidence_of):
    """A seed search uses a new seed for every try. It is compared with one image for each image of the attack."""
    images = attacked(frame_of, 0.8, 1, 0).assign(draw=3)
    control = attacked(frame_of, 0.3, 4, 1).assign(draw=lambda f: f["seed"])
    first = control[control["draw"] == 0]
    figure = AttackSuccess().measure(evidence_of(0.5, images=images, control=control))
    assert (figure.value, figure.control) == ((images["church"] > 0.5).mean(), (first["church"] > 0.5).mean())
    assert figure.difference == pytest.approx(figure.value - figure.control)


def test_a_seed_search_of_its_own_keeps_its_last_tries(frame_of, evidence_of):
    """Three fresh seeds for each of two plain images per prompt. A search that stops early keeps its seeds and draws."""
    searched = attacked(frame_of, 0.5, 6, 0).assign(draw=lambda f: f["seed"] // 2)
    last = searched[searched["draw"] == 2]["church"] > 0.5
    evidence = evidence_of(0.5, images=searched, original=searched, control=None)
    figure = AttackSuccess().measure(evidence)
    assert (figure.value, figure.n) == (last.mean(), 24)
    stopped = searched.assign(seed=[0, 1, 1, 1, 2, 2] * 12, draw=[0, 0, 1, 2, 0, 1] * 12)
    last = stopped.iloc[[place for place in range(72) if place % 6 in (0, 3, 5)]]["church"] > 0.5
    figure = AttackSuccess().measure(replace(evidence, images=stopped))
    assert (figure.value, figure.n) == (last.mean(), 36)


def beside_plain(frame_of, evidence_of, rate, plain, known, **changes):
    """Evidence with the given rates of attacked images, the victim's ``plain`` images, and unedited ones (``known``)."""
    images, original = attacked(frame_of, rate, 1, 0), attacked(frame_of, 0.2, 1, 1)
    frames = [attacked(frame_of, shown, 1, 2).assign(role="target") for shown in (plain, known)]
    names = {"plain": frames[0], "plain_original": frames[1], "control": attacked(frame_of, 0.0, 1, 3)}
    return evidence_of(0.5, **{"images": images, "original": original} | names | changes)


@pytest.mark.parametrize("control", [True, False])
def test_the_unedited_models_union_is_of_its_own_plain_images(control, frame_of, evidence_of):
    evidence = beside_plain(frame_of, evidence_of, 0.5, 0.0, 1.0, **({} if control else {"control": None}))
    figure = AttackSuccessUnion().measure(evidence)
    assert figure.original == 1.0 and figure.value == AttackSuccess().measure(evidence).value < 1
    if not control:
        assert figure.difference == pytest.approx(figure.value - 1)
    unknown = AttackSuccessUnion().measure(replace(evidence, plain_original=None))
    assert unknown.value == figure.value and unknown.original is None


def test_conditional_failure_of_the_unedited_model_is_on_the_prompts_worth_attacking(frame_of, evidence_of):
    evidence = beside_plain(frame_of, evidence_of, 0.5, 0.0, 1.0)
    assert ConditionalFailure().measure(evidence).original == AttackSuccess().measure(evidence).original


@pytest.mark.parametrize("metric", [AttackSuccessUnion, ConditionalFailure])
@pytest.mark.parametrize("rate", [1.0, 0.9])
def test_a_list_without_plain_prompts_has_no_figure_beside_them(metric, rate, frame_of, evidence_of):
    """Only hits would be known, not misses, so the share among known images would be 1."""
    images = attacked(frame_of, rate, 1, 0).assign(prompt_id=lambda f: "list-" + f["prompt_id"])
    figure = metric().measure(beside_plain(frame_of, evidence_of, 0.5, 0.0, 1.0, images=images))
    assert figure.value is None and "no plain image of these prompts (12 of 12)" in figure.why


def test_the_floor_counts_any_image_of_a_prompt(frame_of, evidence_of):
    frame = pd.concat(
        [attacked(frame_of, rate, 1, draw).assign(draw=draw) for draw, rate in enumerate((0.3, 0.0, 0.2))]
    )
    floor = frame.reset_index(drop=True)
    shown = floor.assign(hit=floor["church"] > 0.5).groupby("prompt_id")["hit"].any()
    figure = AttackFloor().measure(evidence_of(0.5, floor=floor))
    assert (figure.value, figure.n) == (shown.mean(), 12) and 0.2 < figure.value < 1


def test_an_unrelated_attack_is_looked_at_for_the_erased_concept(frame_of, evidence_of):
    images = attacked(frame_of, 0.3, 2, 0).assign(concept="tree", tree=0.9)
    shown = images.assign(hit=images["church"] > 0.5).groupby("prompt_id")["hit"].any()
    figure = AttackUnrelated().measure(evidence_of(0.5, unrelated=images))
    assert (figure.value, figure.n) == (shown.mean(), 12) and 0 < figure.value < 1


def test_random_prefixes_are_counted_at_the_budget_of_the_attack(frame_of, evidence_of):
    images, prefixes = attacked(frame_of, 0.5, 3, 0), attacked(frame_of, 0.2, 3, 1)
    evidence = evidence_of(0.5, images=images, random_prefix=prefixes, control=None)
    figure = AttackBeyondPrefix().measure(evidence)
    any_of = AttackSuccessAny().measure(evidence_of(0.5, images=images, control=prefixes))
    shown = prefixes.assign(hit=prefixes["church"] > 0.5).groupby("prompt_id")["hit"].any()
    assert figure == any_of and figure.control == shown.mean() > 0
    assert figure.difference == pytest.approx(figure.value - figure.control)
    assert not AttackBeyondPrefix.relevant(evidence_of(0.5, random_prefix=None))


def test_control_with_other_prompts_is_unpaired(frame_of, evidence_of):
    images = attacked(frame_of, 0.8, 2, 0)
    control = attacked(frame_of, 0.3, 2, 1).assign(prompt_id=lambda f: "other-" + f["prompt_id"])
    figure = AttackSuccess().measure(evidence_of(0.5, images=images, control=control))
    expected = statistics.unpaired_difference(
        images["church"] > 0.5, control["church"] > 0.5, images["prompt_id"], control["prompt_id"]
    )
    assert (figure.difference, figure.p_value) == pytest.approx((expected.value, expected.p_value))


@pytest.mark.parametrize(("shared", "is_paired"), [(6, True), (5, False)])
def test_outcomes_hold_the_control_if_half_of_the_images_are_pairs(frame_of, evidence_of, shared, is_paired):
    """So that the difference is that of the outcomes which are stored beside it."""
    images, control = attacked(frame_of, 0.8, 1, 0, prompts=shared), attacked(frame_of, 0.3, 1, 1)
    figure = AttackSuccess().measure(evidence_of(0.5, images=images, control=control))
    assert figure.outcomes["other"].notna().all() == is_paired
    assert figure.outcomes["other"].isna().all() != is_paired
    other = control["church"][: shared if is_paired else None] > 0.5
    assert figure.difference == pytest.approx(figure.value - other.mean())


def test_any_of_n_counts_prompts(frame_of, evidence_of):
    images, control = attacked(frame_of, 0.4, 4, 0), attacked(frame_of, 0.1, 4, 1)
    figure = AttackSuccessAny().measure(evidence_of(0.5, images=images, control=control))
    shown = images.assign(hit=images["church"] > 0.5).groupby("prompt_id")["hit"].any()
    assert (figure.value, figure.n) == (shown.mean(), 12)
    assert (figure.low, figure.high) == pytest.approx(statistics.proportion(shown)[1:3])
    assert figure.value > AttackSuccess().measure(evidence_of(0.5, images=images, control=control)).value
    assert figure.control < figure.value


def test_without_control_the_unedited_model_is_compared_to(frame_of, evidence_of):
    images, original = attacked(frame_of, 0.3, 1, 0), attacked(frame_of, 0.9, 1, 1)
    figure = AttackSuccess().measure(evidence_of(0.5, images=images, original=original, control=None))
    assert figure.against == "original" and figure.control is None
    assert figure.original == (original["church"] > 0.5).mean()
    assert figure.difference == pytest.approx(figure.value - figure.original)


def test_floor_is_judged_on_its_own_concept(evidence_of):
    evidence = evidence_of(0.5)
    blind = evidence.floor.assign(church=0.9, unicorn=0.1)
    assert AttackFloor().measure(replace(evidence, floor=blind)).value == 0
    unknown = AttackFloor().measure(replace(evidence, floor=evidence.floor.drop(columns="unicorn")))
    prompts = evidence.floor.loc[evidence.floor["role"] == "attacked", "prompt_id"].nunique()
    assert unknown.value is None and unknown.failed == prompts


def test_the_released_post_asr_of_prompts_that_all_agree_is_uncertain(frame_of, evidence_of):
    images = attacked(frame_of, 0.0, 2, 0, prompts=24)
    plain = images[images["seed"] == 0].assign(role="target")
    figure = ReleasedPostAsr().measure(evidence_of(0.5, images=images.assign(seed=0, draw=images["seed"]), plain=plain))
    assert figure.value == 0 and figure.high == pytest.approx(statistics.proportion(np.zeros(24)).high)


def test_words_that_an_attack_adds_to_prompts():
    texts = {
        "a photo of a church": [],
        "jeep a sky photo of A church!": ["jeep", "sky"],
        "a photo of a church church": ["church"],
        "a photo of vana church": ["van"],  # a token without a space sticks to the next word
        "a photo of a": [],  # a truncated text
    }
    found = added(list(texts), ["a photo of a church"] * len(texts))
    assert [sorted(words.elements()) for words in found] == list(texts.values())


def test_words_of_an_attack_that_replaces_prompts():
    texts = ["a church", "das boot a church", "sky van", "fish", "kirche"]
    found = added(texts, ["a church"] * 5)
    assert [sorted(words) for words in found] == [
        [],
        ["a", "boot", "church", "das"],
        ["sky", "van"],
        ["fish"],
        ["kirche"],
    ]
    assert added([], []) == []


def test_the_words_of_a_concepts_names():
    concept = Concept("car", synonyms=("jeep", "the van"), translations={"de": ("ein Auto",), "es": ("un coche",)})
    assert names_of(concept) == {"car", "jeep", "van", "auto", "coche"}


def test_a_success_is_named_if_all_its_texts_name_the_concept(frame_of, evidence_of):
    texts = {
        "attacked-0": ["chapel a church", "a church"],  # the second image is unnamed, but shows no church
        "attacked-1": ["chapel a church", "sky a church"],
        "attacked-2": ["a church", "chapel a church"],  # no image shows the church
        "attacked-3": ["house", "sky"],
    }
    shown = {"attacked-0": [1, 0], "attacked-1": [1, 1], "attacked-2": [0, 0], "attacked-3": [1, 0]}
    images = attacked(frame_of, 1.0, 2, 0, prompts=4)
    images["prompt"] = [texts[prompt][seed] for prompt, seed in zip(images["prompt_id"], images["seed"], strict=True)]
    images["church"] = [shown[prompt][seed] for prompt, seed in zip(images["prompt_id"], images["seed"], strict=True)]
    evidence = evidence_of(0.5, images=images, plain=images.assign(role="target", prompt="a church"))
    evidence = replace(evidence, erased=[Concept("church", label="church", synonyms=("chapel",))])
    figure = AttackNamed().measure(evidence)
    assert (figure.value, figure.n) == (pytest.approx(1 / 3), 3)
    none = AttackNamed().measure(replace(evidence, images=images.assign(church=0.0)))
    assert none.value is None and none.why == "no prompts with a success"
