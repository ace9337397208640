"""The attack stage: the inputs that it rejects, and the results that it stores."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import overpaint
from overpaint.attacks.attack import Assault, Attack, Painted, Verdict
from overpaint.attacks.stored import read_assault
from overpaint.grid.prompts import Prompt, shots
from overpaint.images.stages import attack as stage
from overpaint.images.stages.generate import read_images
from overpaint.images.workbench import Workbench
from overpaint.models.sources import fingerprint_model


class Painter(Attack):
    """Paints one colour for each shot, and counts how often it runs."""

    needs = "victim"
    paints = True
    runs = 0

    def run(self, context):
        type(self).runs += 1
        made = [
            Painted(shot, Image.new("RGB", (8, 8), (20 * n, 0, 0)), Verdict(n == 1, 0.5))
            for n, shot in enumerate(context.shots)
        ]
        return Assault([p.shot for p in made], painted=made)

    def shortened(self, context):
        return 0


@pytest.fixture
def task(monkeypatch):
    monkeypatch.setattr(stage, "build_attack", lambda choice, seed: Painter(seed=seed))
    monkeypatch.setattr(Painter, "runs", 0)
    plain = shots([Prompt("a cat", "target", "cat", ("cat",))], 3)
    concept = {"name": "cat", "label": "cat"}
    config = {"attack": "painter", "hyperparameters": {}, "seed": 0, "concept": concept, "templates": {}}
    return SimpleNamespace(config=config | {"shots": [s.as_dict() for s in plain]}, runtime={"batch_size": 4})


def bench(family):
    @contextmanager
    def victim(config, runtime, erasure, by):
        yield SimpleNamespace(family=family, tokens=77)

    return SimpleNamespace(victim=victim, unedited=None, adapted=None)


def test_the_victim_is_restored_after_its_erasure_was_changed_or_taken_off(tmp_path, goldens):
    path, bench = str(goldens / "tiny_sd"), Workbench()
    values = {"iterations": 2, "rollout_steps": 4, "warmup_steps": 0, "learning_rate": 1e-1}
    runtime, config = {"path": path}, {"model": fingerprint_model(path), "precision": "float32"}
    erasure = overpaint.erase(bench.model(config, runtime), "spm", erase=["cat"], **values)
    erasure.save(tmp_path / "erasure.safetensors")

    def predicted(model):
        embeds = model.encode(["a cat"])
        with torch.no_grad():
            guided = model.guidance(model, embeds, model.unconditional(), 7.5, ["a cat"])
            return guided(model.noise([0]), torch.tensor(500), 0)

    with bench.victim(config, runtime, tmp_path) as victim:
        own = predicted(victim)
        with bench.adapted(lambda name, tensor: tensor * 2) as other:
            assert other is victim and not torch.equal(predicted(victim), own)
        assert torch.equal(predicted(victim), own)
        with bench.adapted(lambda name, tensor: tensor):
            assert torch.equal(predicted(victim), own)
        with bench.unedited():
            plain = predicted(victim)
        assert torch.equal(predicted(victim), own) and not torch.equal(plain, own)
    assert torch.equal(predicted(victim), plain)
    with (
        bench.victim(config, runtime, None) as victim,
        bench.adapted(lambda name, tensor: tensor * 2),
    ):
        assert torch.equal(predicted(victim), plain)


def test_a_model_of_another_family_is_refused_before_the_attack_runs(task, tmp_path):
    with pytest.raises(
        overpaint.UserError, match=r"^attack=painter runs on models of the families sd, sdxl, not on dit$"
    ):
        stage.run(task, {}, tmp_path, bench("dit"))
    assert Painter.runs == 0 and not any(tmp_path.iterdir())


def test_images_are_stored_in_the_order_of_their_shots(task, tmp_path):
    cost = stage.run(task, {}, tmp_path, bench("sdxl"))["cost"]
    assert Painter.runs == 1 and cost["images"] == 3
    found = read_assault(tmp_path)
    assert [p.verdict.success for p in found.painted] == [False, True, False]
    assert [s.index for s in found.shots] == [0, 1, 2]
    assert [image.getpixel((0, 0))[0] for image in read_images(tmp_path)] == [0, 20, 40]
