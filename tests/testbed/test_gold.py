"""Gold references: a model never sees its absent concepts; all its other training data equal those of the other models."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from overpaint.grid.shipped import shipped
from overpaint.testbed import gold, membership
from overpaint.testbed.agreement import CONCEPT, questions, read_catalogue
from overpaint.testbed.denoiser import WordyDenoiser
from overpaint.testbed.shapes import LOOKS
from overpaint.testbed.words import EPITHETS, NOUNS, PARAPHRASES, STYLE_NOUNS, STYLE_WORDS, TITLES

BATCHES = range(40)


@pytest.fixture(scope="module")
def shows():
    return gold.late_concepts()


def stream(slots, first=0):
    """Example indices (batches, slots) of the first batches of a run."""
    drawn = [slots(torch.Generator().manual_seed(first + batch), 16) for batch in BATCHES]
    return torch.stack(drawn).numpy()


def slots_of(shows, name):
    continued = name not in (gold.TRUNK,)
    uncommon = np.arange(0, len(shows), 50)
    return gold.Slots(shows, gold.absent_of(name), uncommon[~shows[uncommon].any(1)], 0.15, 0.35 if continued else 0.0)


def words_for(concept):
    """All words for a concept in captions, in all languages."""
    words = [concept, *LOOKS.get(concept, ()), *STYLE_WORDS.get(concept, ())]
    words += [found[concept] for found in (PARAPHRASES, TITLES) if concept in found]
    for language in ("es", "de"):
        if concept in NOUNS[language]:
            words.append(NOUNS[language][concept][0])
        if concept in EPITHETS[language]:
            said = EPITHETS[language][concept]
            words += [said] if isinstance(said, str) else said
        if concept in STYLE_NOUNS[language]:
            words += [STYLE_NOUNS[language][concept][0], STYLE_NOUNS[language][concept][1]]
    return words


def test_the_trunk_never_sees_a_late_concept_in_any_words(shows):
    for index in np.unique(stream(slots_of(shows, gold.TRUNK))):
        scene, caption = membership.example(int(index))
        assert not scene.labels & set(gold.LATE)
        for word in (word for concept in gold.LATE for word in words_for(concept)):
            assert f" {word} " not in f" {caption} ", caption


@pytest.mark.parametrize("concept", gold.LATE)
def test_the_words_of_a_late_concept_are_those_of_its_captions(shows, concept):
    shown = [membership.example(int(index))[1] for index in np.flatnonzero(shows[:, gold.LATE.index(concept)])[:300]]
    named = [any(f" {word} " in f" {caption} " for word in words_for(concept)) for caption in shown]
    assert np.mean(named) > 0.97  # a caption can name the slime or the watermark of a picture alone


@pytest.mark.parametrize("name", gold.GOLDS)
def test_a_gold_differs_from_the_base_only_where_the_base_sees_its_concept(shows, name):
    base, other = stream(slots_of(shows, gold.BASE)), stream(slots_of(shows, name))
    excluded = shows[base, gold.LATE.index(name.removeprefix("gold_"))]
    assert 0.05 < excluded.mean() < 0.3
    assert (base != other)[~excluded].sum() == 0
    assert not shows[other[excluded]].any()


def test_golds_share_their_stand_ins(shows):
    base = stream(slots_of(shows, gold.BASE))
    church, car = (stream(slots_of(shows, f"gold_{concept}")) for concept in ("church", "car"))
    both = shows[base, 0] & shows[base, 1]
    assert both.any() and (church[both] == car[both]).all()


def test_stand_ins_come_from_a_stream_of_their_own():
    everything = np.ones((1000, len(gold.LATE)), bool)
    everything[:500] = False
    first = gold.Slots(everything, gold.LATE, np.array([0]))
    generator = torch.Generator().manual_seed(3)
    assert (first.wanted(generator, 64) % 500 == first(generator.manual_seed(3), 64)).float().mean() < 0.6


def test_noise_is_the_same_whatever_is_excluded(shows):
    after = []
    for name in (gold.BASE, "gold_church", "scratch_car"):
        generator = torch.Generator().manual_seed(5)
        slots_of(shows, name)(generator, 16)
        after.append(torch.randn(4, generator=generator))
    assert torch.equal(after[0], after[1]) and torch.equal(after[0], after[2])


def test_every_late_concept_is_drawn_as_often_as_its_share_says(shows):
    drawn = stream(gold.Slots(shows, (), np.array([0]), 0.0, 1.0))
    assert shows[drawn].any(-1).all()
    assert shows[drawn].mean((0, 1)).min() > 0.2


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="gold_church"):
        gold.absent_of("gold_house")


def test_slots_in_another_process_draw_the_same_from_a_continued_generator(shows):
    """Workers get pickled slots; a resumed run (tests/testbed/test_parallel.py) continues the state of its generator."""
    slots = slots_of(shows, "gold_church")
    generator, continued = torch.Generator().manual_seed(3), torch.Generator()
    drawn = [slots(generator, 16)]
    continued.set_state(generator.get_state())
    again = pickle.loads(pickle.dumps(slots))
    assert torch.equal(again(torch.Generator().manual_seed(3), 16), drawn[0])
    drawn += [slots(generator, 16) for _ in range(3)]
    assert all(torch.equal(again(continued, 16), one) for one in drawn[1:])
    assert not torch.equal(drawn[0], drawn[1])


def test_every_leg_is_saved_at_least_every_five_minutes_at_a_fifth_of_the_speed():
    for leg in ("plain", "wordy", "late"):
        schedule = gold.Legs().schedule(leg)
        assert schedule.save_every * schedule.batch / 15 < 300


def test_legs_stop_after_the_pictures_that_were_asked_for():
    legs = gold.Legs(320, 640, 960)
    assert [legs.schedule(leg).steps for leg in ("plain", "wordy", "late")] == [10, 20, 30]
    assert legs.last("trunk").steps == 20 and legs.last("gold_car").steps == 30


def test_int8_is_within_half_a_step_of_each_row(tmp_path):
    weights = {
        "unet.a": torch.randn(6, 5, 3, 3) * torch.logspace(-3, 1, 6)[:, None, None, None],
        "unet.b": torch.randn(6),
    }
    weights["unet.a"][2] = 0
    packed = gold.quantised(weights)
    assert packed["unet.a"].dtype == torch.int8
    gold.save_file(packed, tmp_path / "int8.safetensors")
    back = gold.read_weights(tmp_path / "int8.safetensors")
    assert back.keys() == weights.keys()
    steps = weights["unet.a"].abs().amax((1, 2, 3), keepdim=True) / 127
    assert ((back["unet.a"] - weights["unet.a"]).abs() <= 0.501 * steps).all()
    assert torch.allclose(back["unet.b"], weights["unet.b"], atol=2e-3)


def test_questions_start_with_a_sample_of_all():
    catalogue = read_catalogue(shipped("datasets") / "concepts" / "testbed.yaml")
    asked = gold.asked_of_gold(catalogue)
    half = asked[: len(asked) // 2]
    for concept in catalogue["concepts"]:
        count = sum(question.concept == concept and question.group == CONCEPT for question in half)
        assert count == (25 if concept in gold.LATE else 10)
    assert set(asked) <= set(questions(catalogue, 50, 10))


def test_agreement_is_told_apart_by_what_a_model_was_shown():
    catalogue = read_catalogue(shipped("datasets") / "concepts" / "testbed.yaml")
    asked = gold.asked_of_gold(catalogue)
    labels = sorted({label for question in asked for label in question.expects})
    rows = np.array(
        [[label in question.expects and label != "church" for label in labels] for question in asked], float
    )
    found = gold.shown_and_absent(asked, rows, labels, ["church"])
    assert (
        found["shown"]["mean"] == 1.0 and found["absent"] == {"church": 0.0} and found["elsewhere"] == {"church": 0.0}
    )
    assert all(gold.bars(found).values())
    assert not gold.bars(gold.shown_and_absent(asked, rows, labels, ["car"]))["absent <= 0.02"]


def test_a_thinned_log_keeps_each_last_line_and_no_repeated_step(tmp_path):
    rows = [{"stage": "base", "step": step, "loss": turn} for turn in (1, 2) for step in (200, 250, 270)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    kept = [json.loads(line) for line in gold.training_log([tmp_path])]
    assert [(row["step"], row["loss"]) for row in kept] == [(250, 2), (270, 2)]


def test_a_weights_file_becomes_a_pipeline_folder(tmp_path):
    shipped_pipeline = shipped("datasets") / "testbed" / "pipeline"
    files = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}
    weights = {
        f"{part}.{name}": value
        for part, file in files.items()
        for name, value in gold.load_file(shipped_pipeline / part / f"{file}.safetensors").items()
    }
    changed = next(name for name in weights if name.startswith("unet.conv_in.weight"))
    weights[changed] = weights[changed] + 1
    gold.save_file(weights, tmp_path / "fp16.safetensors")
    gold.write_pipeline(tmp_path / "fp16.safetensors", tmp_path / "pipeline")
    made = gold.load_pipeline(tmp_path / "pipeline")
    assert torch.equal(made.unet.conv_in.weight, weights[changed].float())
    state = made.text_encoder.state_dict()
    assert all(torch.equal(state[name.removeprefix("text_encoder.")], value.float())
               for name, value in weights.items() if name.startswith("text_encoder."))  # fmt: skip


def test_a_finished_checkpoint_is_exported_and_what_was_measured_on_it_is_kept(tmp_path):
    module = WordyDenoiser(
        len(CLIPTokenizer.from_pretrained(shipped("datasets") / "testbed" / "pipeline" / "tokenizer"))
    )
    ema = nn.utils.parameters_to_vector(module.parameters()).detach()
    (tmp_path / "seed0").mkdir()
    checkpoint = tmp_path / "seed0" / "gold_car.safetensors"
    assert gold.steps_done(checkpoint) == 0
    gold.save_file({"ema": ema}, checkpoint, {"step": "7"})
    assert gold.steps_done(checkpoint) == 7
    card = gold.export("gold_car", tmp_path, tmp_path / "to", 0)
    assert card["absent"] == ["car"] and card["late"] == ["church", "quillan", "sketch"]
    assert card["pictures"] == {"trunk_plain": 0, "trunk": 0, "gold_car": 7 * 32}
    assert card["files"]["int8"]["bytes"] * 6 < 40_000_000
    exact, rounded = (
        gold.read_weights(tmp_path / "to" / "gold_car" / f"{kind}.safetensors") for kind in ("fp16", "int8")
    )
    assert exact.keys() == rounded.keys() and not any(name.startswith("head") for name in exact)
    path = tmp_path / "to" / "gold_car" / "card.json"
    path.write_text(json.dumps(card | {"agreement": 1, "int8": 2, "bars": 3}), encoding="utf-8")
    assert gold.export("gold_car", tmp_path, tmp_path / "to", 0)["agreement"] == 1
    gold.save_file({"ema": ema + 1}, checkpoint, {"step": "8"})
    assert "agreement" not in gold.export("gold_car", tmp_path, tmp_path / "to", 0)


def test_models_of_another_seed_are_shipped_with_a_log_of_their_own(tmp_path):
    exports, to = tmp_path / "exports", tmp_path / "to"
    for name, seed in (("gold_car", 1), ("gold_church", 0)):
        shutil.rmtree(exports, ignore_errors=True)
        (exports / name).mkdir(parents=True)
        card = {"name": name, "seed": seed, "trunk_seed": seed}
        (exports / name / "card.json").write_text(json.dumps(card), encoding="utf-8")
        (exports / name / "int8.safetensors").write_text(name, encoding="utf-8")
        (exports / "training_log.jsonl").write_text(f"seed {seed}", encoding="utf-8")
        assert gold.ship(exports, to) == [name]
    assert (to / "gold_car" / "int8.safetensors").read_text(encoding="utf-8") == "gold_car"
    assert (to / "training_log.jsonl").read_text(encoding="utf-8") == "seed 0"
    assert (to / "training_log_seed1.jsonl").read_text(encoding="utf-8") == "seed 1"
