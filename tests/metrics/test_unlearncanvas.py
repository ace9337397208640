"""UA, IRA and CRA: the released script's accuracies, a matrix computed by hand, and the metrics on a grid of images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from overpaint.grid.concepts import Concept
from overpaint.metrics.metric import Evidence
from overpaint.metrics.unlearncanvas import (
    CrossDomainRetention,
    CrossDomainRetentionDrawn,
    InDomainRetention,
    InDomainRetentionDrawn,
    RetainedGridFid,
    UnlearningAccuracy,
)

FOLDER = Path(__file__).parents[1] / "goldens" / "metrics"
GOLDEN = json.loads((FOLDER / "unlearncanvas_accuracy.json").read_text())
ARRAYS = np.load(FOLDER / "unlearncanvas_accuracy.npz")
THEMES, OBJECTS = GOLDEN["inputs"]["themes"], GOLDEN["inputs"]["classes"]


def recorded(request):
    """The released script's images as a frame: one row for each theme, object and seed, with the classifiers' verdicts."""
    style = ARRAYS[f"{request}_pred_style"] == np.arange(len(THEMES))[:, None, None]
    drawn = ARRAYS[f"{request}_pred_object"] == np.arange(len(OBJECTS))[None, :, None]
    return frame(style, drawn, THEMES, OBJECTS)


def frame(style, drawn, themes, objects):
    """A frame of hits (themes, objects, seeds)."""
    rows = []
    for i, theme in enumerate(themes):
        for j, thing in enumerate(objects):
            for seed in range(style.shape[2]):
                shown = {theme: float(style[i, j, seed]), thing: float(drawn[i, j, seed])}
                rows.append(
                    {"prompt_id": f"{i}-{j}", "seed": seed, "role": "grid", "concept": thing, "failed": False} | shown
                )
                rows[-1]["expects"] = [thing, theme]
    return pd.DataFrame(rows)


def scores(images, target, drawn=False):
    """UA, IRA and CRA of an erased target; ``drawn`` leaves the photographs out of the means."""
    kind = "style" if target in THEMES or target == "sketch" else "object"
    found = Evidence([Concept(target, kind=kind, label=target)], images, images)
    retention = (
        (InDomainRetentionDrawn, CrossDomainRetentionDrawn) if drawn else (InDomainRetention, CrossDomainRetention)
    )
    return [metric().measure(found).value for metric in (UnlearningAccuracy, *retention)]


@pytest.mark.parametrize("request_name", ["style_request", "object_request"])
@pytest.mark.parametrize("include", [True, False])
def test_aggregates_of_the_released_script(request_name, include):
    outputs = GOLDEN["outputs"][request_name]
    ours = scores(recorded(request_name), outputs["target"], drawn=not include)
    suffix = "with_seed_images" if include else "without_seed_images"
    theirs = [outputs["aggregates"][name] for name in ("UA", f"IRA_{suffix}", f"CRA_{suffix}")]
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_grid_without_the_photographs():
    outputs = GOLDEN["outputs"]["object_request"]
    images = recorded("object_request")
    images = images[[labels[1] != "Seed_Images" for labels in images["expects"]]].reset_index(drop=True)
    assert scores(images, "Dogs")[1] == pytest.approx(outputs["aggregates"]["IRA_objects_over_50_styles"], abs=1e-5)


def test_accuracies_equal_those_computed_by_hand():
    style = np.array([[[1, 0], [0, 0]], [[1, 1], [1, 0]], [[1, 1], [1, 1]]])  # accuracies 1/4, 3/4, 1
    drawn = np.array([[[1, 1], [1, 0]], [[1, 1], [0, 0]], [[1, 0], [0, 0]]])  # accuracies 5/6, 1/6
    images = frame(style, drawn, ["sketch", "mosaic", "Seed_Images"], ["church", "tree"])
    assert scores(images, "sketch") == pytest.approx([0.75, 0.875, 0.5])
    assert scores(images, "sketch", drawn=True) == pytest.approx([0.75, 0.75, 0.5])
    assert scores(images, "tree", drawn=True) == pytest.approx([5 / 6, 5 / 6, 0.5])


def grid(frame_of, styles_shown, seeds=1):
    rows = [("grid", o, (o, s)) for o in ("church", "tree") for s in ("sketch", "mosaic", "pastel")]
    return frame_of(rows, lambda label, role: float(label in ("tree", *styles_shown)), seeds, 0)


@pytest.mark.parametrize(
    ("kind", "label", "expected"),
    [("object", "church", (1, 1, 2 / 3)), ("style", "pastel", (1, 1, 0.5)), ("style", "sketch", (0, 0.5, 0.5))],
)
def test_kind_says_which_axis_is_the_domain(frame_of, evidence_of, kind, label, expected):
    frame = grid(frame_of, ("sketch", "mosaic"))
    evidence = evidence_of(0.5, erased=[Concept(label, kind=kind, label=label)], images=frame, original=frame)
    measured = [m().measure(evidence) for m in (UnlearningAccuracy, InDomainRetention, CrossDomainRetention)]
    assert [figure.value for figure in measured] == pytest.approx(expected)
    assert all(figure.difference == 0 for figure in measured)


def test_labels_weigh_the_same(frame_of, evidence_of):
    frame = grid(frame_of, ("sketch",), seeds=2)
    evidence = evidence_of(0.5, images=frame[~((frame["seed"] == 1) & frame["expects"].map(lambda e: "sketch" in e))])
    assert CrossDomainRetention().measure(evidence).value == pytest.approx(1 / 3)


@pytest.mark.parametrize("metric", [InDomainRetention, CrossDomainRetention])
def test_a_label_without_a_judged_image_leaves_no_mean(metric, frame_of, evidence_of):
    """All images of one label fail, but fewer than the limit. The mean over the others would be a different figure."""
    others = [f"o{n}" for n in range(23)]
    rows = [("grid", o, (o, s)) for o in ("church", "tree", *others) for s in ("sketch", "mosaic")]
    whole = frame_of(rows, lambda label, role: float(label != "tree"), 1, 0)
    holed = whole.assign(failed=whole["concept"] == "tree")
    kind, label = ("object", "church") if metric is InDomainRetention else ("style", "sketch")
    evidence = evidence_of(0.5, erased=[Concept(label, kind=kind, label=label)], images=whole, original=whole)
    labels = 24 + (metric is CrossDomainRetention)
    assert metric().measure(evidence).value == pytest.approx(1 - 1 / labels)
    figure = metric().measure(replace(evidence, images=holed))
    assert figure.value is None and figure.failed == 2 and "tree" in figure.why
    beside = metric().measure(replace(evidence, original=holed))
    assert beside.value == pytest.approx(1 - 1 / labels) and beside.difference is None and beside.original is None


def test_both_axes_erased_leaves_nothing_across(evidence_of):
    both = [Concept("church", label="church"), Concept("sketch", kind="style", label="sketch")]
    evidence = evidence_of(0.5, erased=both)
    assert "no other axis" in CrossDomainRetention().measure(evidence).why
    assert InDomainRetention().measure(evidence).value is not None
    nobody = replace(evidence, erased=[Concept("church")])
    assert UnlearningAccuracy().measure(nobody).value is None


def test_fid_takes_the_combinations_without_an_erased_label(frame_of, evidence_of):
    evidence = evidence_of(0.5, images=grid(frame_of, ("sketch",)))  # the church is erased
    chosen = RetainedGridFid().images(evidence, "images")
    assert {tuple(labels) for labels in chosen["expects"]} == {("tree", s) for s in ("sketch", "mosaic", "pastel")}
    assert RetainedGridFid().images(replace(evidence, images=evidence.images.iloc[:0]), "images").empty
