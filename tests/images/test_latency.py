"""Latency is measured in alternating pairs. Erasures that only change weights are not measured."""

import json
from contextlib import contextmanager

import pandas as pd
import pytest
import torch

from overpaint.images.stages import latency
from overpaint.metrics.cost import LatencyRatio
from overpaint.metrics.metric import Evidence
from overpaint.models.erasure import Erasure, Replacement
from overpaint.run.tasks import Task


class SlowModel:
    """A model whose images take one second of simulated time, two with an erasure attached, and more with every call."""

    def __init__(self, most):
        self.most = most
        self.edited, self.calls, self.now = True, [], 0.0

    def sample(self, prompts, seeds, *, batch_size, **how):
        assert len(prompts) == len(seeds) == latency.IMAGES and batch_size == min(latency.IMAGES, self.most)
        self.calls.append(self.edited)
        self.now += (2.0 if self.edited else 1.0) * 1.01 ** len(self.calls)


class Bench:
    def __init__(self, most):
        self.victim_model = SlowModel(most)

    @contextmanager
    def victim(self, config, runtime, erasure):
        yield self.victim_model

    @contextmanager
    def unedited(self):
        self.victim_model.edited = False
        yield self.victim_model
        self.victim_model.edited = True


def evidence(ratios):
    return Evidence([], pd.DataFrame(), pd.DataFrame(), latency=ratios)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    def run(erasure, batch_size=32):
        (tmp_path / "erasure").mkdir()
        erasure.save(tmp_path / "erasure" / "erasure.safetensors")
        protocol = {"scheduler": "ddim", "steps": 2, "guidance_scale": 4.0, "size": None}
        task = Task("latency", {"protocol": protocol, "precision": "float32"}, {}, {}, {"batch_size": batch_size})
        bench = Bench(batch_size)
        monkeypatch.setattr(latency.time, "perf_counter", lambda: bench.victim_model.now)
        latency.run(task, {"erasure": tmp_path / "erasure"}, tmp_path, bench)
        return json.loads((tmp_path / "latency.json").read_text())["ratios"], bench.victim_model.calls

    return run


@pytest.mark.parametrize("batch_size", [2, 32])
def test_a_guard_that_doubles_the_time_is_seen(measured, batch_size):
    """The number of images is the same for all batch sizes, because keys do not contain these."""
    ratios, calls = measured(Erasure("negative_prompt", "guard", settings={"text": "church"}), batch_size)
    # A machine that slows down does not bias a pair much.
    assert ratios == pytest.approx([2.0] * latency.PAIRS, rel=0.02)
    assert calls[1:] == [True, False, False, True] * (latency.PAIRS // 2)  # who goes first alternates
    figure = LatencyRatio().measure(evidence(ratios))
    assert figure.low <= figure.value <= figure.high and figure.n == latency.PAIRS


def test_changed_weights_are_not_measured(measured):
    ratios, calls = measured(Erasure("uce", changes={"w": Replacement(torch.ones(2))}))
    assert ratios == calls == []
    figure = LatencyRatio().measure(evidence([1.0]))
    assert (figure.value, figure.low, figure.high) == (1.0, None, None)


def test_the_unedited_model_has_no_ratio():
    assert LatencyRatio().measure(evidence(None)).why == "no erasure was made for these images"
