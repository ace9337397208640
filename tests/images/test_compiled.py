"""``engine.compile``: stage *generate* runs the network compiled, unless an adapter adds layers to it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from overpaint.images.stages import generate
from overpaint.images.workbench import Workbench
from overpaint.models.sources import fingerprint_model, resolve
from overpaint.run.tasks import Task

PROTOCOL = {"scheduler": "dpm", "steps": 4, "guidance_scale": 4.0, "size": None}
SHOTS = [["a picture of a church", 1, None], ["a picture of a cat", 2, None], ["a picture of a boat", 3, None]]


def generated(bench, folder, erasure=None, **more):
    """The pixels of a task's images."""
    config = {
        "model": fingerprint_model("testbed"),
        "precision": "float32",
        "protocol": PROTOCOL,
        "shots": SHOTS,
        **more,
    }
    runtime = {"path": resolve("testbed"), "device": "cpu", "batch_size": 4}
    folder.mkdir()
    generate.run(Task("generate", config, runtime=runtime), {"erasure": erasure} if erasure else {}, folder, bench)
    return np.stack([np.asarray(image, dtype=int) for image in generate.read_images(folder)])


def called(networks):
    """A stand-in for ``torch.compile`` that notes which networks it was given."""
    return lambda network: networks.append(network) or network


def test_only_a_task_that_asks_for_it_is_compiled(monkeypatch, tmp_path):
    networks = []
    monkeypatch.setattr(torch, "compile", called(networks))
    bench = Workbench()
    plain = generated(bench, tmp_path / "plain")
    assert networks == []
    assert abs(generated(bench, tmp_path / "compiled", compiled=1) - plain).max() <= 1  # the decoder has another layout
    assert networks == [
        bench.model(
            {"model": fingerprint_model("testbed"), "precision": "float32"}, {"path": resolve("testbed")}
        ).denoiser
    ]
    assert (generated(bench, tmp_path / "plain again") == plain).all()


@pytest.mark.parametrize(("kinds", "compiled"), [(["delta"], 1), (["guard"], 1), (["delta", "adapter"], 0)])
def test_the_layers_of_an_adapter_are_not_compiled(kinds, compiled, monkeypatch, tmp_path):
    networks = []
    monkeypatch.setattr(torch, "compile", called(networks))
    erasure = SimpleNamespace(
        sequence=[SimpleNamespace(kind=kind) for kind in kinds], attach=lambda model: lambda: None
    )
    monkeypatch.setattr("overpaint.images.workbench.load_erasure", lambda path: erasure)
    config = {"model": fingerprint_model("testbed"), "precision": "float32", "compiled": 1}
    runtime = {"path": resolve("testbed"), "device": "cpu"}
    with Workbench().victim(config, runtime, tmp_path) as victim:
        assert len(networks) == compiled and (victim._network is not None) == bool(compiled)
    assert victim._network is None


@pytest.mark.slow
def test_compiled_images_are_within_two_of_255(tmp_path):
    """With torch's own code generator, which needs a C++ compiler and a minute."""
    bench = Workbench()
    plain, compiled = generated(bench, tmp_path / "plain"), generated(bench, tmp_path / "compiled", compiled=1)
    assert abs(plain - compiled).max() <= 2
    assert (generated(bench, tmp_path / "again") == plain).all()
