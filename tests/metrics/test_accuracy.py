"""Accuracies and their harmonic means, on images whose labels are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from overpaint.grid.concepts import Concept
from overpaint.metrics.accuracy import ErasedCelebrities, HarmonicReceler, HarmonicUnderAttack, Locality
from overpaint.metrics.metric import Evidence


def images_of(role, concepts, shown):
    """One image of each concept that shows it (1), does not (0) or failed (NaN)."""
    about = [{"prompt_id": f"{role}{n}", "seed": 0, "role": role, "concept": own} for n, own in enumerate(concepts)]
    scores = {
        label: [hit if own == label else 0 * hit for own, hit in zip(concepts, shown, strict=True)] for label in LABELS
    }
    return pd.DataFrame(about).assign(**scores, failed=np.isnan(shown))


LABELS = ("church", "car", "tree")
NEAR = ["car"] * 39 + ["tree"]
KEPT, UNKNOWN = images_of("near", NEAR, [1.0] * 40), images_of("near", NEAR, [1.0] * 39 + [np.nan])
ERASED = [Concept("church", label="church")]
PLAIN, ATTACKED = (images_of(role, ["church"] * 20, [0.0] * 20) for role in ("target", "attacked"))
EVIDENCE = Evidence(
    ERASED,
    ATTACKED,
    ATTACKED,
    plain=PLAIN,
    plain_original=PLAIN,
    retained=KEPT,
    retained_original=KEPT,
)


@pytest.mark.parametrize("metric", [HarmonicReceler, HarmonicUnderAttack])
def test_a_harmonic_mean_is_undefined_if_one_of_its_terms_is(metric):
    """Only one of 40 images failed, but it is the only one of its neighbour."""
    assert metric().measure(EVIDENCE).value == 1
    figure = metric().measure(replace(EVIDENCE, retained=UNKNOWN))
    alone = Locality().measure(Evidence(ERASED, UNKNOWN, KEPT))
    assert figure.value is None and figure.why == alone.why == "none was judged for tree"
    against_unknown = metric().measure(replace(EVIDENCE, retained_original=UNKNOWN))
    assert against_unknown.value == 1 and against_unknown.difference is None


def test_an_image_whose_faces_are_unknown_has_failed():
    shown = images_of("target", ["church"] * 40, [1.0] * 10 + [0.0] * 30)
    shown["face"] = [1.0] * 38 + [0.0, np.nan]
    found = ErasedCelebrities().measure(Evidence(ERASED, shown, shown))
    assert (found.n, found.failed) == (38, 1) and found.value == pytest.approx(10 / 38)
