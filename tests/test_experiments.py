"""The experiments of published tables: every one plans without the hub and without its assets, and three run end to end."""

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from overpaint.cli import main
from overpaint.grid.cells import ROLE_KEYS, cell_from, merged
from overpaint.grid.composition import compose_cells
from overpaint.grid.registry import component, components, look_in
from overpaint.grid.roles import shortfalls
from overpaint.images.planner import make_plan

#: Experiments on the drawn world.
OURS = {"demo", "erasers", "merging", "negative_window", "redteam", "scaling", "search_vs_chance", "smoke", "validity"}
PUBLISHED = sorted(set(components("experiment")) - OURS)


@pytest.fixture
def searchpath():
    """The folder of a detector that needs no weights."""
    yield f"hydra.searchpath=[file://{Path(__file__).parent / 'stand_ins'}]"
    look_in()


@pytest.fixture
def overpaint(monkeypatch, tmp_path, goldens, searchpath, capsys):
    """``overpaint("plan", …)`` on a random model of SD 1's layout, offline: the exit code, stdout and stderr."""
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "no assets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = ["model=local", f"model.path={goldens / 'tiny_sd'}", f"store={tmp_path / 'store'}", searchpath]

    def run(command, *overrides):
        monkeypatch.setattr("sys.argv", ["overpaint", command, *overrides, *model])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, *(" ".join(text.split()) for text in capsys.readouterr())

    return run


def test_every_published_table_has_its_costs():
    page = (Path(__file__).resolve().parents[1] / "docs" / "experiments.md").read_text(encoding="utf-8")
    costs = re.search("<!-- costs -->(.*?)<!-- end -->", page, re.S)[1]
    assert re.findall(r"^\| `(\w+)`", costs, re.M) == PUBLISHED
    assert all(int(count.replace(",", "")) > 0 for count in re.findall(r"\| ([\d,]+) \| [\d,.]+ \|$", costs, re.M))


def cells_of(name, searchpath, goldens):
    composed = compose_cells([f"experiment={name}", "model=local", f"model.path={goldens / 'tiny_sd'}", searchpath])
    return merged(cell_from(c.config, c.explicit) for c in composed)[0]


def images(cells, most=None):
    """How many images the first concepts' first victim needs under every attack, with at most so many prompts of a role."""
    first = next(cell.method for cell in cells if cell.method.name != "none")
    chosen = [cell for cell in cells if cell.method == first and cell.concepts.request == cells[0].concepts.request]
    if most is not None:
        budget = cells[0].budget
        asked = {key: getattr(budget, key) for key in ROLE_KEYS.values()}
        budget = replace(budget, **{key: most if n is None else min(n, most) for key, n in asked.items()})
        chosen = [replace(cell, budget=budget) for cell in chosen]
    return sum(task.amount for task in make_plan(chosen).opened().tasks.values() if task.stage == "generate")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_experiment_plans(name, searchpath, goldens, monkeypatch, tmp_path):
    """All its points are checked; its first victim is planned with every attack, with a few prompts."""
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "no assets"))
    cells = cells_of(name, searchpath, goldens)
    assert all("is not used" not in said for said in shortfalls(cells[0]))
    assert images(cells, most=10) > 0
    given = {key for key in cells[0].given if key.split(".")[0] in ("budget", "model")}
    assert "model.detector" in given, "the table's detector"


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_experiment_plans_at_the_size_of_its_table(name, searchpath, goldens, monkeypatch, tmp_path):
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "no assets"))
    cells = cells_of(name, searchpath, goldens)
    assert images(cells) >= images(cells, most=10)


def test_experiments_use_official_code_where_a_method_has_it():
    for name in PUBLISHED:
        axes = yaml.safe_load(components("experiment")[name].read_text(encoding="utf-8"))["hydra"]["sweeper"]["params"]
        for method in axes["method"].split(","):
            if component("method", method).defaults.get("compat") == "intended":
                assert axes[f"{method}.compat"] == "official", (name, method)


def test_a_plan_tells_tasks_images_gpu_hours_and_missing_assets(overpaint):
    code, out, _ = overpaint("plan", "experiment=uda_nudity", "method=none,uce", "attack=none")
    assert code == 0
    assert f"{2 * (142 + 9969)} images" in out  # the prompts and COCO's captions, for two victims
    assert "about 5.6 GPU hours for the images, assuming images_per_second=1 at 512² pixels and 50 steps" in out
    assert "target prompts: nudity.csv is not on this machine; its 142 rows are expected" in out
    assert "missing: asset=uda_prompts" in out and "missing: asset=coco_10k" in out
    _, faster, _ = overpaint("plan", "experiment=uda_nudity", "method=none,uce", "attack=none", "images_per_second=2")
    assert "about 2.8 GPU hours" in faster
    code, _, err = overpaint("plan", "experiment=uda_nudity", "method=none", "images_per_second=0")
    assert code == 2 and "images_per_second" in err


def test_gpu_hours_count_the_pixels_and_steps_of_the_images(overpaint, tmp_path):
    """1,800 images in half of 50 steps at 1,000 seconds for an image of 512²: 250 hours."""
    rows = {size: "".join(f"a cup {n},{size}\n" for n in range(900)) for size in ("512,512", "256,384", ",")}
    for name, sizes in {"given": ("512,512", "256,384"), "own": (",", ",")}.items():
        (tmp_path / f"{name}.csv").write_text("prompt,width,height\n" + "".join(rows[size] for size in sizes))
    grid = ["concepts=nudity", "method=none", "attack=none", "protocol.steps=25", "images_per_second=0.001"]
    grid += ["budget=smoke", "budget.target_prompts=null", "budget.near_prompts=0", "budget.grid=0"]
    grid += ["budget.in_prompt=0", "budget.utility_prompts=0", "model.detector=by_pixels"]

    def hours(name, *given):
        lists = f"concepts.prompts={{target: '{tmp_path / name}.csv'}}"
        _, out, _ = overpaint("plan", *grid, lists, *given)
        return float(re.search(r"about ([\d.,]+) GPU hours", out)[1])

    assert hours("given") == round(125 + 125 * 0.375, 1)
    assert hours("given", "protocol.size=512") == 250
    assert hours("own") == round(250 * (32 / 512) ** 2, 1), "the model's own images have 32² pixels"


def test_a_run_without_its_assets_is_refused_before_anything_is_written(overpaint, tmp_path):
    code, _, err = overpaint("run", "experiment=uda_nudity", "method=none", "attack=none")
    assert code == 2 and "asset=uda_prompts" in err
    assert not (tmp_path / "store").exists()


def test_a_budget_and_a_method_chosen_by_hand_replace_an_experiments(searchpath, goldens):
    given = ["experiment=mace_objects", "model=local", f"model.path={goldens / 'tiny_sd'}", searchpath]
    cells = [cell_from(c.config, c.explicit) for c in compose_cells([*given, "method=uce", "budget=smoke"])]
    assert {c.budget.seeds for c in cells} == {1} and {c.budget.target_prompts for c in cells} == {2}
    assert {c.method.label for c in cells} == {"uce"} and {c.model.detector for c in cells} == {"clip_b32"}
    official = [cell_from(c.config, c.explicit) for c in compose_cells([*given, "method=esd"])]
    assert {c.method.label for c in official} == {"esd compat=official"}


# --- end to end ----------------------------------------------------------------------------------------------------

#: The smallest size, on a model whose images have 32 pixels.
SMALL = [
    "budget=smoke",
    "protocol.steps=2",
    "protocol.size=32",
    "model.detector=by_pixels",
    "method=none,uce",
    "attack=none",
]
I2P = (
    ",prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,prompt_toxicity,"
    "lexica_url,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,sd_model,case_number\n"
    '0,"a figure,\nby a window",sexual,1,50.0,60.0,50,20,0.1,url,4080709695,7,512,512,sd,3\n'
    '1,a figure in the sun,"sexual, shocking",0,50.0,40.0,50,20,0.1,url,12,12.5,512,384,sd,4\n'
    "2,a figure in the rain,sexual,0,50.0,70.0,50,20,0.1,url,13,7,512,512,sd,5\n"
)
COCO = "case_number,source,prompt,evaluation_seed,coco_id\n0,coco-30k,A cup on a table.,41337,203564\n1,coco-30k,A dog.,5,7\n"
IMAGENETTE = "case_number,prompt,class,evaluation_seed\r\n" + "".join(
    f"{n},an image of a {name},{name},{seed}\r\n"
    for n, (name, seed) in enumerate([("tench", 1174), ("tench", 6478), ("church", 7)])
)


@pytest.fixture
def figures(overpaint, tmp_path, capsys, monkeypatch):
    """``figures("experiment=…")``: the records of a run of two victims, by victim and metric."""

    def run(*overrides):
        code, _, err = overpaint("run", *SMALL, *overrides)
        assert code == 0, err
        monkeypatch.setattr("sys.argv", ["overpaint", "table", "--format", "csv", f"store={tmp_path / 'store'}"])
        main()
        records = pd.read_csv(io.StringIO(capsys.readouterr().out))
        return records.set_index(["method", "metric"]), err

    return run


def write(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8", newline="")
    return {name: os.fspath(folder / f"{name}.csv") for name in texts}


def test_nudity_runs_end_to_end(figures, tmp_path):
    files = write(tmp_path, i2p=I2P, coco=COCO)
    chosen = f"{{target: {{file: '{files['i2p']}', where: {{nudity_percentage: '> 50'}}}}, utility: '{files['coco']}'}}"
    records, said = figures("experiment=esd_nudity", "concepts=nudity", f"concepts.prompts={chosen}", "metrics=facets")
    for method in ("none", "uce"):
        assert records.loc[(method, "target_proportion"), "n"] == 2
        assert 0 <= records.loc[(method, "target_proportion"), "value"] <= 1
    assert records.loc[("uce", "ssim_original"), "value"] != 1
    assert (
        "coco.csv" not in said and "concepts=nudity has 2 utility prompts, enough for 2" in said
    )  # short, but not cut


def test_objects_run_end_to_end(figures, tmp_path):
    files = write(tmp_path, p=IMAGENETTE, coco=COCO)
    chosen = f"{{target: '{files['p']}', near: '{files['p']}', utility: '{files['coco']}'}}"
    records, said = figures(
        "experiment=esd_objects",
        "concepts=imagenette",
        "concepts.erase=[tench]",
        f"concepts.prompts={chosen}",
        "metrics=facets",
    )
    assert "2 of 3 rows of p.csv are about a concept to erase" in said
    for method in ("none", "uce"):
        assert records.loc[(method, "target_proportion"), "n"] == 2
        assert records.loc[(method, "neighbour_retention"), "n"] == 1


def test_unlearncanvas_runs_end_to_end(figures):
    records, _ = figures(
        "experiment=unlearncanvas_styles", "concepts.erase=[Van Gogh]", "budget.grid=1", "metrics=facets"
    )
    for method in (
        "none",
        "uce",
    ):  # one other object and style: 1 erased style × 1 object × 5 seeds, and one other style
        assert records.loc[(method, "ua"), "n"] == 5
        assert records.loc[(method, "ira"), "n"] == 5
        assert records.loc[(method, "cra"), "n"] == 10
