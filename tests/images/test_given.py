"""Pictures that other code made: the figures of a grid's own pictures come back, and bad lists are refused."""

import csv
import io
import json
import shutil

import pandas as pd
import pytest
from PIL import Image

from command_line import CommandLine
from overpaint.errors import UserError
from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.images.given import given_plan, named_pictures, read_pictures
from overpaint.images.stages import given
from overpaint.images.stages.extract import read_prompts

GRID = ["method=none,uce", "concepts=church", "budget=smoke", "attack=none"]
#: Figures of cost are of an erasure, which a folder of pictures does not have.
COSTS = {"erase_seconds", "erase_peak_bytes", "artefact_bytes", "latency_ratio"}


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    return CommandLine(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def run(cli):
    """A small grid with its pictures written to ``pictures``."""
    cli("run", *GRID)
    cli("show", *GRID, "out=pictures")
    return cli


def figures(text):
    return pd.read_csv(io.StringIO(text)).set_index(["method", "metric"])


SCORE = ["images=pictures", "prompts=pictures/prompts.csv", "model=testbed", "concepts=church", "budget=smoke"]


def test_pictures_of_the_testbed_have_the_figures_of_their_grid(run):
    """To the last digit, except distances of features, which a network computes in batches of other sizes."""
    run("score", *SCORE, "store=other")
    own = figures(run("table", *GRID, "--format", "csv").stdout)
    theirs = figures(run("table", "store=other", "--format", "csv").stdout)
    assert set(theirs.index) == set(own.index)
    for key, row in theirs.iterrows():
        if key[1] in COSTS:
            assert pd.isna(row["value"]) and row["why"] == "no erasure was made for these images"
            continue
        columns = ["value", "low", "high", "n", "failed", "original", "difference", "p_value", "why"]
        of_features = key[1].startswith(("fid_", "kid_"))
        pd.testing.assert_series_equal(row[columns], own.loc[key, columns], check_exact=not of_features, rtol=1e-4)
    assert set(theirs["model"]) == {"pictures in pictures"} and set(theirs["protocol"]) == {"as given"}


def test_scores_are_printed_for_every_image(run):
    found = pd.read_csv(io.StringIO(run("scores", *GRID).stdout))
    listed = pd.read_csv(run.folder / "pictures" / "prompts.csv")
    assert len(found) == len(listed) and list(found["prompt"]) == list(listed["prompt"])
    assert found.loc[(found["method"] == "none") & (found["role"] == "target"), "church"].min() > 0.5
    assert not found["failed"].any()
    run("scores", *GRID, "out=scores.csv")
    assert len(pd.read_csv(run.folder / "scores.csv")) == len(found)


def test_a_sheet_has_one_row_a_method_and_one_column_a_prompt(run):
    run("show", *GRID, "out=all.png", "role=target", "prompt=church")
    run("show", *GRID, "out=one.png", "role=target")
    whole, one = (Image.open(run.folder / name).size for name in ("all.png", "one.png"))
    assert whole[1] == one[1] and whole[0] - one[0] == 134  # one more column
    told = run("show", *GRID, "out=wide.png", "prompt=a").stderr
    assert "note: the sheet has the first 12 of 16 columns; out=DIR writes all images" in told
    told = run("show", *GRID, "prompt=submarine", code=2).stderr
    assert "none of the 32 images of this grid has prompt=submarine" in told


def test_images_of_two_protocols_and_translations_have_rows_and_names_of_their_own(cli):
    """`score` reads what `show` wrote: no two pictures have one method, prompt id and seed."""
    (cli.folder / "list.csv").write_text("id,spanish,french\n1,una iglesia,une église\n2,otra iglesia,autre église\n")
    given = ["concepts.prompts.multilingual=list.csv", "concepts=church", "budget=smoke", "budget.target_prompts=4"]
    grid = [*given, "method=none", "attack=multilingual", "protocol.steps=2,3", "store=two"]
    cli("run", *grid)
    cli("show", *grid, "out=two.png", "role=attacked", "prompt=iglesia")
    cli("show", *grid, "out=sheet.png", "role=attacked", "prompt=una")
    cli("show", *grid, "out=three")
    listed = pd.read_csv(cli.folder / "three" / "prompts.csv")
    attacked = listed[listed["role"] == "attacked"]
    assert len(attacked) == 8 and not attacked.duplicated(["method", "id", "seed"]).any()
    assert attacked["method"].nunique() == 2 and all("protocol" in method for method in attacked["method"])
    assert Image.open(cli.folder / "two.png").size[0] > Image.open(cli.folder / "sheet.png").size[0]
    cli("score", "images=three", "prompts=three/prompts.csv", "model=testbed", *given, "store=scored")


def test_images_that_are_gone_or_damaged_are_left_out_and_made_again(run):
    grid = [*GRID, "store=gone"]
    run("run", *grid)
    run("show", *grid, "role=target", "out=whole.png")
    whole = Image.open(run.folder / "whole.png").tobytes()
    stored = run.folder / "gone" / "artefacts" / "generate"
    by_uce = [place for place in stored.iterdir() if json.loads((place / "manifest.json").read_text())["inputs"]]
    damaged, *others = by_uce
    for place in others:
        shutil.rmtree(place)
    (damaged / "images.parquet").write_bytes(b"no images")
    assert "0 tasks done" in run("run", *grid).stderr, "no figure needs them"
    advice = f"To make them again: overpaint run --images {' '.join(grid)}"
    told = run("show", *grid, "role=target", "out=part.png", "--overwrite").stderr
    assert "note: gone or damaged, and left out: 1 of 2 images (uce)" in told and advice in told
    told = run("show", *grid, "out=part").stderr
    assert "left out: 16 of 32 images (uce)" in told and "part: 16 images" in told
    assert set(pd.read_csv(run.folder / "part" / "prompts.csv")["method"]) == {"none"}
    told = run("show", "method=uce", *grid[1:], "out=none.png", code=2).stderr
    assert "gone or damaged: 1 of 1 image (uce)" in told and not (run.folder / "none.png").exists()
    assert f"{len(by_uce)} tasks done" in run("run", "--images", *grid).stderr
    run("show", *grid, "role=target", "out=again.png")
    assert Image.open(run.folder / "again.png").tobytes() == whole
    assert "0 tasks done" in run("run", "--images", *grid).stderr


@pytest.mark.parametrize(
    "command", [["show", "--overwrite", "out=part.png"], ["scores"], ["table"]], ids=lambda c: c[0]
)
def test_cells_that_are_not_stored_are_named(run, command):
    wider = ["method=none,uce,esd", *GRID[1:]]
    told = run(command[0], *wider, *command[1:]).stderr
    assert (
        "1 of 3 cells lack" in told and "church / esd / none. To make them: overpaint run method=none,uce,esd" in told
    )
    assert "lack" not in run(command[0], *GRID, *command[1:]).stderr


def test_pictures_are_read_from_the_names_of_files(run):
    listed = pd.read_csv(run.folder / "pictures" / "prompts.csv").query("role == 'grid' and method == 'uce'")
    (run.folder / "canvas").mkdir()
    for row in listed.itertuples():
        shutil.copy(
            run.folder / "pictures" / row.file,
            run.folder / "canvas" / f"{row.variant}_{row.concept}_seed{row.seed}.png",
        )
    names = "names={variant}_{concept}_seed{seed}.png"
    run("score", "images=canvas", names, "role=grid", "model=testbed", "concepts=church", "store=canvas-store")
    theirs = figures(run("table", "store=canvas-store", "--format", "csv").stdout)
    own = figures(run("table", *GRID, "--format", "csv").stdout)
    for metric in ("ua", "ira", "cra"):
        assert theirs.loc[("canvas", metric), "value"] == own.loc[("uce", metric), "value"]
    told = run("score", "images=canvas", "names={style}.png", "model=testbed", "concepts=church", code=2).stderr
    assert "unknown part 'style'" in told
    told = run("score", "images=canvas", "names={concept}.jpg", "model=testbed", "concepts=church", code=2).stderr
    assert "matches no file" in told


def test_pictures_of_an_attack_are_targets_of_the_method_under_attack(run):
    attacked = ["method=none,uce", "concepts=church", "budget=smoke", "attack=random_prefix"]
    run("run", *attacked)
    run("show", *attacked, "out=attacked")
    arguments = [a.replace("pictures", "attacked") for a in SCORE]
    run("score", *arguments, "store=attacked-store")
    theirs = figures(run("table", "store=attacked-store", "--format", "csv").stdout)
    own = figures(run("table", *attacked, "--format", "csv").stdout)
    for method in ("none", "uce"):
        found = theirs.loc[(f"{method} under random_prefix", "target_proportion")]
        assert found["value"] == own.loc[(method, "attack_success"), "value"]
        assert found["n"] == own.loc[(method, "attack_success"), "n"]


def test_a_file_that_is_no_picture_is_a_failure(run):
    shutil.copytree(run.folder / "pictures", run.folder / "damaged")
    listed = pd.read_csv(run.folder / "damaged" / "prompts.csv")
    target = listed.query("role == 'target' and method == 'uce'").file.iloc[0]
    (run.folder / "damaged" / target).write_text("not a picture")
    arguments = [a.replace("pictures", "damaged") for a in SCORE]
    done = run("score", *arguments, "store=damaged-store", "metrics.failure_limit=0.9")
    assert "1 of 16 files are not readable pictures" in done.stderr
    theirs = figures(run("table", "store=damaged-store", "--format", "csv").stdout)
    assert theirs.loc[("uce", "target_proportion"), "failed"] == 1


def listing(folder, *rows, header=("file", "prompt")):
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_a_prompt_may_have_several_lines(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    listing(tmp_path, ("a.png", "a church\nby the sea"), ("a.png", "a church"))
    (composed,) = compose_cells(["concepts=church"])
    found, _ = read_pictures(tmp_path, tmp_path / "list.csv", cell_from(composed.config, composed.explicit).concepts)
    assert [picture.shot.prompt.text for picture in found] == ["a church\nby the sea", "a church"]


@pytest.fixture
def planned(tmp_path):
    """The plan of these rows of pictures, each with a color, a text, a concept, a role and a method; and its cell's settings."""

    def plan(*rows, folder="pictures"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for color, *_ in rows:
            Image.new("RGB", (8, 8), color).save(tmp_path / folder / f"{color}.png")
        listed = [(f"{color}.png", *said) for color, *said in rows]
        listing(tmp_path, *listed, header=("file", "prompt", "concept", "role", "method"))
        (composed,) = compose_cells(["concepts=church", "model=testbed"])
        cell = cell_from(composed.config, composed.explicit)
        found = given_plan(cell, read_pictures(tmp_path / folder, tmp_path / "list.csv", cell.concepts)[0], "mine")
        return found, {c.method.name: task.config["cell"]["settings"] for c, task in found.cells}

    return plan


OURS, ORIGINAL = ("red", "a church", "church", "target", "ours"), ("blue", "a church", "church", "target", "none")


@pytest.mark.parametrize(
    ("ours", "original", "same"),
    [
        (OURS, ("green", *ORIGINAL[1:]), []),
        (OURS, ("blue", "a chapel", *ORIGINAL[2:]), []),
        (OURS, None, []),
        (("red", "a chapel", *OURS[2:]), ORIGINAL, ["none"]),
        (("red", "a church", "house", "near", "ours"), ORIGINAL, ["none"]),
        (("red", "a church", "church", "near", "ours"), ORIGINAL, ["none"]),
        (OURS, ORIGINAL, ["none", "ours"]),
    ],
    ids=["other originals", "their prompts", "no originals", "prompt", "label", "role", "the same elsewhere"],
)
def test_records_are_identified_by_all_that_decides_them(planned, ours, original, same):
    _, before = planned(OURS, ORIGINAL)
    _, after = planned(*filter(None, (ours, original)), folder="elsewhere")
    assert [name for name in ("none", "ours") if after.get(name) == before[name]] == same


def test_extractors_get_the_prompts_of_pictures(planned, tmp_path):
    plan, _ = planned(OURS, ("blue", "a house", "house", "near", "ours"))
    (task,) = [task for task in plan.tasks.values() if task.stage == "given"]
    given.run(task, {}, tmp_path, None)
    assert read_prompts(tmp_path) == ["a church", "a house"]


def test_pictures_under_an_attack_are_about_the_erased_concept(planned):
    plan, _ = planned(("red", "a church at night", "", "attacked", "ours"))
    shown = [shot for _, task in plan.cells for shots in task.config["shots"]["images"] for shot in shots]
    assert [(shot["concept"], shot["expects"]) for shot in shown] == [("church", ["church"])]


BAD = {
    "no file": ([("missing.png", "a church")], "has no file 'missing.png'"),
    "outside": ([("../outside.png", "a church")], "is outside images="),
    "absolute": ([("/etc/hostname", "a church")], "is outside images="),
    "no rows": ([], "lists no pictures"),
    "twice": ([("a.png", "a church", "0"), ("a.png", "a church", "0")], "lists 2 pictures"),
    "seed": ([("a.png", "a church", "first")], "seed takes a whole number"),
    "large seed": ([("a.png", "a church", str(2**63))], "seed takes a whole number from 0 to 2^63"),
    "role": ([("a.png", "a church", "0", "targets")], "did you mean 'target'"),
    "target": ([("a.png", "a car", "0", "target", "car")], "a target shows an erased concept (church), got 'car'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lists_are_refused(name, cli):
    rows, told = BAD[name]
    folder = cli.folder / "bad"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    Image.new("RGB", (8, 8)).save(cli.folder / "outside.png")
    listing(cli.folder, *rows, header=("file", "prompt", "seed", "role", "concept"))
    bad = cli("score", "images=bad", "prompts=list.csv", "model=testbed", "concepts=church", "store=none", code=2)
    assert told in bad.stderr and bad.stderr.count("\n") == 1
    assert not (cli.folder / "none").exists()


MISREAD = {
    "commas": (
        "concept",
        "a.png,a house, a church and a boat,church",
        "line 2 has 4 fields for 3 columns; quote a prompt",
    ),
    "columns": ("concept,concept", "a.png,a church,church,tree", "has the column 'concept' more than once"),
    "concept": (
        "concept",
        "a.png,a church,chruch",
        "unknown concept 'chruch' in prompts=list.csv line 2; did you mean 'church'?",
    ),
    "expected": (
        "expects",
        "a.png,a church by a tree,church;tre",
        "unknown label in expects 'tre' in prompts=list.csv line 2; did you mean 'tree'?",
    ),
}


@pytest.mark.parametrize("name", MISREAD)
def test_a_row_that_would_be_misread_is_refused(name, cli):
    columns, row, told = MISREAD[name]
    (cli.folder / "bad").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(cli.folder / "bad" / "a.png")
    (cli.folder / "list.csv").write_text(f"file,prompt,{columns}\n{row}\n")
    bad = cli("score", "images=bad", "prompts=list.csv", "model=testbed", "concepts=church", "store=none", code=2)
    assert told in bad.stderr and bad.stderr.count("\n") == 1
    assert not (cli.folder / "none").exists()


def test_a_concept_in_the_name_of_a_file_must_be_one_that_the_detector_knows(cli):
    (cli.folder / "named").mkdir()
    Image.new("RGB", (8, 8)).save(cli.folder / "named" / "chruch.png")
    bad = cli("score", "images=named", "names={concept}.png", "model=testbed", "concepts=church", code=2)
    assert "unknown concept 'chruch' in names={concept}.png: chruch.png; did you mean 'church'?" in bad.stderr


def test_names_of_files_without_a_seed_are_counted_and_one_with_a_seed_is_unique(tmp_path):
    (composed,) = compose_cells(["method=none", "concepts=church"])
    concepts = cell_from(composed.config, composed.explicit).concepts
    for name in ("church_b_1.png", "church_a_1.png", "tree_a_1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    found = named_pictures(tmp_path, "{concept}_{any}_1.png", "a {concept}", "", concepts)
    assert [(p.file.name, p.shot.index) for p in found] == [
        ("church_a_1.png", 0),
        ("church_b_1.png", 1),
        ("tree_a_1.png", 0),
    ]
    alike = r"names=\{concept\}_\{any\}_\{seed\}.png matches 2 pictures by .* of prompt 'a church' and seed 1"
    with pytest.raises(UserError, match=alike):
        named_pictures(tmp_path, "{concept}_{any}_{seed}.png", "a {concept}", "", concepts)
    (expected,) = {
        p.shot.prompt.expects
        for p in named_pictures(tmp_path, "tree_{variant}_1.png", "a tree", "", concepts, ["tree"])
    }
    assert expected == (), "a variant that is no label is not expected"


def test_columns_that_are_not_read_are_named(tmp_path):
    (tmp_path / "list.csv").write_text("File,prompt,text,evaluation_seed\na.png,a,b,1\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (composed,) = compose_cells(["concepts=church"])
    concepts = cell_from(composed.config, composed.explicit).concepts
    assert read_pictures(tmp_path, tmp_path / "list.csv", concepts)[1] == ["text", "evaluation_seed"]


def test_names_of_the_unedited_model_are_one_method(cli):
    (cli.folder / "bad").mkdir(exist_ok=True)
    for name in "ab":
        Image.new("RGB", (8, 8)).save(cli.folder / "bad" / f"{name}.png")
    rows = [("a.png", "a church", "none", "0"), ("b.png", "a church", "original", "0")]
    listing(cli.folder, *rows, header=("file", "prompt", "method", "seed"))
    bad = cli("score", "images=bad", "prompts=list.csv", "model=testbed", "concepts=church", code=2)
    assert "prompts=list.csv lists 2 pictures by none (none, original) of prompt 'a church' and seed 0" in bad.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["images=bad"], "either prompts=FILE.csv or names=PATTERN"),
        (["images=bad", "prompts=list.csv"], "give detector=NAME"),
        (["images=nowhere", "prompts=list.csv", "model=testbed"], "is not a folder"),
        (["images=bad", "prompts=nowhere.csv", "model=testbed"], "is not a readable CSV file"),
        (["images=bad", "prompts=list.csv", "model=testbed", "method=uce"], "score makes no image"),
        (["images=bad", "prompts=list.csv", "detector=orcale"], "did you mean 'oracle'"),
        (
            ["images=bad", "names={concept}.png", "model=testbed", "prompt=a {foo}"],
            "unknown part 'foo' in prompt=a {foo}",
        ),
        (["images=bad", "names={concept}.png", "model=testbed", "prompt=a {0}"], "unknown part '0' in prompt=a {0}"),
        (
            ["images=bad", "names={concept}.png", "model=testbed", "prompt=a {"],
            "prompt=a { has a brace without its pair",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, told, cli):
    (cli.folder / "bad").mkdir(exist_ok=True)
    listing(cli.folder, ("a.png", "a church"))
    bad = cli("score", *arguments, "concepts=church", code=2)
    assert told in bad.stderr and bad.stderr.count("\n") == 1
