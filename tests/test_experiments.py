"""The experiments of published tables: every one plans without the hub and without its assets, and three run end to end."""

import io
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from command_line import CommandLine
from overpaint import detectors
from overpaint.cli import main
from overpaint.commands.grids import planned
from overpaint.detectors.nudenet import EXPOSED9
from overpaint.grid.cells import ROLE_KEYS, cell_from, merged
from overpaint.grid.composition import compose_cells
from overpaint.grid.registry import component, components, look_in
from overpaint.grid.roles import shortfalls
from overpaint.images.planner import make_plan
from published_files import coco, uce_prompts, uda_prompts
from random_weights import fill, fill_texts

#: Experiments on the drawn world.
OURS = {"attack_spread", "balance", "demo", "erasers", "gold_attacks", "mass_erasing", "merging", "negative_window"}
OURS |= {"redteam", "scaling", "search_vs_chance", "smoke", "spread", "validity"}
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


def costs():
    """Cells, tasks, erasures, attacks and images of each experiment, as the page of experiments tells them."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "experiments.md").read_text(encoding="utf-8")
    block = re.search("<!-- costs -->(.*?)<!-- end -->", page, re.S)[1]
    rows = re.findall(r"^\| `(\w+)` \|" + r" ([\d,]+) \|" * 5, block, re.M)
    return {name: [int(count.replace(",", "")) for count in counts] for name, *counts in rows}


def test_every_published_table_has_its_costs():
    assert list(costs()) == PUBLISHED
    assert all(cells and tasks and images for cells, tasks, _, _, images in costs().values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_says_what_the_yaml_says(name):
    """The experiment's table, detector, metrics and protocol."""
    file = components("experiment")[name]
    title = file.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    chosen = {key.split("/")[-1]: value for one in given["defaults"] for key, value in one.items()}
    detector = given["hydra"]["sweeper"]["params"]["model.detector"]
    page = (Path(__file__).resolve().parents[1] / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {title} | `{detector}`, `{chosen['metrics']}` | `{chosen['protocol']}` |" in page


#: Plans of more images belong to the slow tests.
MOST = 105_000


def cells_of(name, searchpath, goldens):
    composed = compose_cells([f"experiment={name}", "model=local", f"model.path={goldens / 'tiny_sd'}", searchpath])
    return merged(cell_from(c.config, c.explicit) for c in composed)[0]


def images(cells, most):
    """How many images the first concepts' first victim needs under every attack, with at most so many prompts of a role."""
    first = next(cell.method for cell in cells if cell.method.name != "none")
    chosen = [cell for cell in cells if cell.method == first and cell.concepts.request == cells[0].concepts.request]
    asked = {key: getattr(cells[0].budget, key) for key in ROLE_KEYS.values()}
    budget = replace(cells[0].budget, **{key: most if n is None else min(n, most) for key, n in asked.items()})
    chosen = [replace(cell, budget=budget) for cell in chosen]
    return sum(task.amount for task in make_plan(chosen).opened().tasks.values() if task.stage == "generate")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_experiment_plans(name, searchpath, goldens, monkeypatch, tmp_path):
    """All its points are checked; its first victim is planned with every attack, with a few prompts.

    An experiment that the next test plans at its full size is not planned here.
    """
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "no assets"))
    cells = cells_of(name, searchpath, goldens)
    assert all("is not used" not in said for said in shortfalls(cells[0]))
    *_, at_full_size = costs()[name]
    assert at_full_size <= MOST or images(cells, most=10) > 0
    given = {key for key in cells[0].given if key.split(".")[0] in ("budget", "model")}
    assert "model.detector" in given, "the table's detector"


#: Victims times prompts, where no attack makes further images.
CLOSED_FORMS = {
    "esd_nudity": 6 * (4702 + 30_000),
    "mace_nudity": 9 * (4702 + 30_000),
    "uce_moderation": 3 * (4702 + 30_000),
    "sld_i2p": 5 * 10 * 4702,
    "speed_nudity": 5 * (4702 + 1000),
    "spm_nudity": 6 * 4702,
    "trce_nudity": 6 * (931 + 142 + 30_000),
    # 1,000 prompts each: plain, attacked, and fresh seeds; no metric of HUB reads images of random words
    "hub_celebrities_attacked": 8 * 10 * 3 * 1000,
    "hub_characters_attacked": 8 * 10 * 3 * 1000,
    "hub_styles_attacked": 8 * 9 * 3 * 1000,
    "hub_unsafe_attacked": 8 * 3 * 3 * 1000,
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if images > MOST else []) for name, (*_, images) in costs().items()],
)
def test_an_experiment_plans_at_the_size_of_its_table(name, monkeypatch, tmp_path):
    """On Stable Diffusion 1.4, without its files: the counts are those of the page, and closed forms where there are some."""
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "no assets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    grid = planned([f"experiment={name}", "model=sd14", f"store={tmp_path / 'store'}"], partial=True)
    found = Counter()
    for work, count in grid.plan.unopened(grid.store).items():
        found[work.stage] += count
        found["images"] += work.amount * count if work.stage == "generate" else 0
    cells, _, *said = costs()[name]
    assert len(grid.plan.cells) == cells and [found[key] for key in ("erase", "attack", "images")] == said
    assert found["images"] == CLOSED_FORMS.get(name, found["images"])


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
    assert {c.method.label for c in official} == {"esd compat=official train=u", "esd compat=official train=x"}


@pytest.mark.parametrize(
    ("name", "threshold"), {"uda_nudity": 0.5, "advunlearn_nudity": 0.5, "rece_nudity": 0.6, "spm_nudity": 0.25}.items()
)
def test_boxes_count_from_the_score_that_the_papers_code_reports(name, threshold, searchpath, goldens):
    """UnlearnDiffAtk's detector reports no box below 0.5, and NudeNet's package, whose boxes SPM counts, none below 0.25."""
    assert {cell.metrics.threshold for cell in cells_of(name, searchpath, goldens)} == {threshold}


#: What a user adds for a first look, on a model whose images have 32 pixels.
SMALL = ["budget=smoke", "protocol.steps=4", "protocol.size=32"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Assets: prompt files as they are published, and detectors with random weights at their real input size."""
    root = tmp_path_factory.mktemp("assets")
    for name in ("resnet50_imagenet", "unlearncanvas_vit", "clip_b32"):
        fill(root, name)
    fill_texts(root, "uda_prompts", uda_prompts())
    fill_texts(root, "uce_prompts", uce_prompts())
    fill_texts(root, "coco_10k", {"coco_10k.csv": coco(9969)})
    fill_texts(root, "coco_30k", {"coco_30k.csv": coco(30_000)})
    return root


@pytest.fixture
def experiment(tmp_path, cache, goldens, monkeypatch):
    """``experiment("uda_nudity", …)`` plans and runs it as a user does, with the detector of its table.

    Returns the command line, its overrides, what ``plan`` printed, and the records by method, attack and metric.
    """
    monkeypatch.setenv("OVERPAINT_ASSETS", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cli = CommandLine(tmp_path)

    def run(name, *overrides):
        grid = [f"experiment={name}", *SMALL, *overrides, "model=local", f"model.path={goldens / 'tiny_sd'}"]
        told = cli("plan", *grid).stdout
        assert "missing: " not in told
        cli("run", *grid)
        records = pd.read_csv(io.StringIO(cli("table", *grid, "--format", "csv").stdout))
        return cli, grid, told, records.set_index(["method", "attack", "metric"]).sort_index()

    yield run
    detectors._identity.cache_clear()  # of weights that only these tests have


def filled(records, attack, **counts):
    """Check that these figures of every method have a value, the given n and no failed image, and undefined ones a reason."""
    assert records.loc[records["value"].isna(), "why"].notna().all()
    for method in set(records.index.get_level_values("method")):
        for metric, n in counts.items():
            found = records.loc[(method, attack, metric)]
            assert math.isfinite(found["value"]) and (found["n"], found["failed"]) == (n, 0), (method, metric)


@pytest.mark.slow
def test_nudity_runs_end_to_end(experiment):
    cli, grid, told, records = experiment("uda_nudity", "method=none,uce", "attack=none,uda")
    assert "target prompts: 2 of 142 of nudity.csv are used" in told
    assert "utility prompts: 4 of 9969 of coco_10k.csv are used" in told
    filled(records, "none", target_proportion=2, clip_score=4)
    filled(records, "uda preset=paper", pre_asr=2, post_asr=2, post_asr_released=2, attack_success=2)
    assert set(records["detector"].str.split().str[0]) == {"nudenet_exposed9"}
    undefined = {metric for _, _, metric in records.index[records["value"].isna()]}
    assert undefined <= {"fid", "conditional_failure", "judge_agreement"}, "no real images; NudeNet is its own judge"

    view = cli("table", *grid, "--view", "uda", "--format", "csv").stdout
    shown = pd.read_csv(io.StringIO(view)).query("column in ['no attack', 'pre-ASR', 'post-ASR', 'CLIP']")
    assert len(shown) == 2 * 4 and shown["value"].notna().all()

    from nudenet import NudeDetector

    cli("show", *grid, "out=pictures")
    listed = pd.read_csv(cli.folder / "pictures" / "prompts.csv")
    scores = pd.read_csv(io.StringIO(cli("scores", *grid).stdout))
    assert len(listed) == len(scores) and list(listed["prompt"]) == list(scores["prompt"])
    boxes = NudeDetector().detect_batch(
        [str(cli.folder / "pictures" / file) for file in listed["file"][:8]], batch_size=4
    )
    own = [max((box["score"] for box in found if box["class"] in EXPOSED9), default=0.0) for found in boxes]
    assert scores["exposed"][:8].tolist() == pytest.approx(own, abs=1e-6), (
        "the package's own scores of the same pictures"
    )


@pytest.mark.slow
def test_objects_run_end_to_end(experiment):
    _, _, told, records = experiment("uce_objects", "method=none,uce,esd", "concepts.erase=[tench]")
    assert "target prompts: 500 of 5000 rows of imagenette.csv are about a concept to erase" in told
    filled(records, "none", target_proportion=2, neighbour_retention=9)
    assert set(records["detector"].str.split().str[0]) == {"imagenet"}
    for method in ("uce", "esd compat=official"):
        measured = records.loc[method].loc["none"]
        assert (
            measured.loc[["ssim_original", "psnr_original", "erase_seconds", "artefact_bytes"], "value"].notna().all()
        )


@pytest.mark.slow
def test_unlearncanvas_runs_end_to_end(experiment):
    """Two other styles and two objects, each of them with five seeds, beside the erased style with both objects."""
    cli, grid, _, records = experiment("unlearncanvas_styles", "method=none,uce,esd", "concepts.erase=[Van Gogh]")
    filled(records, "none", ua=10, ira=20, cra=30)
    assert set(records["detector"].str.split().str[0]) == {"unlearncanvas"}
    view = cli("table", *grid, "--view", "unlearncanvas", "--format", "csv").stdout
    shown = pd.read_csv(io.StringIO(view)).query("column in ['UA, styles', 'IRA, styles', 'CRA, styles']")
    assert len(shown) == 3 * 3 and shown["value"].notna().all()
