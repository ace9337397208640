"""A method or attack that changes the model itself is refused, and the next task gets the model as it was."""

import pytest
import torch

import overpaint
from overpaint.images.stages import erase as stage
from overpaint.images.workbench import Workbench
from overpaint.methods.negative_prompt import NegativePrompt
from overpaint.models.erasure import Erasure, Replacement
from overpaint.models.sources import fingerprint_model
from overpaint.run.tasks import Task

CONFIG = {"precision": "float32", "retain": [], "seed": 0, "hyperparameters": {}}
CONFIG |= {"method": "negative_prompt", "erase": [{"name": "cat"}]}


@pytest.fixture
def bench(goldens):
    bench = Workbench()
    bench.path = str(goldens / "tiny_sd")
    bench.config = CONFIG | {"model": fingerprint_model(bench.path)}
    return bench


@pytest.fixture
def method(monkeypatch):
    """Give the method *negative_prompt* another function from a model to an erasure."""
    return lambda erase: monkeypatch.setattr(NegativePrompt, "erase", lambda self, model, request: erase(model))


def erased(bench, folder):
    """Run stage *erase*."""
    return stage.run(Task("erase", bench.config, runtime={"path": bench.path}), {}, folder, bench)


def weights(model):
    return {name: parameter.data.clone() for name, parameter in model.named_parameters().items()}


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("side", ["denoiser", "text_encoder"])
def test_a_changed_weight_is_refused_and_does_not_reach_the_next_task(bench, tmp_path, method, side, fails):
    before = weights(bench.model(bench.config, {"path": bench.path}))

    def careless(model):
        next(getattr(model, side).parameters()).data[..., 0].mul_(2)
        if fails:
            raise ArithmeticError("the method's own")
        return Erasure("careless")

    method(careless)
    with pytest.raises(ArithmeticError if fails else overpaint.UserError, match=r"method=negative_prompt changed|own"):
        erased(bench, tmp_path)
    assert not any(tmp_path.iterdir())
    after = weights(bench.model(bench.config, {"path": bench.path}))
    assert bench.loads == 2 and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("how", [{}, {"sequential": True}, {"merge": "sum"}], ids=["together", "sequential", "merged"])
def test_in_python_a_changed_weight_is_refused_and_so_is_the_model_from_then_on(goldens, method, how):
    model = overpaint.load_model(str(goldens / "tiny_sd"))

    def careless(model):
        name, parameter = next(iter(model.named_parameters().items()))
        kept = parameter.data.clone()
        parameter.data.add_(1)
        return Erasure("negative_prompt", changes={name: Replacement(kept)})

    method(careless)
    with pytest.raises(overpaint.UserError, match=r"^method=negative_prompt changed the model itself \(conv_in"):
        overpaint.erase(model, "negative_prompt", erase=["cat", "dog"], **how)
    with pytest.raises(overpaint.UserError, match=r"^method=negative_prompt has changed .* load the model again$"):
        overpaint.erase(model, "uce", erase=["cat"])


def test_an_attack_is_watched_below_the_erasure(bench, tmp_path):
    def attacked(change):
        config, runtime = bench.config, {"path": bench.path}
        with bench.victim(config, runtime, None, "attack=careless") as victim:
            change(next(victim.denoiser.parameters()).data)

    attacked(lambda weight: None)
    with pytest.raises(overpaint.UserError, match=r"^attack=careless changed the model itself"):
        attacked(lambda weight: weight.add_(1))


def test_an_erasure_that_changes_nothing_is_refused(bench, tmp_path, method):
    method(lambda model: Erasure("negative_prompt"))
    with pytest.raises(overpaint.UserError, match=r"^method=negative_prompt returned an erasure that changes nothing"):
        erased(bench, tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_erasure_that_does_not_fit_fails_where_it_is_made(bench, tmp_path, method):
    def cut(model):
        name, parameter = next(iter(model.named_parameters().items()))
        return Erasure("careless", changes={name: Replacement(parameter.data[:1])})

    method(cut)
    with pytest.raises(overpaint.UserError, match="does not fit the model"):
        erased(bench, tmp_path)
    assert bench.loads == 1 and not any(tmp_path.iterdir())
