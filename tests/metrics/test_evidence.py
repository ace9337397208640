"""Evidence selects images by role, so that a metric cannot average the wrong ones."""

from dataclasses import replace

import pytest

import overpaint
from overpaint.images import task_parts
from overpaint.metrics.metric import Figure, Metric
from overpaint.metrics.outcomes import Share, outcomes


class NearScore(Metric):
    """A third-party metric: the mean score of near images."""

    facet = "specificity"
    direction = "up"
    roles = ("near",)

    def measure(self, evidence):
        images = evidence.images_of("near")
        return Figure(float(images["house"].mean()), n=len(images))


def test_a_metric_sees_the_images_of_its_roles_alone(evidence_of):
    evidence = evidence_of(0.5)
    figure = NearScore().measure(evidence)
    own = evidence.images[evidence.images["role"] == "near"]
    assert (figure.value, figure.n) == (own["house"].mean(), len(own))
    assert figure.value != evidence.images["house"].mean()


def test_frames_and_several_roles(evidence_of):
    evidence = evidence_of(0.5)
    both = evidence.images_of("near", "target", frame="original")
    assert set(both["role"]) == {"near", "target"} and list(both.index) == list(range(len(both)))
    assert set(both["prompt_id"]) < set(evidence.original["prompt_id"])
    assert evidence.images_of("target", frame="control").empty


def test_an_absent_frame_has_no_images(evidence_of):
    absent = replace(evidence_of(0.5), control=None).images_of("attacked", frame="control")
    assert absent.empty and {"prompt_id", "role", "failed"} <= set(absent.columns)


def test_an_unknown_role_is_refused_with_the_nearest(evidence_of):
    with pytest.raises(overpaint.UserError, match=r"'nere'.*did you mean 'near'"):
        evidence_of(0.5).images_of("nere")


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("direction", "sideways", r"unknown direction 'sideways' .*\(allowed: down, up, zero\)"),
        ("direction", None, "NearScore.direction takes a text, got null"),
        ("facet", "specificty", "unknown facet 'specificty' .*did you mean 'specificity'"),
        ("facet", "", "NearScore.facet takes a text, got ''"),
        ("unit", 3, "NearScore.unit takes a text, got 3"),
        ("version", "2", "NearScore.version takes a whole number, got '2'"),
        ("roles", "near", r"NearScore.roles takes a tuple of texts, such as \('target',\), got 'near'"),
        ("roles", ("nere",), "unknown role 'nere' .*did you mean 'near'"),
        ("frames", ("golden",), "unknown frame 'golden' .*did you mean 'gold'"),
    ],
)
def test_a_metric_whose_description_cannot_be_used_is_refused_when_it_is_loaded(attribute, value, said, monkeypatch):
    metric = type("NearScore", (NearScore,), {attribute: value})
    monkeypatch.setattr(task_parts, "load_attribute", lambda reference: metric)
    with pytest.raises(overpaint.UserError, match=said) as found:
        task_parts.metric_class.__wrapped__("mine", "mine:NearScore")
    assert "metrics.metrics.mine: NearScore" in str(found.value)


def test_a_metric_may_have_a_facet_of_its_own(monkeypatch):
    metric = type("Own", (NearScore,), {"facet": "fairness"})
    monkeypatch.setattr(task_parts, "load_attribute", lambda reference: metric)
    assert task_parts.metric_class.__wrapped__("own", "mine:Own") is metric


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda frame: [True] * len(frame), "Judged.judge returned list; judge returns what outcomes"),
        (lambda frame: frame["house"] > 0.5, "Judged.judge returned Series; judge returns what outcomes"),
        (lambda frame: frame[["prompt_id", "seed"]], "Judged.judge returned a frame without column 'label'"),
        (
            lambda frame: outcomes(frame, [("house",)] * len(frame), 0.5).assign(hit="yes"),
            "Judged.judge returned other values of 'hit' than 1, 0 and NaN",
        ),
    ],
)
def test_a_share_whose_judge_returns_no_outcomes_says_so(returned, said, evidence_of):
    class Judged(Share):
        facet, direction, roles = "specificity", "up", ("near",)

        def judge(self, frame, evidence):
            return returned(frame)

    with pytest.raises(overpaint.UserError, match=f"^{said}"):
        Judged().measure(evidence_of(0.5))
