"""Scripts that no other test starts: each answers --help, and the page of costs is what its script renders."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["write_costs", "train_testbed", "bench_store", "take_screenshots"])
def test_a_script_answers_help(name, monkeypatch, capsys):
    script = loaded(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert not ended.value.code and "usage: " in capsys.readouterr().out


def test_the_costs_on_the_page_are_what_the_script_renders():
    """Its counts are those of the page; the work is known from the hours, to their last digit."""
    script = loaded("write_costs")
    (block,) = script.BLOCK.finditer(script.PAGE.read_text(encoding="utf-8"))
    shown = block.group().removeprefix(block[1]).removesuffix(block[2])
    costs = {}
    for line in shown.splitlines():
        if line.startswith("| `"):
            name, *cells = (cell.strip(" `").replace(",", "") for cell in line.strip("|").split("|"))
            *counts, hours = map(float, cells)
            costs[name] = dict(zip(("cells", "tasks", "erasures", "attacks", "images"), map(int, counts), strict=True))
            costs[name]["work"] = hours * 3600
    assert list(costs) == script.published()

    def fixed(text):
        """Without the date and the sum of hours, which is rounded once."""
        return re.sub(r"\d{4}-\d\d-\d\d|take [\d,]+", "", re.sub(r"\s+", " ", text))

    assert fixed(script.table(costs, 1.0)) == fixed(shown)
    total = float(re.search(r"take\s+([\d,]+)", shown)[1].replace(",", ""))
    assert total == pytest.approx(sum(c["work"] for c in costs.values()) / 3600, abs=0.5 * len(costs))
