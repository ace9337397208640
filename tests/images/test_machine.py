"""The kind of processor that manifests name. Between two kinds, the last digits of results can differ."""

import platform

import pytest
import torch

from overpaint.images import track
from overpaint.images.track import Images, cpu_model

INTEL = "processor\t: 0\nmodel\t\t: 207\nmodel name\t: Intel(R) Xeon(R) Processor\n"


@pytest.fixture(autouse=True)
def not_yet_read():
    cpu_model.cache_clear()
    yield
    cpu_model.cache_clear()


@pytest.mark.parametrize(
    "cpuinfo, model",
    [
        (INTEL, "Intel(R) Xeon(R) Processor (207)"),
        ("model name\t: a: b\n", "a: b"),
        ("CPU implementer\t: 0x41\n", platform.processor() or "unknown CPU"),
    ],
)
def test_a_cpu_is_named_by_its_instructions_and_its_model(tmp_path, monkeypatch, cpuinfo, model):
    monkeypatch.setattr(track, "CPUINFO", tmp_path / "cpuinfo")
    track.CPUINFO.write_text(cpuinfo)
    instructions = torch.backends.cpu.get_cpu_capability()
    assert Images().machine("cpu") == f"{platform.machine()} {instructions}, {model}"


def test_other_systems_name_the_cpu_as_python_does(tmp_path, monkeypatch):
    monkeypatch.setattr(track, "CPUINFO", tmp_path / "missing")
    assert cpu_model() == (platform.processor() or "unknown CPU")


def test_a_graphics_card_is_named_by_the_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the card of {device}")
    assert Images().machine("cuda:1") == "the card of cuda:1"
