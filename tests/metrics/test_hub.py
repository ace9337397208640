"""Pinpoint-ness: a network is asked about each prompt, and only without one the detector decides."""

import numpy as np
import pandas as pd

from overpaint.grid.concepts import Concept
from overpaint.metrics.hub import Pinpointness
from overpaint.metrics.metric import Evidence
from overpaint.metrics.proportions import NeighbourRetention


def images(answers=None, failed=False):
    """Forty images of nouns that the detector does not know; ``answers`` are those of the asked network."""
    about = [{"prompt_id": str(n), "seed": 0, "role": "near", "concept": f"noun {n}"} for n in range(40)]
    frame = pd.DataFrame(about).assign(failed=failed, church=0.0, expects=[[]] * 40)
    return frame if answers is None else frame.assign(**{"asked.value": answers})


def evidence(own, original, **values):
    return Evidence([Concept("church", label="church")], own, original, **values)


def test_answers_about_prompts_count():
    """A detector of people fails on an image without a face; the asked network does not."""
    own, original = images([1.0] * 20 + [0.0] * 20, failed=True), images([1.0] * 40)
    figure = Pinpointness().measure(evidence(own, original))
    assert (figure.value, figure.n, figure.failed, figure.original) == (0.5, 40, 0, 1.0)
    assert figure.difference == -0.5 and figure.low < 0.5 < figure.high


def test_an_answer_without_a_final_word_has_failed():
    figure = Pinpointness().measure(evidence(images([1.0] * 39 + [np.nan]), images([1.0] * 40)))
    assert (figure.value, figure.n, figure.failed) == (1.0, 39, 1)


def test_without_its_network_the_figure_is_undefined_and_not_the_detectors():
    figure = Pinpointness().measure(evidence(images(), images(), absent={"asked": "x is not in the hub's cache"}))
    assert (figure.value, figure.why) == (None, "x is not in the hub's cache")


def test_without_an_extractor_the_detector_decides():
    known = images().assign(concept="church", church=[1.0] * 30 + [0.0] * 10)
    found = [metric().measure(evidence(known, known)) for metric in (Pinpointness, NeighbourRetention)]
    assert found[0].value == found[1].value == 0.75
    unknown = Pinpointness().measure(evidence(images(), images()))
    assert unknown.value is None and unknown.why
