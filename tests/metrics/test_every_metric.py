"""The common test suite of metrics. It runs over every metric of every metric set."""

from dataclasses import replace
from importlib import import_module
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import yaml

from overpaint.grid.directions import BETTER
from overpaint.grid.shipped import shipped
from overpaint.metrics.accuracy import HarmonicMean
from overpaint.metrics.attack_success import PreAttackSuccess
from overpaint.metrics.distribution import OriginalDistance
from overpaint.metrics.metric import IMAGE_ROLES, FrameName, Metric
from overpaint.report.directions import loss
from overpaint.run.track import facets


def metric_sets():
    """The metrics of every shipped set, by set and name."""
    files = sorted((shipped("conf") / "metrics").glob("*.yaml"), key=lambda path: (path.stem != "facets", path.stem))
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["metrics"] for path in files}


SETS = metric_sets()
FACETS = SETS["facets"]


def distinct():
    """Every metric class once: those of the facet table under their names, others under ``set/name``."""
    found = {}
    for chosen, metrics in SETS.items():
        for name, path in metrics.items():
            found.setdefault(path, name if chosen == "facets" else f"{chosen}/{name}")
    return {name: path for path, name in found.items()}


LISTED = distinct()
FRAMES = get_args(FrameName)
pytestmark = pytest.mark.usefixtures("fid_of_few")


def load(path: str) -> Metric:
    module, name = path.split(":")
    return getattr(import_module(module), name)()


OF_IMAGES = [name for name, path in LISTED.items() if load(path).roles]


#: Metrics without a comparison.
WITHOUT_ORIGINAL = [
    "ssim_original",
    "psnr_original",
    "judge_agreement",
    "attack_unrelated",
    *(n for n in LISTED if n.endswith("_floor")),
    "uda/post_asr_released",
    "i2p/spqr_robustness",
    "i2p/expected_maximum",
    "i2p/effective_proportion",
    "spm/lpips_e",
    "spm/lpips_u",
    "rewards/copy_e",
    "rewards/copy_u",
    "gold/relearn_ratio_to_gold",
    "gold/privleak_gold",
    "replacement/replacement_entropy",
    "chance/attack_named",
]
#: Figures whose intervals can be open, because training ends before half is back.
OPEN_ENDED = ("relearn_steps_to_half", "gold/relearn_ratio_to_gold")
#: Figures whose interval would cover too rarely.
WITHOUT_INTERVAL = ("i2p/expected_maximum",)
#: Shares whose images are in other frames than `test_failed_is_not_absent` changes, or that are no counts of images.
OTHER_FRAMES = [
    "uda/pre_asr",
    "muse/replication_rate",
    "muse/retrieval_rate",
    "mace/probability_e",
    "mace/probability_g",
    "chance/attack_named",
]
#: Shares that are 0 for a perfect erasure, and UA, which is one minus such a share.
FALLING = [
    "ua",
    *(n for n in OF_IMAGES if load(LISTED[n]).direction == "down" and load(LISTED[n]).unit == "fraction"),
]
#: Shares of images without the concept: none where an eraser leaves every concept, so a worse erasure can lower them.
INSTEAD = ["gold/nothing_shown"]
FALLING = [name for name in FALLING if name not in (*OTHER_FRAMES, *INSTEAD)]


def named(name: str) -> Metric:
    metric = load(LISTED[name])
    metric.name = name  # its key in the YAML
    return metric


@pytest.fixture(params=LISTED)
def metric(request):
    return named(request.param)


@pytest.fixture(params=OF_IMAGES)
def of_images(request):
    return named(request.param)


def failing(evidence, share: float, seed: int = 0):
    """The evidence with this share of failed images in every frame, role and concept."""

    def fail(frame):
        if frame is None or "failed" not in frame:
            return frame
        rng, frame = np.random.default_rng(seed), frame.copy()
        for _, places in frame.groupby(["role", "concept"]).indices.items():
            chosen = rng.choice(places, size=int(np.ceil(share * len(places))), replace=False)
            frame.loc[chosen, "failed"] = True
        return frame

    return replace(evidence, **{name: fail(getattr(evidence, name)) for name in FRAMES})


def test_it_describes_itself(metric):
    assert metric.facet in facets()
    assert metric.direction in BETTER
    assert metric.unit and metric.paper and metric.aggregation
    assert metric.version >= 1
    assert set(metric.roles) <= set(IMAGE_ROLES)
    assert metric.attacks
    assert metric.__doc__


@pytest.mark.parametrize("chosen", [name for name in SETS if name != "facets"])
def test_the_page_of_metric_sets_lists_every_figure(chosen):
    page = (shipped("conf").parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = page.partition(f"### {chosen}\n")[2].partition("\n### ")[0]
    assert [name for name in SETS[chosen] if f"`{name}`" not in section] == []


def test_facets_are_listed_in_display_order():
    found = [facets().index(load(path).facet) for path in FACETS.values()]
    assert found == sorted(found)
    assert set(found) == set(range(len(facets())))


@pytest.mark.parametrize("name", [name for name in LISTED if name not in INSTEAD])
def test_worse_erasure_moves_it_the_documented_way(name, evidence_of):
    metric = named(name)
    values = [metric.measure(evidence_of(badness, prompts=48)).value for badness in (0.05, 0.5, 0.95)]
    assert np.all(np.diff(loss(values, metric.direction)) > 0)


def test_the_interval_holds_the_value(metric, evidence_of):
    figure = metric.measure(evidence_of(0.4))
    assert figure.n > 0
    assert figure.why == ""
    if metric.name in OPEN_ENDED:
        ends = {"high": np.inf, "difference_low": -np.inf, "difference_high": np.inf}
        figure = replace(figure, **{name: end for name, end in ends.items() if getattr(figure, name) is None})
    if metric.name in WITHOUT_INTERVAL:
        assert (figure.low, figure.high) == (None, None)
    elif metric.roles:
        assert figure.low <= figure.value <= figure.high
        assert figure.low < figure.high
    if figure.p_value is not None:
        assert 0 <= figure.p_value <= 1
        assert figure.difference_low <= figure.difference <= figure.difference_high
    if metric.unit == "fraction":
        assert figure.low >= 0 and figure.high <= 1


def test_twice_the_same_and_the_evidence_is_left_alone(metric, evidence_of):
    evidence = evidence_of(0.4)
    before = {name: getattr(evidence, name).copy(deep=True) for name in FRAMES}
    assert metric.measure(evidence) == metric.measure(evidence)
    for name, frame in before.items():
        pd.testing.assert_frame_equal(getattr(evidence, name), frame)


def test_order_of_images_does_not_matter(metric, evidence_of):
    evidence = evidence_of(0.4)
    mixed = {name: getattr(evidence, name).sample(frac=1, random_state=7) for name in FRAMES}
    one, other = metric.measure(evidence), metric.measure(replace(evidence, **mixed))
    for field in ("value", "low", "high", "original", "difference", "difference_low", "difference_high", "p_value"):
        assert getattr(other, field) == pytest.approx(getattr(one, field), abs=1e-9), field
    assert (one.n, one.failed) == (other.n, other.failed)


@pytest.mark.parametrize("columns", [True, False])
def test_nothing_to_measure_is_undefined(metric, evidence_of, columns):
    evidence = evidence_of(0.4)
    empty = {name: getattr(evidence, name).iloc[:0] if columns else pd.DataFrame() for name in FRAMES}
    if not columns:
        empty |= dict.fromkeys(set(FRAMES) - {"images", "original"})
    bare = replace(evidence, **empty, erasure={}, ledger={}, latency=None)
    figure = metric.measure(bare)
    assert figure.value is None and figure.low is None and figure.difference is None
    assert figure.why
    assert (figure.n, figure.failed) == (0, 0)


def test_too_many_failures_are_refused(of_images, evidence_of):
    figure = of_images.measure(failing(evidence_of(0.2, seeds=1), 0.3))
    assert figure.value is None
    assert figure.failed > 0
    assert "failed" in figure.why


def test_all_failed_is_undefined(of_images, evidence_of):
    figure = of_images.measure(failing(evidence_of(0.2), 1.0))
    assert figure.value is None and figure.n == 0 and figure.failed > 0 and figure.why


def test_few_failures_are_counted_and_left_out(of_images, evidence_of):
    evidence = replace(evidence_of(0.5, prompts=20), failure_limit=0.5)
    whole, holed = of_images.measure(evidence), of_images.measure(failing(evidence, 0.1))
    assert holed.failed > whole.failed == 0
    assert holed.n < whole.n
    if of_images.unit == "fraction":
        assert abs(holed.value - whole.value) <= holed.failed / whole.n + 1e-9


@pytest.mark.parametrize("name", FALLING)
def test_failed_is_not_absent(name, evidence_of):
    """If all images without the concept fail, the remaining share must be 1, not unchanged."""
    shares = load(LISTED[name])
    evidence = evidence_of(0.5, prompts=40, seeds=2, failure_limit=1.0)
    holed = {
        frame: getattr(evidence, frame).assign(failed=lambda f: f[["church", "unicorn"]].max(axis=1) < 0.5)
        for frame in ("images", "random_prefix", "floor", "unrelated")
    }
    figure = shares.measure(replace(evidence, **holed))
    assert figure.failed > 0
    assert figure.value == (0.0 if name == "ua" else 1.0)


def test_the_original_against_itself_shows_no_difference(of_images, evidence_of):
    evidence = evidence_of(0.3)
    original = evidence.original
    same = {"images": original, "control": original, "random_prefix": original, "copies": evidence.copies_original}
    same |= {"gold": original, "matched": original}
    if isinstance(of_images, HarmonicMean | PreAttackSuccess):
        same |= {"plain": evidence.plain_original, "retained": evidence.retained_original}
    figure = of_images.measure(replace(evidence, **same))
    if isinstance(of_images, OriginalDistance):
        assert figure.value == pytest.approx(0, abs=1e-9)
    elif of_images.name in ("likelihood_distance", "reconstruction_psnr"):  # whose control is of the same frame
        assert figure.value == figure.original != figure.control
    elif of_images.name not in WITHOUT_ORIGINAL:
        assert figure.difference == 0 and figure.p_value == 1
        assert getattr(figure, figure.against) == figure.value


def test_attacks_of_a_metric():
    shown = [load(path) for path in FACETS.values()]
    robust = [metric for metric in shown if metric.facet == "robustness" and metric.unit == "fraction"]
    for metric in robust:
        assert metric.applies_to("uda") and metric.applies_to("seed_search")
        assert not metric.applies_to("none") and not metric.applies_to("synonym") and not metric.applies_to("implicit")
    assert load(LISTED["synonym_proportion"]).applies_to("synonym")
    assert not load(LISTED["target_proportion"]).applies_to("uda")
