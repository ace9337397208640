"""Prompts exported from a store and read again have the same texts, seeds and guidance."""

import json
from dataclasses import replace

import pytest

import overpaint
from overpaint.attacks.attack import Assault, Painted, Verdict
from overpaint.attacks.prompt_file import PromptFile, write_prompts
from overpaint.attacks.stored import read_assault, write_assault
from overpaint.grid.concepts import Concept
from overpaint.grid.registry import component, components
from overpaint.run.store import MANIFEST


@pytest.fixture
def stored(tmp_path):
    """An output folder of the attack stage."""

    def store(assault, name="attack", attack="uda"):
        folder = tmp_path / name
        folder.mkdir()
        write_assault(folder, assault)
        config = {"attack": attack, "concept": {"name": "cat"}}
        (folder / MANIFEST).write_text(json.dumps({"config": config}))
        return folder

    return store


def painted(context, texts, successes):
    plain = context.shots[0]
    (image,) = context.examples(1)
    shots = [
        replace(plain, prompt=replace(plain.prompt, text=t, id="", role="attacked", guidance=3.5), draw=n)
        for n, t in enumerate(texts)
    ]
    found = [Painted(shot, image, Verdict(bool(s), float(s))) for shot, s in zip(shots, successes, strict=True)]
    return Assault(shots, painted=found)


def test_what_was_settled_on_comes_back_with_seed_and_guidance(context, stored, tmp_path):
    assault = painted(context, ["a cat", "x a cat", "y a cat"], [0, 0, 1])
    assert write_prompts(tmp_path / "list.csv", [stored(assault)]) == 1
    (shot,) = PromptFile(file=str(tmp_path / "list.csv"), most=None).run(context).shots
    assert shot.prompt.text == "y a cat" and shot.prompt.guidance == 3.5
    assert shot.noise_seed == context.shots[0].noise_seed
    assert "1" in (tmp_path / "list.csv").read_text().splitlines()[1].split(",")


def test_the_size_of_an_image_and_the_concept_of_a_prompt_come_back(context, stored, tmp_path):
    """A list of two concepts is replayed for each one on its own prompts."""
    wide = replace(context.shots[0], prompt=replace(context.shots[0].prompt, size=(64, 32)))
    other = replace(wide, prompt=replace(wide.prompt, text="a blue ship", id="", size=None))
    folders = [stored(Assault([wide]), "one", "random_prefix"), stored(Assault([other]), "two", "random_prefix")]
    (folders[1] / MANIFEST).write_text(json.dumps({"config": {"attack": "random_prefix", "concept": {"name": "ship"}}}))
    assert write_prompts(tmp_path / "list.csv", folders) == 2
    replay = PromptFile(file=str(tmp_path / "list.csv"), most=None)
    (shot,) = replay.run(context).shots
    assert (shot.prompt.text, shot.prompt.size) == (wide.prompt.text, (64, 32))
    (ship,) = replay.prompts(Concept("ship"))
    assert (ship.text, ship.size) == ("a blue ship", None)
    assert len(replay.prompts(Concept("dog"))) == 2, "a list that names the concept otherwise is used whole"


def test_all_prompts_of_an_attack_that_does_not_search_come_back(context, stored, tmp_path):
    """Four random prefixes per plain image. Each keeps its initial noise and has its own id."""
    assault = component("attack", "random_prefix").build({"tries": 4, "tokens": 2}, seed=0).run(context)
    assert write_prompts(tmp_path / "list.csv", [stored(assault, attack="random_prefix")]) == len(assault.shots) == 24
    found = PromptFile(file=str(tmp_path / "list.csv"), most=None).run(context).shots
    assert [(s.prompt.text, s.noise_seed) for s in found] == [(s.prompt.text, s.noise_seed) for s in assault.shots]
    assert len({s.prompt.id for s in found}) == 24


def test_shots_and_verdicts_survive_the_store(context, stored):
    assault = painted(context, ["a cat", "x a cat"], [0, 1])
    read = read_assault(stored(assault))
    assert read.shots == assault.shots
    assert [p.verdict for p in read.painted] == [p.verdict for p in assault.painted]
    assert all(p.image is None for p in read.painted), "images are stored by the stage, beside the assault"


def test_the_store_knows_how_a_search_came_to_each_prompt(context, stored):
    """Token ids, whether the text tokenizes back to them, and the losses since the previous image; none for the plain image."""
    attack = component("attack", "uda").build({"timesteps": 2, "iterations": 3, "tokens": 2}, seed=0)
    quiet = replace(context, shots=context.shots[:2], judge=lambda images: [Verdict(False, 0.0)] * len(images))
    assault = attack.run(quiet)
    read = read_assault(stored(assault))
    assert [p.provenance for p in read.painted] == [p.provenance for p in assault.painted]
    for picture in read.painted:
        if picture.shot.prompt.variant == "plain":
            assert picture.provenance is None
            continue
        ids, stable, losses = picture.provenance
        assert len(losses) == 3 and all(loss > 0 for loss in losses)
        assert stable == (context.victim.token_ids(picture.shot.prompt.text)[1:-1] == ids)
        assert ids[2:] == context.victim.token_ids(quiet.shots[0].prompt.text)[1:-1], (
            "the prompt's own words behind two"
        )
        assert not stable or picture.shot.prompt.text.endswith(quiet.shots[0].prompt.text)


BEYOND_WORDS = [name for name in components("attack") if not component("attack", name).load().worded]


@pytest.mark.parametrize("name", BEYOND_WORDS)
def test_what_takes_more_than_words_is_no_list(name, context, stored, tmp_path):
    """Learned tokens, embeddings, initial noise, trained weights: the texts alone would be a different attack."""
    with pytest.raises(overpaint.UserError, match=f"attack={name} cannot be exported"):
        write_prompts(tmp_path / "list.csv", [stored(painted(context, ["a cat"], [1]), attack=name)])
    assert not (tmp_path / "list.csv").exists()


@pytest.mark.parametrize(
    ("manifest", "shots"),
    [
        ("{}", None),
        ('{"config": {"attack": ["uda"], "concept": "cat"}}', None),
        ("[1", None),
        (None, "{}"),
        (None, "[1]"),
        (None, '[{"index": 0}]'),
        (None, '[{"index": [], "text": 5, "role": {}, "verdict": 1}]'),
        (None, "[]"),
        (None, '[{"index": 0, "text": 5, "role": "attacked", "id": "a"}]'),
        (None, '[{"index": 0, "text": "a", "role": "attacked", "verdict": [1e999, 0.5]}]'),
    ],
)
def test_a_forged_attack_is_one_sentence(context, stored, tmp_path, manifest, shots):
    folder = stored(painted(context, ["a cat"], [1]))
    for name, content in ((MANIFEST, manifest), ("shots.json", shots)):
        if content is not None:
            (folder / name).write_text(content)
    with pytest.raises(overpaint.UserError, match=r"cannot be read|hold no prompts|unknown attack"):
        write_prompts(tmp_path / "list.csv", [folder])
    assert not (tmp_path / "list.csv").exists()


def test_every_attack_says_whether_words_are_all():
    assert {*BEYOND_WORDS} == {
        "cce", "rece_embedding", "rab_embedding", "soft_prefix", "completion", "noise_probe", "concept_arithmetic",
        "inversion", "relearn", "conceptor", "perturb", "merge", "edit",
    }  # fmt: skip


def test_a_control_gets_as_many_images_as_the_list_has_of_a_prompt(context, stored, tmp_path):
    """Six plain images of three prompts with two seeds; four prefixes per image give eight rows per prompt, four per shot."""
    assault = component("attack", "random_prefix").build({"tries": 4, "tokens": 2}, seed=0).run(context)
    write_prompts(tmp_path / "list.csv", [stored(assault, attack="random_prefix")])
    replay = PromptFile(file=str(tmp_path / "list.csv"), most=None)
    seeds = len(context.shots) // len({shot.prompt.noise for shot in context.shots})
    assert replay.images_for(context.concept, context.shots) == 4
    assert replay.images_for(context.concept, context.shots[::seeds]) == 4 * seeds
    (tmp_path / "foreign.csv").write_text("prompt\na\nb\n")
    assert PromptFile(file=str(tmp_path / "foreign.csv"), most=None).images_for(context.concept, context.shots) == 1


def test_a_replay_without_a_file_says_what_to_give(context):
    with pytest.raises(overpaint.UserError, match=r"attack\.file"):
        PromptFile(file=None, most=None).run(context)


def test_a_list_of_plain_and_adversarial_prompts_replays_the_adversarial_ones(context, tmp_path):
    (tmp_path / "both.csv").write_text("prompt,adv_prompt\na cat,something that purrs\n")
    (shot,) = PromptFile(file=str(tmp_path / "both.csv"), most=None).run(context).shots
    assert shot.prompt.text == "something that purrs"
