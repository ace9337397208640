"""A sweep over any axis loses no point: every setting has its own records, its own label and its own place in tables."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from command_line import called
from overpaint.grid.shipped import shipped
from overpaint.images.track import Images
from overpaint.images.workbench import Workbench
from overpaint.report.records import CELL

#: The cheapest grid with figures: one prompt for each of three roles, one step.
TINY = [
    "concepts=church", "attack=none", "protocol=testbed", "protocol.steps=1", "budget=smoke", "budget.target_prompts=1",
    "budget.near_prompts=1", "budget.grid=0", "budget.in_prompt=0", "budget.utility_prompts=1", "budget.reference_images=1",
]  # fmt: skip
#: Sweeps: the axis, and overrides; one of them has two values.
SWEEPS = {
    "method": ["method=none,uce"],
    "a method's key": ["method=uce", "method.lamb=0.1,0.7"],
    "one method's key beside another": ["method=none,uce", "uce.lamb=0.2,0.3"],
    "attack": ["method=none", "attack=synonym,paraphrase"],
    "an attack's key": ["method=none", "attack=random_prefix", "attack.tokens=1,2"],
    "seed": ["method=none", "attack=random_prefix", "seed=3,4"],
    "concept set": ["method=none", "concepts=cat,car"],
    "anchor": ["method=uce", "concepts.anchor=flower,key"],
    "retained concepts": ["method=uce", "concepts.retain=[cat],[car]"],
    "templates": ["method=none", "concepts.templates=['a {}'],['the {}']"],
    "prompt file": ["method=none", "concepts.prompts.target=one.csv,two.csv"],
    "protocol": ["method=none", "protocol.guidance_scale=2.0,3.0"],
    "budget": ["method=none", "budget.target_prompts=2,3"],
    "precision": ["method=none", "model.precision=float64,bfloat16"],
    "model's path": ["method=none", "model.path=./one,./two"],
    "threshold": ["method=none", "metrics.threshold=0.4,0.6"],
    "inline concepts": ["method=none", "concepts=inline", "concepts.erase=[tree],[boat]"],
}  # fmt: skip


def values_of(overrides):
    return next(o.split("=", 1)[1] for o in overrides if "," in o.split("=", 1)[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder in which all sweeps ran, one command each, on one store. The commands share the model and the detectors."""
    folder = tmp_path_factory.mktemp("axes")
    for name, text in (("one", "a church"), ("two", "the church")):
        (folder / f"{name}.csv").write_text(f"prompt\n{text} of {name}\n")
    for name, factor in (("one", 1.25), ("two", 1.5)):
        shutil.copytree(shipped("datasets") / "testbed" / "pipeline", folder / name)
        weights = folder / name / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        first = next(iter(tensors))
        save_file(tensors | {first: tensors[first] * np.float16(factor)}, weights, metadata={"format": "pt"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OVERPAINT_STORE", str(folder / "store"))
        bench = Workbench()
        patch.setattr(Images, "bench", lambda self: bench)
        for sweep in SWEEPS.values():
            others = [o for o in TINY if o.split("=")[0] not in {s.split("=")[0] for s in sweep}]
            assert called("run", *others, *sweep) == 0
        yield patch


def printed(store, capsys, *arguments):
    capsys.readouterr()
    assert called("table", *arguments) == 0
    return capsys.readouterr().out


def test_every_point_is_a_row_of_the_long_forms(store, capsys):
    records = pd.read_csv(io.StringIO(printed(store, capsys, "--format", "csv")))
    asked = {name: records[mask(records, name)]["settings"].nunique() for name in SWEEPS}
    assert asked == {name: 3 if "beside" in name else 2 for name in SWEEPS}
    listed = pd.DataFrame(json.loads(printed(store, capsys, "--format", "json")))
    assert set(listed["settings"]) == set(records["settings"])


def test_labels_tell_all_points_apart(store, capsys):
    records = pd.read_csv(io.StringIO(printed(store, capsys, "--format", "csv")))
    labels = records[[*CELL, "settings"]].astype(str).drop_duplicates()
    assert not labels.duplicated(CELL).any()


@pytest.mark.parametrize("form", ["md", "latex", "terminal"])
def test_every_point_has_a_place_of_its_own_in_the_wide_forms(store, capsys, form):
    text = "".join(printed(store, capsys, "--format", form).split())
    for markup in {"md": ["\\"], "latex": [r"\\", "{", "}"]}.get(form, ()):  # escapes, and lines of a head
        text = text.replace(markup, "")
    assert SHOWN.keys() == SWEEPS.keys()
    for name, shown in SHOWN.items():
        for part in shown:
            part = part.replace("_", r"\_") if form == "latex" else part
            assert "".join(part.split()) in text, (name, part)


#: Names of each sweep's points in a table.
SHOWN = {
    "method": ["none", "uce"],
    "a method's key": ["uce lamb=0.1", "uce lamb=0.7"],
    "one method's key beside another": ["uce lamb=0.2", "uce lamb=0.3"],
    "attack": ["synonym proportion", "paraphrase proportion"],
    "an attack's key": ["random_prefix tokens=1", "random_prefix tokens=2"],
    "seed": ["seed 3", "seed 4"],
    "concept set": ["cat (object)", "car (object)"],
    "anchor": ["church anchor=flower", "church anchor=key"],
    "retained concepts": ["retain=[cat]", "retain=[car]"],
    "templates": ["templates=[a", "templates=[the"],
    "prompt file": ["one.csv", "two.csv"],
    "protocol": ["guidance_scale=2.0", "guidance_scale=3.0"],
    "budget": ["target_prompts=2", "target_prompts=3"],
    "precision": ["precision=float64", "precision=bfloat16"],
    "model's path": ["path=one", "path=two"],
    "threshold": ["threshold=0.4", "threshold=0.6"],
    "inline concepts": ["tree (object)", "boat (object)"],
}


def mask(records, name):
    """The records of one sweep, selected by the settings in `given` besides `TINY`, or by component."""
    sweep, column = SWEEPS[name], records["given"].map(json.loads)
    if name == "method":
        return records["method"].isin(["none", "uce"]) & plain(records)
    if name == "attack":
        return records["attack_name"].isin(["synonym", "paraphrase"])
    if name == "seed":
        return records["attack_name"].eq("random_prefix") & records["seed"].astype(str).isin(["3", "4"])
    if name in ("concept set", "inline concepts"):
        wanted = ["cat", "car"] if name == "concept set" else ["tree", "boat"]
        return records["concepts"].str.split().str[0].isin(wanted)
    if name == "one method's key beside another":
        return records["method"].isin(["uce lamb=0.2", "uce lamb=0.3"]) | (
            records["method"].eq("none") & plain(records)
        )
    if name == "a method's key":
        return records["method"].isin(["uce lamb=0.1", "uce lamb=0.7"])
    key = next(o.split("=")[0] for o in sweep if "," in o.split("=", 1)[1])
    values = values_of(sweep)
    return column.map(lambda given: key in given and _said(given[key]) in values)


def _said(value):
    return f"['{value[0]}']" if isinstance(value, list) and "{" in value[0] else str(value).replace("'", "")


def plain(records):
    """Cells of the church without attack and without settings besides `TINY`."""
    usual = {o.split("=")[0]: o.split("=")[1] for o in TINY}

    def nothing_else(text):
        return all(str(value) == usual.get(key) for key, value in json.loads(text).items())

    return records["given"].map(nothing_else) & records["concepts"].eq("church") & records["attack"].eq("none")
