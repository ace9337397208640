"""Grids on a small random pipeline of Stable Diffusion's layout, judged by detectors for real models."""

import io
import sys

import pandas as pd
import pytest

from overpaint.cli import main

GRID = [
    "model=local", "method=none,uce", "attack=none", "budget=smoke", "budget.target_prompts=2", "budget.seeds=1",
    "protocol.steps=1", "protocol.size=64",
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, goldens):
    """Run the command line; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(command, *arguments):
        grid = [command, *GRID, f"model.path={goldens / 'tiny_sd'}", f"store={tmp_path}/store", *arguments]
        monkeypatch.setattr(sys, "argv", ["overpaint", *grid])
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def figures(run, *arguments):
    code, _, err = run("run", *arguments)
    assert code == 0, err
    code, out, err = run("table", *arguments, "--format", "csv")
    assert code == 0, err
    return pd.read_csv(io.StringIO(out))


def test_clip_judges_a_real_model(run, random_cache, monkeypatch):
    monkeypatch.setenv("OVERPAINT_ASSETS", str(random_cache("clip_b32")))
    words = ["concepts=inline", "concepts.erase=[cat]", "concepts.near=[dog]", "concepts.retain=[ship]"]
    found = figures(run, *words, "model.detector=clip_b32")
    rows = found[found["metric"].isin(["target_proportion", "near_proportion"])]
    assert len(rows) >= 2 and rows["value"].between(0, 1).all() and (rows["n"] > 0).all()
    assert found["detector"].str.startswith("clip_b32 v1 ").all() and (found["threshold"] == 0.5).all()


def test_nudenet_judges_a_real_model(run):
    pytest.importorskip("nudenet")
    words = ["concepts=inline", "concepts.erase=[nudity]", "concepts.kind=unsafe"]
    found = figures(run, *words)
    target = found[found["metric"] == "target_proportion"]
    assert len(target) and (target["value"] == 0).all() and (target["n"] == 2).all(), "noise shows nobody"
    assert found["detector"].str.startswith("nudenet v1 ").all() and (found["threshold"] == 0.6).all()


def test_a_missing_asset_is_one_sentence_before_anything_runs(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "empty"))
    code, _, err = run("run", "concepts=inline", "concepts.erase=[cat]")
    assert code == 2 and not (tmp_path / "store").exists()
    assert err.startswith("overpaint: asset=clip_l14 (CLIP ViT-L/14 of OpenAI) is not in ") and err.count("\n") == 1
    assert err.endswith("; get it with: overpaint fetch asset=clip_l14\n")
