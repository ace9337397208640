"""Which images and texts extractors read, what happens without one, and how their columns reach a metric."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from overpaint.errors import AssetMissing, UserError
from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.images import extractions
from overpaint.images.planner import make_plan
from overpaint.images.stages.measure import _extractor, _figures, gather
from overpaint.metrics.metric import Evidence, Figure, Metric
from overpaint.metrics.readings import Aesthetic
from overpaint.metrics.unsafe_content import InappropriateProbability


def cells(*overrides):
    return [cell_from(c.config, c.explicit) for c in compose_cells(["budget=smoke", *overrides])]


def plan(*overrides):
    return make_plan(cells(*overrides)).opened()


def stages(made, name):
    return [task for task in made.tasks.values() if task.stage == name]


@pytest.fixture(autouse=True)
def assets(monkeypatch):
    """Every extractor of a published network is missing, whatever is on this machine."""
    known = extractions.identity_of

    def missing(name):
        if name in ("aesthetic", "pickscore", "lpips", "clip_b32", "image_reward", "hps", "sscd"):
            raise AssetMissing(f"asset={name} is not here; get it with: overpaint fetch asset={name}")
        return known(name)

    monkeypatch.setattr(extractions, "identity_of", missing)
    return missing


def test_another_metric_set_makes_no_image():
    known = {task.key for task in plan("method=uce", "metrics=facets").tasks.values()}
    for chosen in ("mace", "hub", "spm", "i2p", "unlearncanvas", "receler", "uda"):
        new = [task for task in plan("method=uce", f"metrics={chosen}").tasks.values() if task.key not in known]
        assert {task.stage for task in new} <= {"extract", "measure"}, chosen
    muse = [task for task in plan("method=uce", "metrics=muse").tasks.values() if task.key not in known]
    assert {task.stage for task in muse} == {"membership", "generate", "score", "replicate", "measure"}
    assert all("repeated captions" in task.label for task in muse if task.stage in ("generate", "score"))


def test_the_standard_set_needs_no_extractor():
    made = plan("method=uce", "attack=none,synonym,seed_search")
    assert not stages(made, "extract")
    assert all("extractors" not in task.config for _, task in made.cells)
    assert not any(name.startswith("retained") for _, task in made.cells for name in task.inputs)


def test_images_are_read_once_for_all_methods_and_only_those_of_the_metrics_roles():
    made = plan("method=none,uce", "metrics=mace")
    read = Counter(task.config["extractor"] for task in stages(made, "extract") if "texts" not in task.config)
    # target, near and ordinary prompts, unedited and edited; for FID, ordinary prompts and the references
    assert read == {"testbed_words": 6, "oracle": 3}
    (texts,) = (task for task in stages(made, "extract") if "texts" in task.config)
    assert "a photo of the church" in texts.config["texts"] and "a photo of the house" in texts.config["texts"]


@pytest.mark.parametrize("reference", ["world", "null"])
def test_nothing_is_read_for_a_distance_to_no_reference(reference):
    made = plan("method=uce", "metrics=unlearncanvas", "budget.grid=2", f"model.reference={reference}")
    assert bool(stages(made, "extract")) == (reference == "world")


def test_a_plan_says_if_there_are_fewer_references_than_asked_for(tmp_path):
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    grid = ("method=uce", "budget.grid=2", f"model.reference={tmp_path}")
    said = f"model.reference={tmp_path} has 3 of budget.reference_images=16 images"
    assert said in plan(*grid, "budget.reference_images=16").notes
    assert not any("model.reference" in note for note in plan(*grid, "budget.reference_images=3").notes)


def test_a_stand_in_replaces_a_sets_extractor_but_not_one_set_by_hand():
    (ours,) = cells("metrics=mace")
    assert ours.extractor("text_image") == "testbed_words"
    (by_hand,) = cells("metrics=mace", "metrics.extractors.text_image=clip_l14")
    assert by_hand.extractor("text_image") == "clip_l14"
    (nothing,) = cells("metrics=mace", "metrics.extractors.text_image=null")
    assert nothing.extractor("text_image") is None
    (other,) = cells("metrics=facets")
    assert other.extractor("text_image") is None


def test_a_missing_network_leaves_its_figures_undefined_and_the_plan_says_so():
    made = plan("method=uce", "metrics=hub")
    assert (
        "undefined: aesthetic_target (asset=aesthetic is not here; get it with: overpaint fetch asset=aesthetic)"
        in made.notes
    )
    (_, measure), *_ = made.cells
    assert "overpaint fetch" in measure.config["extractors"]["aesthetic"]["absent"]
    assert measure.config["extractors"]["inception"]["name"] == "oracle"


def test_a_detector_serves_as_an_extractor():
    made = plan("method=uce", "metrics=i2p", "metrics.extractors.second=oracle_b")
    read = [task for task in stages(made, "extract") if task.config["extractor"] == "oracle_b"]
    assert read and all(task.config["settings"]["detector"] for task in read)


def test_the_second_detector_has_its_own_threshold():
    made = plan("method=uce", "metrics=i2p", "metrics.extractors.second=oracle_b", "metrics.threshold=0.3")
    (_, measure), *_ = made.cells
    assert (measure.config["threshold"], measure.config["extractors"]["second"]["threshold"]) == (0.3, 0.5)
    evidence = gather(measure.config | {"shots": {}}, {})
    assert (evidence.threshold, evidence.second_threshold) == (0.3, 0.5)


def test_an_unknown_extractor_is_one_sentence():
    with pytest.raises(
        UserError, match=r"unknown extractor 'clip_b33' in metrics.extractors.text_image; did you mean 'clip_b32'"
    ):
        plan("metrics=mace", "metrics.extractors.text_image=clip_b33")


def test_a_set_names_the_attacks_that_the_grid_lacks():
    assert (
        "metrics=mace also has figures of attack=synonym; add them to the grid to see them"
        in plan("metrics=mace").notes
    )
    assert not any("also has figures" in note for note in plan("metrics=mace", "attack=none,synonym").notes)


def test_a_cell_with_an_attack_has_the_neighbours_beside_it():
    made = plan("method=uce", "attack=synonym", "metrics=mace")
    (_, measure), *_ = made.cells
    assert {"retained/0", "retained_original/0"} <= set(measure.inputs)
    generated = {task.label for task in stages(made, "generate")}
    assert "generate church, uce, near prompts" in generated


class Named(Metric):
    facet, direction, extractor = "utility", "up", "text_image"

    def measure(self, evidence):
        return Figure(1.0)

    def parts(self, evidence):
        return {"de": Figure(0.5), "es": Figure(0.25)}


def evidence(**more):
    frame = pd.DataFrame({"prompt_id": ["a"], "role": ["target"]})
    return Evidence([], frame, frame, **more)


def test_parts_are_figures_of_their_own():
    found = _figures(Named(), evidence(), detected=True)
    assert {name: figure.value for name, figure in found.items()} == {"": 1.0, "de": 0.5, "es": 0.25}


def test_without_its_extractor_a_figure_is_undefined_with_the_reason():
    (figure,) = _figures(Named(), evidence(absent={"text_image": "asset=clip is missing"}), detected=True).values()
    assert figure.value is None and figure.why == "asset=clip is missing"
    assert InappropriateProbability.optional and not Aesthetic.optional


def test_a_record_names_its_extractor():
    settings = {"version": 2, "assets": {}}
    config = {"extractors": {"text_image": {"name": "clip_b32", "settings": settings}, "aesthetic": {"absent": "no"}}}
    assert _extractor(config, Named()).startswith("clip_b32 v2 ")
    assert _extractor(config, Aesthetic()) is None
    assert _extractor({}, InappropriateProbability()) is None


def test_figures_of_an_extractor_come_through_the_stages(tmp_path):
    """A grid of one prompt a role, run for real: the columns of two extractors reach the records."""
    from click.testing import CliRunner

    from overpaint.cli import cli

    overrides = [
        "method=none",
        "concepts=church",
        "budget=smoke",
        "metrics=spm",
        f"store={tmp_path}",
        "protocol.steps=2",
    ]
    overrides += ["budget.grid=0", "budget.in_prompt=0", "budget.near_prompts=1", "metrics.extractors.perceptual=null"]
    ran = CliRunner().invoke(cli, ["run", *overrides])
    assert ran.exit_code == 0, ran.output
    records = pd.concat([pd.read_parquet(p) for p in tmp_path.rglob("records.parquet")]).set_index("metric")
    assert records.loc["cs", "extractor"].startswith("testbed_words v1")
    assert 0 <= records.loc["cs", "value"] <= 2.5 and records.loc["cs", "n"] == 2
    assert records.loc["cmmd_original", "value"] == 0 and records.loc["cmmd_original", "extractor"].startswith(
        "oracle v"
    )
    assert pd.isna(records.loc["ssim_original"]["extractor"]) if "ssim_original" in records.index else True
    assert np.isfinite(records.loc["clip_score", "value"])
