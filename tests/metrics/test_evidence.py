"""Evidence selects images by role, so that a metric cannot average the wrong ones."""

from dataclasses import replace

import pytest

import overpaint
from overpaint.metrics.metric import Figure, Metric


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
