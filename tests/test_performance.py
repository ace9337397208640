"""docs/performance.md is what scripts/bench.py writes. Nothing is measured here."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", ROOT / "scripts" / "bench.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "bench", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


def test_the_page_is_what_the_script_writes(bench):
    text = bench.PAGE.read_text(encoding="utf-8")
    assert bench.text_of(bench.read(text)) == text


def test_every_figure_has_its_command_day_and_machine(bench):
    measured = bench.read(bench.PAGE.read_text(encoding="utf-8"))
    assert any(section.figures for section in measured.values())
    for section in measured.values():
        for figure in section.figures:
            assert 0 <= figure.low <= figure.ratio <= figure.high
        if section.figures:
            assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", section.day)
            assert re.search(r"\(\d+ cores\), Python 3\.\d+\.\d+, torch \d", section.machine)
            assert "/" not in section.machine  # no paths


def test_a_section_that_is_measured_alone_leaves_the_others_as_they_were(bench, monkeypatch, tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(bench.text_of({}), encoding="utf-8")
    assert page.read_text(encoding="utf-8").count("Not measured yet") == len(bench.SECTIONS)
    ratios = {"sharing": [3.0], "start-up": [0.5, 1e-5, 2.25]}
    for name, values in ratios.items():
        figures = [bench.Figure.of("this / that", values)]
        section = bench.Section(bench.SECTIONS[name].title, bench.SECTIONS[name].about, lambda found=figures: found)
        monkeypatch.setitem(bench.SECTIONS, name, section)
    monkeypatch.setattr(bench, "PAGE", page)
    for name, values in ratios.items():
        before = bench.read(page.read_text(encoding="utf-8"))
        bench.main([name])
        after = bench.read(page.read_text(encoding="utf-8"))
        (figure,) = after[name].figures
        assert figure == bench.Figure("this / that", sorted(values)[len(values) // 2], min(values), max(values))
        assert {other: after[other] for other in after if other != name} == {
            other: before[other] for other in before if other != name
        }


def test_an_unknown_section_is_refused(bench):
    with pytest.raises(SystemExit, match="unknown section nothing; there are generation"):
        bench.main(["nothing"])
