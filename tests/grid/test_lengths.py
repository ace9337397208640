"""A budget shortens trainings and searches that were not set by hand, and says so."""

from dataclasses import dataclass, field
from typing import ClassVar

import plans
import pytest

from overpaint.errors import UserError
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.lengths import Shortenable, shortened
from overpaint.grid.registry import component

ONE = Request((Concept("dog"),))


@dataclass
class Trained(Shortenable):
    iterations: int | None = 100
    warmup: int = 30
    curve: list[int] = field(default_factory=list)

    lengths: ClassVar[tuple[str, ...]] = ("iterations", "curve")
    paced: ClassVar[dict[str, str]] = {"warmup": "iterations"}

    def least(self, request):
        return {"iterations": 4 * len(request.erase)}


def cut(built, limit, *by_hand, request=ONE):
    return shortened(built, limit, by_hand, request)


def plan(*overrides):
    return plans.plan("concepts=church", *overrides)


def values(made, stage, name):
    """The hyper-parameters in the keys of a method's or attack's tasks."""
    tasks = [
        t for t in made.tasks.values() if t.stage == stage and name in (t.config.get("method"), t.config.get("attack"))
    ]
    assert tasks
    return [t.config["hyperparameters"] for t in tasks]


def said(made):
    return [note for note in made.notes if "shortens" in note]


def test_the_lower_of_value_and_limit():
    assert cut(Trained(), 20) == {"iterations": (100, 20), "warmup": (30, 6)}
    assert cut(Trained(), 100) == cut(Trained(), 500) == {}
    assert cut(Trained(iterations=None), 20) == {}


def test_step_numbers_end_at_the_limit():
    for limit, left in ((20, [0, 10, 20]), (15, [0, 10, 15]), (2, [0, 2])):
        assert cut(Trained(4, 1, [0, 10, 20, 50, 300]), limit)["curve"] == ([0, 10, 20, 50, 300], left)
    assert "curve" not in cut(Trained(curve=[0, 5]), 5)


def test_what_is_paced_with_a_length_stays_within_it():
    for limit in range(2, 100):
        for warmup in (0, 1, 50, 99):
            found = cut(Trained(warmup=warmup), limit)
            _, iterations = found["iterations"]
            assert found.get("warmup", (0, warmup))[1] < iterations
    assert cut(Trained(warmup=0), 20) == {"iterations": (100, 20)}


def test_a_value_set_by_hand_stays():
    assert cut(Trained(), 20, "iterations") == {}
    assert cut(Trained(), 20, "warmup") == {"iterations": (100, 31)}, "the training is longer than its warm-up"


def test_some_lengths_depend_on_the_concepts():
    three = Request((Concept("a"), Concept("b"), Concept("c")))
    assert cut(Trained(warmup=0), 2, request=three) == {"iterations": (100, 12)}


@dataclass
class Sampled(Shortenable):
    listed: int | None = None
    etas: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3])
    scales: list[float] = field(default_factory=lambda: [1.0, 1.1, 1.2, 1.3])

    lengths: ClassVar[tuple[str, ...]] = ("listed",)
    endless: ClassVar[tuple[str, ...]] = ("listed",)
    combined: ClassVar[tuple[str, ...]] = ("etas", "scales")


def test_a_length_without_end_gets_the_limit():
    assert cut(Sampled(), 12) == {"listed": (None, 12)}
    assert cut(Sampled(listed=7), 12) == {} == cut(Sampled(), 12, "listed")


def test_combinations_of_variants_stay_within_the_limit():
    for limit in range(2, 14):
        found = cut(Sampled(listed=2), limit)
        _, etas = found.get("etas", (None, Sampled().etas))
        _, scales = found.get("scales", (None, Sampled().scales))
        assert len(etas) * len(scales) <= limit and etas[0] == 0.1 and scales[0] == 1.0
        assert len(etas) * (len(scales) + 1) > limit or len(scales) == 4, "no more is left out than necessary"
    assert cut(Sampled(listed=2), 6, "scales") == {"etas": ([0.1, 0.2, 0.3], [0.1])}, "four are set by hand"


def test_smoke_limits_what_attacks_sample_and_read(tmp_path):
    listed = tmp_path / "listed.csv"
    listed.write_text("prompt\n" + "".join(f"a church by number {n}\n" for n in range(30)))
    made = plan(
        "model.preset=null",
        "method=uce",
        "attack=noise_probe,completion,replay",
        f"replay.file={listed}",
        "budget=smoke",
    )
    assert said(made) == [
        "budget=smoke shortens noise_probe.variance_scales from [1.0, 1.02, 1.03, 1.04] to [1.0] and replay.most from null to 10"
    ]
    paper = plan("method=uce", "attack=completion", "attack.preset=paper", "budget=smoke")
    assert said(paper) == ["budget=smoke shortens completion.steps from 100 to 10"]
    for cell, measure in made.cells:
        shots = measure.config["shots"]
        if cell.attack.name == "replay":
            assert sum(map(len, shots["images"])) == 10
        if cell.attack.name == "noise_probe":  # its control makes as many images
            assert sum(map(len, shots["control"])) == 6 * cell.budget.target_prompts


def test_smoke_shortens_and_says_so_in_one_sentence():
    made = plan("method=none,uce,esd", "attack=none,relearn,uda", "budget=smoke")
    assert said(made) == [
        "budget=smoke shortens esd.iterations from 100 to 10, relearn.curve from [0, 10, 40, 160] to [0, 10] "
        "and uda.iterations from 15 to 10"
    ]
    assert {v["iterations"] for v in values(made, "erase", "esd")} == {10}
    assert {v["iterations"] for v in values(made, "attack", "uda")} == {10}
    assert {tuple(v["curve"]) for v in values(made, "attack", "relearn")} == {(0, 10)}
    for cell, measure in made.cells:  # control and prefixes make as many images as the shortened attack
        if cell.attack.name == "relearn":
            assert sum(map(len, measure.config["shots"]["control"])) == 2 * cell.budget.target_prompts


def test_on_a_full_size_model_the_official_lengths_are_shortened():
    """ESD's YAML leaves its length open: the variant decides."""
    made = plan("model.preset=null", "method=esd,spm", "attack=none,p4d_n", "budget=smoke")
    assert said(made) == [
        "budget=smoke shortens esd.iterations from 1000 to 10, spm.iterations from 3000 to 10, spm.warmup_steps from 500 "
        "to 1, p4d_n.steps from 3000 to 10 and p4d_n.draw_every from 50 to 1"
    ]
    assert {v["iterations"] for v in values(made, "erase", "esd")} == {10}


@pytest.mark.parametrize("key", ["method.iterations", "esd.iterations"])
def test_a_length_set_by_hand_wins_over_the_budget(key):
    made = plan("method=esd", f"{key}=300", "budget=smoke")
    assert not said(made)
    assert {v["iterations"] for v in values(made, "erase", "esd")} == {300}
    assert [cell.method.label for cell, _ in made.cells] == ["esd iterations=300"]


def test_a_preset_chosen_by_hand_is_shortened():
    made = plan("method=none", "attack=cce", "attack.preset=paper", "budget=smoke")
    assert said(made) == ["budget=smoke shortens cce.steps from 5000 to 10"]
    assert [cell.attack.label for cell, _ in made.cells] == ["cce preset=paper"]


def test_other_budgets_shorten_nothing():
    for budget in ("lite", "paper"):
        made = plan("method=esd", "attack=none,uda", f"budget={budget}", "budget.target_prompts=2")
        assert not said(made)
        for stage, kind, name in (("erase", "method", "esd"), ("attack", "attack", "uda")):
            own = component(kind, name)
            assert all(v == own.settle({}, "testbed") for v in values(made, stage, name))


def test_the_limit_can_be_set_and_lifted():
    assert said(plan("method=esd", "budget.max_steps=7")) == [
        "budget.max_steps=7 shortens esd.iterations from 100 to 7"
    ]
    lifted, lite = plan("method=esd", "budget=smoke", "budget.max_steps=null"), plan("method=esd")
    assert not said(lifted)
    assert {t.key for t in lifted.tasks.values() if t.stage == "erase"} == {
        t.key for t in lite.tasks.values() if t.stage == "erase"
    }
    two = plan("method=esd", "budget.max_steps=5,7")
    assert len({cell.identity for cell, _ in two.cells}) == 2
    with pytest.raises(UserError, match=r"budget\.max_steps takes a whole number from 2 up or null, got 1"):
        plan("budget.max_steps=1")


def test_a_limit_that_shortens_nothing_changes_no_settings():
    (short, _), (long, _) = plan("method=uce", "budget.max_steps=5,7").cells
    assert short.settings == long.settings


def test_every_concept_keeps_its_picture():
    """SalUn needs an image of each retained concept, and there are more of them than the limit."""
    made = plan("method=salun", "budget=smoke")
    (used,) = values(made, "erase", "salun")
    (cell, _), *_ = made.cells
    assert used["pictures"] == used["epochs"] == 10 < used["retain_pictures"] == len(cell.concepts.request.retain) < 32


def test_shortened_tasks_are_a_kind_of_their_own_for_estimates():
    """The seconds of ten iterations say nothing of a hundred, and those of one model nothing of another."""

    def kinds(*overrides):
        made = plan("method=esd", "attack=uda", "budget.target_prompts=2", *overrides)
        own = [t for t in made.tasks.values() if {"esd", "uda"} & {t.config.get("method"), t.config.get("attack")}]
        return {t.pace for t in own}

    assert len(kinds()) == 2 and kinds() == kinds("esd.learning_rate=1")
    assert not kinds() & kinds("budget.max_steps=5")
