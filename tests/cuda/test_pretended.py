"""Without a card: what assumes the CPU, and what concerns a card's name and its memory.

Every method, attack, detector and stage runs on a pretended card (`pretended_device`), which refuses what a card refuses and
computes what the CPU computes. So the results must be those of the CPU.
"""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from counting_track import Told

import overpaint
import small_methods
from overpaint.errors import UserError
from overpaint.grid.registry import component, components
from overpaint.images.stages import generate
from overpaint.images.workbench import Workbench, repeatable
from overpaint.run.executor import Run
from overpaint.run.runner import run_here
from overpaint.run.tasks import Task
from overpaint.run.track import track
from overpaint.run.worker import Assignment, pinned
from pretended_device import DeviceMismatch, OnCard, pretended_cuda
from published import cross_attention, factors, write_kohya
from small_grid import figures, manifests, planned_in

TESTS = Path(__file__).resolve().parents[1]
METHODS, ATTACKS = sorted(components("method")), sorted(components("attack"))
#: Sizes with which every method and attack runs on the tiny model; keys that one does not have are ignored. Learning rates stay.
TINY = {key: value for key, value in small_methods.TINY.items() if key != "learning_rate"}
TINY |= {"timesteps": 1, "draw_every": 2, "last_images": 1, "generations": 2}
TINY |= {"population": 4, "candidates": 8, "restarts": 1, "curve": [0, 1], "rollout_steps": 2}
TINY |= dict.fromkeys(("pictures", "picture_steps", "inner_steps", "attack_steps", "inversion_steps"), 1)
TINY |= {"fisher_timesteps": 1}
#: Attention is computed by other kernels and rounds differently (1e-6). Solves with a large condition number enlarge that.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def small(chosen, **values):
    looking = small_methods.LOOKING if small_methods.LOOKING.keys() <= chosen.defaults.keys() else {}
    return {key: value for key, value in {**TINY, **looking, **values}.items() if key in chosen.defaults}


def plain(found):
    """Tensors as the CPU's."""
    return {name: (t.values if isinstance(t, OnCard) else t).detach().double() for name, t in found.items()}


@pytest.fixture(scope="module")
def folder(goldens):
    return str(goldens / "tiny_sd")


@pytest.fixture(scope="module")
def published(tiny_sd, tmp_path_factory):
    """A published erasure, for methods that read a file."""
    pairs = factors(tiny_sd, cross_attention(tiny_sd, "to_v"))
    return str(write_kohya(pairs, tmp_path_factory.mktemp("published") / "sd.safetensors"))


@pytest.fixture(scope="module")
def on_card(folder):
    with pretended_cuda():
        return overpaint.load_model(folder, device="cuda:0")


REFUSED = {
    "a sum over both": lambda x: x + torch.ones(3),
    "a product with both": lambda x: torch.ones(2, 3) @ x,
    "one number among several": lambda x: torch.stack([x[0], torch.tensor(1.0)]),
    "numpy": lambda x: x.numpy(),
    "an array": lambda x: np.asarray(x),
    "an index of the card for the CPU": lambda x: torch.ones(3)[torch.tensor([0], device="cuda:0")],
    "a generator of the CPU": lambda x: torch.randn(3, device="cuda", generator=torch.Generator()),
    "a card that is not there": lambda x: torch.zeros(1, device="cuda:1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_pretended_card_refuses(pretended, what):
    with pytest.raises((DeviceMismatch, TypeError)):
        REFUSED[what](torch.zeros(3, device=pretended))


def test_the_pretended_card_computes(pretended):
    x = torch.arange(3.0, device=pretended).requires_grad_()
    (x * torch.tensor(2.0)).square().sum().backward()
    assert x.grad.cpu().tolist() == [0, 8, 16] and x.grad.device == torch.device(pretended)
    x.data[torch.tensor([0])] += 5
    assert x.tolist() == [5, 1, 2] and bool((x > 0).all()) and float(x[0]) == 5
    row = torch.ones(1, 3, device=pretended).squeeze_(0)
    assert row.shape == (torch.ones(2, device=pretended) @ torch.ones(2, 3, device=pretended)).shape == (3,)
    assert x[[2, 0, 0]].tolist() == [2, 5, 5] and x[x > 1].tolist() == [5, 2]


def test_pictures_on_the_card_are_the_cpus(tiny_sd, on_card):
    for scheduler in ("ddim", "pndm", "lms", "dpm", "euler"):
        how = {"steps": 3, "scheduler": scheduler}
        ours = tiny_sd.sample(["a cat", "a dog"], [0, 1], **how)
        with pretended_cuda():
            theirs = on_card.sample(["a cat", "a dog"], [0, 1], **how)
        for one, two in zip(ours, theirs, strict=True):
            assert np.abs(np.asarray(one, int) - np.asarray(two)).max() <= 2, scheduler


@pytest.mark.parametrize("name", METHODS)
def test_every_method_erases_on_the_card_as_on_the_cpu(tiny_sd, on_card, name, published, tmp_path):
    chosen = component("method", name)
    how = {"erase": ["dog"], "anchor": "cat", "retain": ["ship"], "seed": 1} | small(chosen, file=published)
    ours = overpaint.erase(tiny_sd, name, **how)
    with pretended_cuda():
        theirs = overpaint.erase(on_card, name, **how)
        theirs.save(tmp_path / "erasure.safetensors")
        with overpaint.load_erasure(tmp_path / "erasure.safetensors").attached(on_card):
            seen = on_card.sample(["a photo of a dog"], [0], steps=2)[0]
    with ours.attached(tiny_sd):
        expected = tiny_sd.sample(["a photo of a dog"], [0], steps=2)[0]
    stored = overpaint.load_erasure(tmp_path / "erasure.safetensors")._stored()
    for key, tensor in plain(ours._stored()).items():
        # The first steps of Adam enlarge the rounding of gradients near 0: one entry in a thousand may be further away.
        near = torch.isclose(stored[key].double(), tensor, **CLOSE)
        assert near.double().mean() >= 0.999 and torch.allclose(stored[key].double(), tensor, rtol=0.03, atol=3e-3), key
    assert np.abs(np.asarray(seen, int) - np.asarray(expected)).max() <= 2


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_runs_on_the_card_as_on_the_cpu(context, in_front_of, on_card, name):
    chosen = component("attack", name)
    ready = chosen.build(small(chosen, file=str(TESTS / "attacks" / "prompts.csv")), seed=1)
    shots = context.shots[:2]
    ours = ready.run(replace(context, shots=shots))
    with pretended_cuda():
        theirs = ready.run(replace(in_front_of(on_card), shots=shots))
    assert [s.prompt.text for s in ours.shots] == [s.prompt.text for s in theirs.shots]
    assert len(ours.painted) == len(theirs.painted)
    for word, embedding in plain(ours.tokens).items():
        torch.testing.assert_close(plain(theirs.tokens)[word], embedding, **CLOSE)
    for one, two in zip(ours.painted, theirs.painted, strict=True):
        assert np.abs(np.asarray(one.image, int) - np.asarray(two.image)).max() <= 2


#: A grid with a guard, membership, repeated captions, a paired figure and pictures of references; attacks are tested above.
GRID = ("budget=smoke", "protocol.steps=2", "concepts=church", "method=none,sld", "attack=none", "metrics=muse")
GRID += ("budget.reference_images=4", "budget.in_prompt=0", "budget.grid=0")


@pytest.mark.slow
def test_a_grid_on_the_card_has_the_cpus_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("overpaint.images.workbench.repeatable", lambda device: None)  # settings of the whole process

    def run(device):
        def on(plan, store):
            watcher = Told()
            outcome = run_here(plan, store, device, watcher)
            assert not watcher.reasons
            return outcome

        return on

    ours = figures(tmp_path / "cpu", run("cpu"), *GRID)
    with pretended_cuda():
        assert track("images").devices("auto") == track("images").devices("cuda") == ["cuda:0"]
        theirs = figures(tmp_path / "card", run("cuda:0"), *GRID)
        plan, store = planned_in(tmp_path / "card", *GRID)
        assert not plan.missing(store), "the device is not part of a key"
    both = theirs.merge(ours, on=["method", "metric"], suffixes=("", "_cpu"))
    assert len(both) == len(ours) == len(theirs)
    for column in ("value", "original"):  # an interval of an AUC of two images jumps with a rounding error
        own, other = (pd.to_numeric(both[name], errors="coerce") for name in (column, f"{column}_cpu"))
        away = both[~np.isclose(own, other, rtol=1e-3, atol=1e-3, equal_nan=True)]
        assert away.empty, away[["method", "metric", "n", column, f"{column}_cpu", "high", "high_cpu"]].to_string()
    hosts = [made["host"] for made in manifests(tmp_path / "card")]
    assert {(host["processor"], host["machine"]) for host in hosts} == {("cuda:0 (pretended)", "pretended")}


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_scores_on_a_card_can_be_repeated(monkeypatch, device):
    """A process that only scores has loaded no model, which also sets this."""
    asked = []
    monkeypatch.setattr("overpaint.images.workbench.repeatable", asked.append)
    bench = Workbench()
    for _ in range(2):
        bench.detector("oracle", component("detector", "oracle").defaults, device)
        bench.extractor("testbed_words", component("extractor", "testbed_words").defaults, device)
    assert asked == [device] * 2


def test_only_cards_have_settings_for_repeated_runs(monkeypatch):
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: pytest.fail("of a card"))
    repeatable("cpu")


def test_runs_on_a_card_can_be_repeated(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *given, **named: asked.append((given, named)))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    for name in ("allow_tf32", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # its value comes back after the test
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    repeatable("cuda:0")
    assert asked == [((True,), {"warn_only": True})]
    assert torch.backends.cudnn.allow_tf32 is False and torch.backends.cudnn.benchmark is False
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.utils.deterministic.fill_uninitialized_memory is False


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_card_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match=f"^engine.device={name} is not a device of this machine: .*CUDA"):
        track("images").devices(name)


@pytest.mark.parametrize("name", ["mps", "meta", "gpu", "cuda:", "cuda:x", "cpu:0", "", "CUDA"])
def test_other_devices_are_refused(name):
    with pytest.raises(UserError, match=r"^unknown engine.device .*\(allowed: auto, cpu, cuda, cuda:0\)"):
        track("images").devices(name)


def test_a_worker_sees_one_card():
    assert pinned("cpu", {}) == ("cpu", {}) and pinned("cuda", {}) == ("cuda", {})
    assert pinned("cuda:1", {}) == ("cuda:0", {"CUDA_VISIBLE_DEVICES": "1"})
    assert pinned("cuda:1", {"CUDA_VISIBLE_DEVICES": ""}) == ("cuda:0", {"CUDA_VISIBLE_DEVICES": "1"})
    given = {"CUDA_VISIBLE_DEVICES": "GPU-8932f937, MIG-3eb87630"}
    assert pinned("cuda:1", given) == ("cuda:0", {"CUDA_VISIBLE_DEVICES": "MIG-3eb87630"})


def test_a_worker_hides_the_other_cards_before_torch_is_imported(tmp_path):
    """The assignment of the second worker, in a process of its own: the variable is set, and torch is not there yet."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from overpaint.run.executor import Run\n"
        "from overpaint.run.worker import Assignment\n"
        f"whole = Assignment('images', Path({str(tmp_path)!r}), Run('r', {{}}), (), 'worker 2', 'cuda:1', 1)\n"
        "own = whole.alone_on_its_gpu()\n"
        "print(own.device, os.environ['CUDA_VISIBLE_DEVICES'], 'torch' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "CUDA_VISIBLE_DEVICES": "5,7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cuda:0", "7", "False"]


def test_workers_of_the_local_engine_are_pinned(monkeypatch):
    """The worker's main function hides the other cards before it makes its executor."""
    from overpaint.run.engines import local

    seen = []

    class Pipe:
        def send(self, message):
            seen.append(message)

    def executor(self, listener):
        seen.append((self.device, os.environ["CUDA_VISIBLE_DEVICES"]))
        raise UserError(f"engine.device={self.device} is broken")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr(Assignment, "executor", executor)
    monkeypatch.setattr(local, "_die_with_the_run", lambda: None)
    monkeypatch.setattr(local.signal, "signal", lambda *_: None)
    local.work(Assignment("images", Path(), Run("r", {}), (), "worker 2", "cuda:1", 1), Pipe())
    assert seen == [("cuda:0", "3"), ("unfit", "engine.device=cuda:1 is broken")], "the run's name of the card"


def test_a_card_that_an_error_has_broken_says_so(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    track("images").probe("cpu")
    track("images").probe("cuda:0")
    assert asked == ["cuda:0"]


FULL = {
    "of a card": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …"),
    "of the CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried …"
    ),
    "of Python": MemoryError(),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_too_little_memory_is_one_sentence_and_a_recorded_failure(monkeypatch, tmp_path, error):
    plan, store = planned_in(
        tmp_path, "budget=smoke", "protocol.steps=2", "method=none", "attack=none", "protocol.batch_size=8"
    )

    def full(*_):
        raise error

    monkeypatch.setattr(generate, "run", full)
    watcher = Told()
    outcome = run_here(plan, store, "cpu", watcher)
    said = (
        "cpu ran out of memory: set a smaller protocol.batch_size (now 8) or model.precision=bfloat16, "
        "and run the same command again; what is stored is kept"
    )
    assert set(watcher.reasons) == {said} == set(outcome.failed.values())
    assert len(store.failures()) == len(outcome.failed)
    monkeypatch.undo()
    assert not run_here(plan, store, "cpu", Told()).failed, "the same command continues"


def test_a_task_that_needs_the_memory_of_detectors_is_tried_again_without_them(monkeypatch, tmp_path):
    plan, store = planned_in(tmp_path, "budget=smoke", "protocol.steps=2", "method=none", "attack=none")
    generated, tries = generate.run, []

    def crowded(task, inputs, folder, bench):
        tries.append(task.key)
        if len(tries) == 1:
            bench.detector("oracle", component("detector", "oracle").defaults, "cpu")
        if bench._detectors:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generated(task, inputs, folder, bench)

    monkeypatch.setattr(generate, "run", crowded)
    assert not run_here(plan, store, "cpu", Told()).failed
    assert tries[0] == tries[1] and set(Counter(tries).values()) <= {1, 2}
    bench = Workbench()
    bench.detector("oracle", component("detector", "oracle").defaults, "cpu")
    assert not track("images").make_room(RuntimeError("other"), bench) and bench._detectors


def test_another_error_keeps_its_own_words():
    task = Task("generate", {}, runtime={"batch_size": 8})
    assert track("images").advice(RuntimeError("other"), task, "cpu") is None
