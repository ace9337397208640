"""Content that changes between planning and a task is not stored under the key of the old content."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from overpaint.commands.grids import planned
from overpaint.grid.shipped import shipped
from overpaint.run.executor import Executor, Run

TESTBED = shipped("datasets") / "testbed" / "pipeline"
WEIGHTS = next((TESTBED / "unet").glob("*.safetensors"))


class Silent:
    def __getattr__(self, name):
        return lambda *told: None


def made(stage, overrides, store, change=None):
    """The result of the first task of a stage, with ``change()`` between planning and running."""
    grid = planned([*overrides, "concepts=church", "budget=smoke", "protocol.steps=2", f"store={store}"])
    grid.store.prepare()
    task = next(task for task in grid.plan.opened().tasks.values() if task.stage == stage)
    if change:
        change()
    return Executor("images", grid.store, "cpu", Silent(), Run.begin(grid.store)).run_one([task])


@pytest.fixture
def checkpoint(tmp_path):
    name, weight = next(item for item in load_file(WEIGHTS).items() if item[0].endswith("attn2.to_v.weight"))
    file = tmp_path / "edited.safetensors"

    def write(scale):
        save_file({f"unet.{name}": (weight * scale).contiguous()}, file)

    write(0.9)
    return file, write


def test_a_rewritten_file_is_refused(checkpoint, tmp_path):
    file, write = checkpoint
    overrides = ["method=checkpoint", f"method.file={file}"]
    assert made("erase", overrides, tmp_path / "store").status == "made"
    found = made("erase", overrides, tmp_path / "other", lambda: write(0.5))
    assert found.status == "failed"
    assert found.reason == f"method.file={file} has changed since this run was planned; run the same command again"
    assert made("erase", overrides, tmp_path / "other").status == "made", "planned again, it is another file"


def test_a_rewritten_model_is_refused(tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(TESTBED, folder)

    def change():
        save_file({key: value * 1.05 for key, value in load_file(WEIGHTS).items()}, folder / "unet" / WEIGHTS.name)

    found = made("generate", ["method=none", f"model.path={folder}"], tmp_path / "store", change)
    assert found.status == "failed"
    assert found.reason == f"model.path={folder} has changed since this run was planned; run the same command again"
