"""On real cards: every stage gives the CPU's figures, half precision, two cards, too little memory, repeated and resumed runs.

    pytest -m cuda tests/cuda

Tolerances: a card adds in another order than the CPU. Pictures of the drawn world in float32 differ in few pixels, by one or two
of 256 levels, and a trained erasure starts to differ after tens of steps. A share of n images moves by 1/n where one image
crosses the threshold.
"""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from counting_track import Told

import overpaint
from overpaint.grid.registry import component
from overpaint.images.workbench import repeatable
from overpaint.run.runner import run_here
from small_grid import figures, manifests, planned_in

pytestmark = pytest.mark.cuda
#: Shares may differ by one image of the smallest role; other figures by this part of their size.
ONE_IMAGE, PART = 0.5, 0.05
#: A grid with every stage but *given*: edited weights, an adapter and a guard, attacks by prompts, tokens and searches.
GRID = ("budget=smoke", "protocol.steps=4", "concepts=church", "method=none,uce,spm,sld", "attack=none,synonym,cce,uda")
GRID += ("metrics=muse",)
STAGES = {
    "erase",
    "attack",
    "generate",
    "score",
    "membership",
    "replicate",
    "latency",
    "compare",
    "measure",
    "reference",
}
CLOSED, TRAINED = ("uce", "rece", "mace", "speed"), ("esd", "spm", "receler")


def on(device):
    """A function that runs a plan on this device."""
    return partial(run_on, device)


def run_on(device, plan, store):
    watcher = Told()
    outcome = run_here(plan, store, device, watcher)
    assert not watcher.reasons
    return outcome


@pytest.fixture(scope="module")
def on_cpu():
    return overpaint.load_model("testbed")


def pictures(model, count=8, **how):
    return np.stack(
        [
            np.asarray(i, int)
            for i in model.sample(["a church", "a red car"] * (count // 2), range(count), steps=20, **how)
        ]
    )


def test_pictures_of_the_drawn_world_are_the_cpus(cuda, on_cpu):
    away = np.abs(pictures(overpaint.load_model("testbed", device=cuda)) - pictures(on_cpu))
    assert np.median(away) == 0 and (away > 2).mean() < 0.01, "start noise is drawn on the CPU, and float32 is not TF32"


@pytest.mark.parametrize("precision, most", [("float16", 2.0), ("bfloat16", 6.0)])
def test_half_precision_changes_pictures_little(cuda, on_cpu, precision, most):
    away = np.abs(pictures(overpaint.load_model("testbed", dtype=precision, device=cuda)) - pictures(on_cpu))
    assert away.mean() < most, "mean difference in levels of 256"


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_form_is_solved_alike(cuda, on_cpu, name):
    own = overpaint.load_model("testbed", device=cuda)
    how = {"erase": ["church"], "anchor": "house", "seed": 1}
    here, there = (overpaint.erase(model, name, **how).tensors for model in (on_cpu, own))
    assert here.keys() == there.keys()
    for key, tensor in here.items():
        change = (tensor - on_cpu.named_parameters()[key]).norm()
        assert (there[key].cpu() - tensor).norm() < 1e-3 * change, key


@pytest.mark.parametrize("name", TRAINED)
def test_two_trainings_on_one_card_are_equal(cuda, name):
    repeatable()
    model = overpaint.load_model("testbed", device=cuda)
    how = {"erase": ["church"], "anchor": "house", "seed": 1, "iterations": 5}
    one, two = (overpaint.erase(model, name, **how)._stored() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_every_stage_gives_the_figures_of_the_cpu(cuda, tmp_path):
    here, there = (figures(tmp_path / name, on(device), *GRID) for name, device in (("card", cuda), ("cpu", "cpu")))
    assert {made["stage"] for made in manifests(tmp_path / "card")} >= STAGES
    labels = ["method", "attack", "metric"]
    both = here.merge(there, on=labels, suffixes=("", "_cpu"))
    assert len(both) == len(here) == len(there)
    values = both[["value", "value_cpu"]].astype(float)
    assert (values["value"].isna() == values["value_cpu"].isna()).all()
    allowed = np.where(both["unit"] == "fraction", ONE_IMAGE, PART * values["value_cpu"].abs().clip(lower=1))
    wrong = both[(values["value"] - values["value_cpu"]).abs() > allowed]
    assert wrong.empty, wrong[[*labels, "value", "value_cpu"]].to_string()


def test_two_runs_on_one_card_give_equal_figures(cuda, tmp_path):
    one, two = (figures(tmp_path / name, on(cuda), *GRID) for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)


def test_a_run_continues_on_the_other_device(cuda, tmp_path):
    first = figures(tmp_path, on(cuda))
    plan, store = planned_in(tmp_path)
    assert not plan.missing(store), "the device is not part of a key"
    images = manifests(tmp_path, "generate")
    assert images and all(made["host"]["processor"].startswith("cuda:0 (") for made in images)
    watcher, (more, _) = (
        Told(),
        planned_in(tmp_path, "budget=smoke", "protocol.steps=4", "concepts=church", "method=none,uce,esd"),
    )
    assert not run_here(more, store, "cpu", watcher).failed
    assert watcher.done and not {made["label"] for made in images} & set(watcher.done)
    assert len(first)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_every_stage_runs_in_half_precision(cuda, tmp_path, precision):
    found = figures(tmp_path, on(cuda), *GRID, f"model.precision={precision}")
    assert found["value"].astype(float).notna().mean() > 0.5


def test_too_little_memory_is_one_sentence_and_a_recorded_failure(cuda, tmp_path):
    plan, store = planned_in(tmp_path)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4, 0)
    watcher = Told()
    try:
        assert run_here(plan, store, cuda, watcher).failed and store.failures()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert any("ran out of memory: set a smaller protocol.batch_size" in reason for reason in watcher.reasons)
    assert not run_here(plan, store, cuda, Told()).failed, "the same command continues"


def test_two_workers_use_a_card_each(two_cards, tmp_path):
    engine = component("engine", "local").build({"workers": 2, "device": "cuda"})
    shared = figures(tmp_path / "shared", lambda plan, store: engine.run(plan, store, Told()), *GRID)
    alone = figures(tmp_path / "alone", on(two_cards[0]), *GRID)
    hosts = [made["host"] for made in manifests(tmp_path / "shared")]
    assert len({host["process"] for host in hosts}) == 2
    assert {host["device"] for host in hosts} == {"cuda:0"}, "each worker sees one card"
    assert len(shared) == len(alone)
