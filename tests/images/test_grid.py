"""A small grid on the testbed, from the command line to the table: resume, sharing, damage, batch size, thresholds."""

import errno
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from plans import plan as plan_of

from command_line import called as overpaint
from overpaint.images.stages.generate import read_images
from overpaint.models import load_model
from overpaint.run.store import Store

GRID = ["method=none,uce", "attack=none,random_prefix", "budget=smoke", "protocol.steps=4"]
COSTS = ["erase_seconds", "erase_peak_bytes", "latency_ratio"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with the finished grid. Tests work on copies."""
    root = tmp_path_factory.mktemp("grid") / "store"
    assert overpaint("run", *GRID, f"store={root}") == 0
    return root


@pytest.fixture
def store(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "store", symlinks=True)
    return Store(tmp_path / "store")


def manifests(store):
    return {p: p.stat().st_mtime_ns for p in store.root.glob("artefacts/*/*/manifest.json")}


def table(store, capsys, *arguments):
    capsys.readouterr()
    assert overpaint("table", *arguments, f"store={store.root}", "--format", "csv") == 0
    import io

    return pd.read_csv(io.StringIO(capsys.readouterr().out))


def test_table_has_the_promised_columns_and_all_cells(store, capsys):
    records = table(store, capsys)
    wanted = (
        "model concepts kind method attack protocol budget facet metric direction value low high n failed original "
        "difference p_value seconds"
    ).split()
    assert set(wanted) <= set(records.columns)
    assert set(records["method"]) == {"none", "uce"} and set(records["attack"]) == {"none", "random_prefix"}
    assert {"efficacy", "specificity", "robustness", "utility", "sustainability"} <= set(records["facet"])
    target = records[(records["metric"] == "target_proportion") & (records["method"] == "none")].iloc[0]
    assert target["low"] <= target["value"] <= target["high"] and target["n"] == 2


def test_second_run_does_nothing(store, capsys):
    before = manifests(store)
    assert overpaint("run", *GRID, f"store={store.root}") == 0
    assert manifests(store) == before
    assert "everything is stored" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        "metrics.threshold=0.9",
        "metrics.failure_limit=0.5",
        "~metrics.metrics.fid_reference",
    ],
)
def test_new_figures_of_old_scores_make_nothing_but_figures(store, change):
    """Images, attacks and erasures can be deleted after scoring: scores contain everything that measuring needs."""
    for stage in ("generate", "attack", "erase", "reference"):
        shutil.rmtree(store.root / "artefacts" / stage, ignore_errors=True)
    before = manifests(store)
    assert overpaint("run", *GRID, change, f"store={store.root}") == 0
    assert {p.parent.parent.name for p in manifests(store) if p not in before} == {"measure"}


def test_damaged_images_are_made_again_when_needed(store, capsys):
    capsys.readouterr()
    plan = plan_of(*GRID)
    made = next(t for t in plan.tasks.values() if t.stage == "generate" and "target" in t.label)
    score = next(t for t in plan.tasks.values() if t.stage == "score" and t.inputs["images"] == made.key)
    measure = next(t for _, t in plan.cells if score.key in t.inputs.values())
    whole = (store.path("generate", made.key) / "images.parquet").read_bytes()
    (store.path("generate", made.key) / "images.parquet").write_bytes(whole[:-1] + b"!")
    shutil.rmtree(store.path("score", score.key))
    shutil.rmtree(store.path("measure", measure.key))
    assert overpaint("run", *GRID, f"store={store.root}") == 0
    assert "images.parquet does not match its hash" in " ".join(capsys.readouterr().err.split())
    assert (store.path("generate", made.key) / "images.parquet").read_bytes() == whole


def test_damaged_figures_are_made_again_and_a_table_says_so(store, capsys):
    plan = plan_of(*GRID)
    places = [store.path("measure", task.key) / "records.parquet" for _, task in plan.cells]
    wholes = [place.read_bytes() for place in places]
    images = next(
        store.path("generate", t.key) / "images.parquet" for t in plan.tasks.values() if t.stage == "generate"
    )
    for place in (*places[:2], images):
        content = place.read_bytes()
        place.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    capsys.readouterr()
    assert overpaint("table", f"store={store.root}") == 2
    said = capsys.readouterr().err
    assert "records.parquet does not match its hash" in said and "Traceback" not in said
    assert overpaint("run", *GRID, f"store={store.root}") == 0
    assert [len(place.read_bytes()) for place in places] == [len(whole) for whole in wholes]
    assert overpaint("table", f"store={store.root}") == 0


def test_a_disk_that_is_full_before_the_contact_sheets_loses_no_table(store, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("overpaint.images.track.contact_sheets", full)
    capsys.readouterr()
    assert overpaint("run", *GRID, f"store={store.root}") == 0
    out, err = capsys.readouterr()
    assert "uce" in out and "no contact sheet: " in err and os.strerror(errno.ENOSPC) in err


def test_an_interrupted_run_ends_with_the_same_table(store, capsys, tmp_path, monkeypatch):
    """After interrupting and resuming, all figures except measured costs equal those of an uninterrupted run."""
    from overpaint.run import executor as running

    other, count, execute = Store(tmp_path / "other"), [0], running.execute

    def stopping(*arguments):
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        return execute(*arguments)

    monkeypatch.setattr(running, "execute", stopping)
    assert overpaint("run", *GRID, f"store={other.root}") == 130
    err = " ".join(capsys.readouterr().err.split())
    assert "interrupted: " in err and "run the same command to continue" in err
    done = manifests(other)
    assert len(done) == 4
    assert overpaint("run", *GRID, f"store={other.root}") == 0
    assert {p: t for p, t in manifests(other).items() if p in done} == done
    ours, theirs = table(other, capsys), table(store, capsys)
    key = ["concepts", "method", "attack", "metric"]
    ours, theirs = (t[~t["metric"].isin(COSTS)].sort_values(key).drop(columns="seconds") for t in (ours, theirs))
    pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True), check_exact=True)


def test_a_table_is_printed_in_every_format(store, capsys):
    for form, sign in (("md", "| facet |"), ("latex", "\\toprule"), ("json", '"metric"')):
        capsys.readouterr()
        assert overpaint("table", f"store={store.root}", "--format", form) == 0
        assert sign in capsys.readouterr().out
    json.loads(_out(capsys, store, "json"))


def _out(capsys, store, form):
    capsys.readouterr()
    overpaint("table", f"store={store.root}", "--format", form)
    return capsys.readouterr().out


def test_contact_sheet_is_a_picture(store):
    from PIL import Image

    overpaint("run", *GRID, f"store={store.root}")
    sheet = Image.open(store.root / "sheets" / "testbed-church.png")
    assert sheet.width > 500 and len(sheet.getcolors(maxcolors=1 << 20)) > 100


def test_images_are_readable_rows(store):
    plan = plan_of(*GRID)
    made = next(t for t in plan.tasks.values() if t.stage == "generate" and "target" in t.label)
    images = read_images(store.path("generate", made.key))
    assert [i.size for i in images] == [(64, 64)] * len(made.config["shots"])


def test_what_does_not_fit_of_a_prompt_is_cut_and_said(tmp_path, capsys):
    long = "a church" + " by the sea" * 15
    (tmp_path / "long.csv").write_text(f"prompt,evaluation_seed\n{long},3\n{long} and a car,3\na church,3\n")
    grid = ["method=none", "attack=none", "budget=smoke", "budget.target_prompts=3", "protocol.steps=2"]
    prompts = f"concepts.prompts.target={tmp_path / 'long.csv'}"
    assert overpaint("run", *grid, prompts, f"store={tmp_path / 'store'}") == 0
    assert "2 of 3 prompts were truncated to the model's 32 tokens" in " ".join(capsys.readouterr().err.split())
    folders = [path.parent for path in (tmp_path / "store").glob("artefacts/generate/*/manifest.json")]
    texts = {
        folder: [s[0] for s in json.loads((folder / "manifest.json").read_text())["config"]["shots"]]
        for folder in folders
    }
    (target,) = [folder for folder, shown in texts.items() if long in shown]
    cut, car, church = (np.asarray(image).astype(int) for image in read_images(target))
    # the car stood in the part that was cut; rows of one batch can round otherwise
    assert np.abs(cut - car).max() <= 2 < np.abs(cut - church).max()


def test_image_does_not_depend_on_batch_or_order():
    model = load_model("testbed")
    prompts = ["a church", "a cat", "mira", "a car in sketch style", "a fish", "a star", "a tree"] * 2
    seeds = list(range(len(prompts)))
    options = {"steps": 6, "guidance_scale": 4.0}
    base = np.stack([np.asarray(i, dtype=int) for i in model.sample(prompts, seeds, batch_size=1, **options)])
    for size in (7, 32):
        other = np.stack([np.asarray(i, dtype=int) for i in model.sample(prompts, seeds, batch_size=size, **options)])
        assert np.abs(base - other).max() <= 1
        assert (base != other).mean() < 0.001
    order = list(reversed(range(len(prompts))))
    turned = model.sample([prompts[i] for i in order], [seeds[i] for i in order], batch_size=5, **options)
    assert np.abs(base[order] - np.stack([np.asarray(i, dtype=int) for i in turned])).max() <= 1
