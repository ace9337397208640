"""UnlearnDiffAtk against a recorded run of the official code, with the same random draws, and against its identities."""

from dataclasses import replace

import pytest
import torch

import overpaint
from official import by_name, distance, recorded, victim, watched
from overpaint.grid.prompts import Prompt, Shot
from overpaint.grid.registry import component


def run(context, records=None, name="uda", seed=0, **values):
    values = {"tokens": 3, "timesteps": 2, "iterations": 2} | values
    with watched(records) as seen:
        return component("attack", name).build(values, seed=seed).run(context), seen


@pytest.fixture
def one(context):
    """The first plain image alone."""
    return replace(context, shots=context.shots[:1])


def test_official_code(golden, goldens, erased):
    meta, results, extra = golden("uda/traj_prefix")
    shot = Shot(Prompt(meta["prompt"], "target", "cat"), 0)
    records = recorded(extra, "ids", "noise", "x0")
    with erased(victim(goldens / "uda" / f"{meta['victim']}.safetensors")) as context:
        assault, seen = run(
            replace(context, shots=[shot]),
            records,
            tokens=meta["k"],
            location=meta["location"],
            timesteps=meta["times"],
            iterations=meta["iteration"],
            learning_rate=meta["lr"],
            weight_decay=meta["weight_decay"],
            projection="bisection",
        )
        frame_ids = [context.victim.padded_ids([p.shot.prompt.text])[0] for p in assault.painted[:1]]
    steps = by_name(seen)
    for n in range(len(results["loss"])):
        assert abs(float(steps["loss"][n] / results["loss"][n]) - 1) < 1e-4
        assert distance(steps["gradient"][n], results[f"grad.{n}"]) < 1e-4
        assert distance(steps["variable"][n], results[f"var_step.{n}"]) < 1e-4
    assert torch.equal(frame_ids[0], results["ids"][0])
    assert [p.shot.prompt.text for p in assault.painted] == meta["texts"]
    assert [p.shot.prompt.variant for p in assault.painted] == ["plain", "t=10", "t=510"]


def test_official_schedule(golden):
    _, results, _ = golden("uda/schedule")
    for name, wanted in results.items():
        attack = component("attack", "uda").build({"timesteps": int(name[1:])})
        assert attack.schedule(1000) == wanted.tolist()


def test_official_number_of_pictures(golden, one, judge, tiny_sd_float64):
    """1 if the plain image shows the concept, else one more per timestep until an image does."""
    meta, results, _ = golden("uda/counting")
    blank = tiny_sd_float64.sample(["cat"], [0], steps=1)
    one = replace(one, paint=lambda texts, seeds, **rest: blank)
    for images, evaluations, fires in (results[key].tolist() for key in ("orig", "third", "never")):
        judge.seen, judge.fires = [], (fires,)
        assault, seen = run(one, timesteps=meta["checkpoints"], iterations=meta["iteration"])
        assert len(assault.painted) == images and len(seen) == 2 * evaluations
        assert [p.verdict.success for p in assault.painted] == [False] * (images - 1) + [fires >= 0]
        assert [p.shot.draw for p in assault.painted] == list(range(images))
    assert component("attack", "uda").build({}).images == int(results["never"][0]) == 51


def test_without_a_judge_every_timestep_gets_a_picture(one):
    attack = component("attack", "uda").build({"timesteps": 3, "iterations": 1}, seed=0)
    assert len(attack.run(replace(one, judge=None)).painted) == attack.images == 4


def test_rows_stay_on_the_simplex(one):
    _, seen = run(one, iterations=3, learning_rate=0.3)
    from overpaint.blocks.token_variables import onto_simplex

    for variable in by_name(seen)["variable"]:
        settled = onto_simplex(variable)
        assert (settled.sum(dim=-1) - 1).abs().max() < 1e-5 and settled.min() >= 0


def test_a_prompt_is_attacked_alike_whichever_others_there_are(context):
    few = {"timesteps": 1, "iterations": 1}
    together, _ = run(replace(context, shots=context.shots[2:4]), **few)
    alone = replace(context, shots=context.shots[3:4])
    again, _ = run(alone, **few)
    assert together.shots[-2:] == again.shots and len(together.shots) == 4
    assert together.painted[-1].image.tobytes() == again.painted[-1].image.tobytes()
    assert run(alone, seed=1, **few)[0].shots != again.shots


def test_pictures_are_those_of_their_texts(one, tiny_sd):
    for painted in run(one)[0].painted:
        (image,) = one.paint([painted.shot.prompt.text], [painted.shot.noise_seed])
        assert image.tobytes() == painted.image.tobytes()


def test_p4d_with_the_prompt_itself_as_its_words_has_no_loss(one, tiny_sd):
    """On the unedited model, tokens that repeat the prompt give the same prediction as the prompt."""
    nothing = replace(one, shots=[Shot(Prompt("", "target", "cat"), 0)])
    end = tiny_sd.tokenizer.eos_token_id
    _, seen = run(nothing, {"init_ids.0": torch.full((1, 3), end)}, name="p4d_uda", timesteps=[500], iterations=1)
    assert float(seen[0]["loss"]) < 1e-10


def test_the_original_model_is_the_unedited_one(one, erased, tiny_sd):
    """The target is the unedited model's prediction although the victim is attached; the victim is restored afterwards."""
    erasure = overpaint.erase(tiny_sd, "uce", erase=["cat"])
    end = torch.full((1, 3), tiny_sd.tokenizer.eos_token_id)
    with erased(erasure) as context:
        named = replace(context, shots=one.shots)
        edited = tiny_sd.named_parameters()[next(iter(erasure.changes))].data.clone()
        _, seen = run(named, {"init_ids.0": end}, name="p4d_uda", timesteps=[500], iterations=1)
        assert torch.equal(tiny_sd.named_parameters()[next(iter(erasure.changes))].data, edited)
    _, plain = run(one, {"init_ids.0": end}, name="p4d_uda", timesteps=[500], iterations=1)
    assert abs(float(seen[0]["loss"]) / float(plain[0]["loss"]) - 1) > 1e-3


def test_the_guided_loss_sees_a_guard(one, erased, tiny_sd):
    losses = {}
    for text in ("", "cat"):
        with erased(overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"], text=text)) as context:
            for prediction in ("conditional", "guided"):
                _, seen = run(replace(context, shots=one.shots), timesteps=[500], iterations=1, prediction=prediction)
                losses[prediction, text] = float(seen[0]["loss"])
    assert losses["conditional", ""] == losses["conditional", "cat"]
    assert abs(losses["guided", ""] / losses["guided", "cat"] - 1) > 1e-3


def test_pictures_can_be_drawn_from_ids(one, tiny_sd):
    """If the text tokenizes back to the same ids, both give the same image."""
    words = torch.tensor([tiny_sd.token_ids("dog ship church")[1:-1]])
    values = {"name": "p4d_uda", "timesteps": [500], "iterations": 1, "learning_rate": 0.0}
    pictures = [run(one, {"init_ids.0": words}, drawn_from=kind, **values)[0].painted[1] for kind in ("text", "ids")]
    assert pictures[0].shot.prompt.text == "dog ship church a photo of a cat"
    assert pictures[0].image.tobytes() == pictures[1].image.tobytes()


def test_the_ledger_counts_pictures_too(one):
    """With guidance, an image with one step costs two evaluations. The original's image is counted as well."""
    ledger = run(one, timesteps=2, iterations=2)[0].ledger
    assert (ledger.forwards, ledger.backwards, ledger.images) == (4 + 2 * (3 + 1), 4, 3)


@pytest.mark.parametrize(
    "values", [{"timesteps": 0}, {"timesteps": []}, {"timesteps": [1000]}, {"timesteps": 1001}, {"iterations": 0}]
)
def test_numbers_that_mean_nothing_are_refused(one, values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        run(one, **values)
