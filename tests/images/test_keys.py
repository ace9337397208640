"""What is in a task's key, and what is not."""

import json
import sys

import huggingface_hub.constants
import pytest
import torch
from plans import plan, stages
from safetensors.torch import save_file

from overpaint import detectors
from overpaint.detectors.nudenet import EXPOSED9
from overpaint.grid import source_code
from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.grid.digests import file_digest
from overpaint.grid.registry import component, components, look_in
from overpaint.grid.roles import ROLES
from overpaint.grid.source_code import source_of
from overpaint.images import task_parts
from overpaint.images.task_parts import HALF_PRECISION
from overpaint.models.sources import hub_commit
from overpaint.testbed.pictures import World


def test_threshold_and_metrics_change_measurements_alone():
    low, high = plan("budget=smoke"), plan("budget=smoke", "metrics.threshold=0.7")
    changed = {t.stage for k, t in high.tasks.items() if k not in low.tasks}
    assert changed == {"measure"}


@pytest.mark.parametrize(
    "whole, real",
    [
        ("method=uce method.lamb=1", "method.lamb=1.0"),
        ("method=advunlearn method.retain_weight=10", "method.retain_weight=10.0"),
    ],
)
def test_a_whole_number_is_the_same_hyperparameter_as_a_real_one(whole, real):
    method, value = whole.split()
    keys = [[t.key for t in stages(plan(method, given, "budget=smoke"), "erase")] for given in (value, real)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "where", [["store=elsewhere"], ["engine=local", "engine.workers=2"], ["tracker=none"], ["protocol.batch_size=3"]]
)
def test_where_and_how_a_grid_runs_names_no_task(where):
    grid = ["method=uce", "budget=smoke", "attack=none"]
    assert set(plan(*grid, *where).tasks) == set(plan(*grid).tasks)


def test_a_compiled_network_names_what_it_generates_and_no_erasure():
    grid = ["method=uce", "budget=smoke", "attack=uda"]
    plain, compiled = plan(*grid), plan(*grid, "engine.compile=true")
    new = {key: task for key, task in compiled.tasks.items() if key not in plain.tasks}
    assert {t.stage for t in stages(compiled, "generate")} == {"generate"}
    assert all(task.key in new and task.config["compiled"] for task in stages(compiled, "generate"))
    kept = {"erase", "attack", "latency", "reference"}
    assert not kept & {task.stage for task in new.values()}
    assert any("each process compiles the network" in note for note in compiled.notes)
    assert not any("compile" in note for note in plain.notes)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_smaller_budget_is_part_of_a_larger(role):
    def of(budget):
        (composed,) = compose_cells([f"budget={budget}", f"concepts={'adult' if role.optional else 'church'}"])
        cell = cell_from(composed.config, composed.explicit)
        return {(s.prompt.id, s.noise_seed) for s in role.shots(cell.concepts, cell.budget)}

    assert of("smoke") and of("smoke") <= of("lite") <= of("paper")


def test_the_content_of_a_named_file_decides_the_erasure(tmp_path):
    captions = tmp_path / "captions.csv"

    def key(text):
        captions.write_text(text)
        found = plan("method=mace", f"method.prior_captions={captions}", "method.preserve_scale=1", "budget=smoke")
        return next(task.key for task in found.tasks.values() if task.stage == "erase")

    one = key("prompt\na tree\n")
    assert key("prompt\na tree\n") == one != key("prompt\na boat\n")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_has_a_version_of_its_own(precision):
    """The version is part of the keys of half-precision training; single-precision keys do not contain it."""
    exact, half = (
        plan("method=esd", "attack=cce", "budget=smoke", f"model.precision={kind}") for kind in ("float32", precision)
    )
    for stage in ("erase", "attack"):
        assert not any("half" in task.versions for task in stages(exact, stage))
        assert stages(half, stage) and all(task.versions["half"] == HALF_PRECISION for task in stages(half, stage))


#: Kind, one of our components that a user's module offers as its own, what selects it, and the stages that depend on it.
FOREIGN = [
    ("method", "uce", "method=mine_method", {"erase", "generate", "score", "compare", "latency", "attack", "measure"}),
    ("attack", "cce", "attack=none,mine_attack", {"attack", "generate", "score", "measure"}),
    ("detector", "oracle", "model.detector=mine_detector", {"score", "measure"}),
    ("detector", "oracle_b", "model.judge=mine_detector", {"attack", "score", "measure"}),
    ("pictures", "world", "model.reference=mine_pictures", {"reference", "attack", "generate", "score", "measure"}),
    ("metrics", "", "metrics.metrics.mine='mine_metrics:Mine'", {"measure"}),
]


@pytest.mark.parametrize(
    ("kind", "like", "override", "stages"), FOREIGN, ids=[case[2].split("=")[0] for case in FOREIGN]
)
def test_the_source_of_a_users_component_is_in_the_keys_of_what_depends_on_it(
    kind, like, override, stages, tmp_path, monkeypatch
):
    monkeypatch.setattr("overpaint.grid.registry._asked", [])
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, f"mine_{kind}", raising=False)
    ours = component(kind, like).config["component"] if like else "overpaint.metrics.cost:EraseSeconds"
    code = "from {} import {} as Mine\n".format(*ours.split(":"))
    (tmp_path / f"mine_{kind}.py").write_text(code)
    (tmp_path / "conf" / kind).mkdir(parents=True)
    if like:
        text = components(kind)[like].read_text().replace(ours, f"mine_{kind}:Mine")
        (tmp_path / "conf" / kind / f"mine_{kind}.yaml").write_text(text.replace(f"name: {like}", f"name: mine_{kind}"))
    grid = {"method": "uce", "attack": "none,uda" if "judge" in override else "none,cce", "budget": "smoke"}
    chosen = [f"{key}={value}" for key, value in grid.items() if key != override.split("=")[0]]

    def planned():
        for cached in (source_of, source_code._parsed, task_parts.source_code):
            cached.cache_clear()
        return plan(*chosen, override, f"hydra.searchpath=[file://{tmp_path / 'conf'}]").tasks

    before = planned()
    mine = {key for key, task in before.items() if task.foreign}
    assert {before[key].stage for key in mine} == stages
    assert {name for key in mine for name in before[key].foreign} == {
        f"{kind}=mine_{kind}" if like else "metrics.metrics.mine"
    }
    (tmp_path / f"mine_{kind}.py").write_text(f"# A comment\n{code}")
    assert planned().keys() == before.keys()
    (tmp_path / f"mine_{kind}.py").write_text(f"{code}changed = 1\n")
    after = planned()
    assert len(after) == len(before) and after.keys() & before.keys() == before.keys() - mine
    for cached in (source_of, source_code._parsed, task_parts.source_code):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("grid", "stage"),
    [
        (["attack=relearn"], "attack"),
        (["attack=none", "metrics=muse"], "membership"),
        (["attack=none", "metrics=muse"], "replicate"),
        (["attack=none"], "reference"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_version_of_a_source_of_pictures_is_in_the_keys_of_all_that_read_it(grid, stage, monkeypatch):
    def readers():
        made = stages(plan("method=uce", "budget=smoke", *grid), stage)
        return [task for task in made if stage != "attack" or "examples" in task.config]

    first = readers()
    assert first and all("pictures" not in task.versions for task in first)  # the keys of older results
    monkeypatch.setattr(World, "version", 2)
    second = readers()
    assert len(second) == len(first) and not {task.key for task in first} & {task.key for task in second}


def test_a_word_is_no_file_whatever_the_working_directory_contains(tmp_path, monkeypatch):
    """ESD has a variant ``x``; a file of that name must not change its key."""
    before = {t.key for t in stages(plan("method=esd", "budget=smoke"), "erase")}
    (tmp_path / "x").write_text("a file")
    monkeypatch.chdir(tmp_path)
    assert {t.key for t in stages(plan("method=esd", "budget=smoke"), "erase")} == before


LOOKING = {
    "geom": ["geom.regions=detector", "geom.detector=mine"],
    "hfi": ["hfi.reward=mine"],
    "rece": ["rece.select=validation", "rece.validation_detector=mine"],
    "safety_checker": ["safety_checker.detector=mine", "safety_checker.weights=null"],
    "uce": ["uce.variant=current", "uce.attributes=[cat,dog]", "uce.classifier=mine"],
}


@pytest.fixture
def looking(tmp_path):
    """``looking(method, weights)``: the erase task of a method that looks at images with the detector ``mine``, and its plan."""
    folder = tmp_path / "conf" / "detector"
    folder.mkdir(parents=True)
    about = "name: mine\ncomponent: overpaint.detectors.nudenet:NudeNet\ngroup: core4\nclasses: null\n"

    def erase_task(method, weights):
        (folder / "mine.yaml").write_text(f"{about}weights: {weights}\n")
        look_in()
        detectors._identity.cache_clear()
        place = f"hydra.searchpath=[file://{folder.parent}]"
        made = plan(f"method={method}", "attack=none", "budget=smoke", place, *LOOKING[method])
        return stages(made, "erase")[0], made

    yield erase_task
    look_in()
    detectors._identity.cache_clear()


@pytest.mark.parametrize("method", LOOKING)
def test_the_weights_of_a_detector_that_an_erasure_asks_are_in_its_key(looking, method, tmp_path):
    files = [tmp_path / f"{name}.onnx" for name in ("a", "b", "same as a")]
    for file, content in zip(files, (b"1", b"2", b"1"), strict=True):
        file.write_bytes(content)
    first, made = looking(method, files[0])
    assert first.config["detectors"]["mine"]["assets"] == {"a.onnx": file_digest(str(files[0]))}
    assert all(task.config["cell"]["versions"].count('"mine":1') for task in stages(made, "measure"))
    assert first.key != looking(method, files[1])[0].key
    assert not plan(f"method={method}", "attack=none", "budget=smoke").absent


@pytest.mark.parametrize("method", LOOKING)
def test_a_plan_says_which_detector_of_a_method_is_missing(looking, method):
    _, made = looking(method, "asset:gcd")
    assert any("asset=gcd" in said and "is not in" in said for said in made.absent)


def test_components_that_share_a_name_have_versions_of_their_own():
    ((_, task),) = plan("method=safety_checker", "method.detector=safety_checker", "attack=none", "budget=smoke").cells
    versions = json.loads(task.config["cell"]["versions"])
    assert {"method=safety_checker", "detector=safety_checker", "oracle", "generate"} <= versions.keys()
    ((_, task),) = plan("method=safety_checker", "method.detector=oracle", "attack=none", "budget=smoke").cells
    assert {"safety_checker", "oracle"} <= json.loads(task.config["cell"]["versions"]).keys()


def test_an_erasure_without_detectors_has_its_key_as_before():
    (task,) = stages(plan("method=uce", "attack=none", "budget=smoke"), "erase")
    assert "detectors" not in task.config


@pytest.mark.parametrize(
    ("grid", "stage", "key"),
    [
        (["attack=pez", "attack.clip=owner/clip"], "attack", "clip"),
        (["attack=p4d_n", "attack.clip=owner/clip"], "attack", "clip"),
        (["attack=conceptor", "attack.clip=owner/clip"], "attack", "clip"),
        (
            ["method=prompt_filter", "method.rule=embedding", "method.threshold=0.5", "method.clip=owner/clip"],
            "erase",
            "clip",
        ),
        (["method=checkpoint", "method.file=owner/clip"], "erase", "file"),
        (["method=mace", "method.masks=segmenter", "method.detector=owner/clip"], "erase", "detector"),
        (["method=sfd", "method.generator=owner/clip"], "erase", "generator"),
        (
            ["method=uce", "uce.variant=current", "uce.attributes=[cat,dog]", "uce.classifier=owner/clip"],
            "erase",
            "classifier",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_the_commit_of_a_network_of_the_hub_is_in_keys(grid, stage, key, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    main = tmp_path / "models--owner--clip" / "refs" / "main"
    main.parent.mkdir(parents=True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        main.write_text(commit)
        hub_commit.cache_clear()
        found.append(stages(plan("budget=smoke", *grid), stage)[0])
    hub_commit.cache_clear()
    assert [task.config["files"][key] for task in found] == [f"hub:{'a' * 40}", f"hub:{'b' * 40}"]
    assert found[0].key != found[1].key


def test_the_content_of_a_folder_that_an_attack_names_is_in_its_key(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    given = ("attack=pez", f"attack.clip={tmp_path}", "budget=smoke")
    first = stages(plan(*given), "attack")[0]
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert stages(plan(*given), "attack")[0].key != first.key
    assert "files" not in stages(plan("attack=pez", "budget=smoke"), "attack")[0].config


def test_the_content_of_a_benign_change_is_in_the_key_of_a_merge(tmp_path):
    file, found = tmp_path / "benign.safetensors", []
    for value in (0.0, 1.0):
        save_file({"conv_in.bias": torch.full((2,), value)}, file)
        found.append(stages(plan("attack=merge", f"attack.checkpoint={file}", "budget=smoke"), "attack")[0])
    assert found[0].config["files"]["checkpoint"] != found[1].config["files"]["checkpoint"]


def test_a_measurement_knows_the_classes_that_the_detector_counts():
    counted = [
        stages(plan("method=none", "attack=none", "budget=smoke", *more), "measure")[0].config.get("counted")
        for more in ([], ["model.detector=nudenet"])
    ]
    assert counted == [None, list(EXPOSED9)]
