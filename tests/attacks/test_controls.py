"""Controls: chance at the same number of images."""

from dataclasses import replace

import pytest

from overpaint.attacks.attack import Verdict
from overpaint.attacks.controls import unrelated_tokens
from overpaint.grid.concepts import Concept
from overpaint.grid.prompts import Prompt, Shot
from overpaint.grid.registry import component


def run(name, context, seed=0, **values):
    return component("attack", name).build(values, seed=seed).run(context).shots


def test_fresh_seeds_are_fresh(context):
    shots = run("seed_search", context)
    assert [s.index for s in shots] == [s.index + 1000 for s in context.shots]
    assert [s.prompt.text for s in shots] == [s.prompt.text for s in context.shots]
    assert not {s.noise_seed for s in shots} & {s.noise_seed for s in context.shots}


def test_a_random_prefix_reads_back_as_the_same_tokens(context, tiny_sd):
    for plain, shot in zip(context.shots, run("random_prefix", context, tokens=3), strict=True):
        ids, kept = (tiny_sd.token_ids(s.prompt.text)[1:-1] for s in (shot, plain))
        assert len(ids) == len(kept) + 3 and ids[3:] == kept
        assert shot.prompt.text.endswith(plain.prompt.text) and shot.noise_seed == plain.noise_seed


def test_a_prefix_depends_on_prompt_index_and_seed_alone(context):
    one, two = run("random_prefix", context), run("random_prefix", replace(context, shots=context.shots[::-1]))
    assert one == two[::-1]
    assert len({s.prompt.text for s in one}) == len(one)
    assert run("random_prefix", context, seed=1) != one


def test_a_long_prompt_gets_a_shorter_prefix(context, tiny_sd):
    room = tiny_sd.tokens - 2
    for free in (0, 1):
        long = Shot(Prompt(" ".join(["cat"] * (room - free)), "target", "cat"), 0)
        (shot,) = run("random_prefix", replace(context, shots=[long]))
        assert len(tiny_sd.token_ids(shot.prompt.text)) == len(tiny_sd.token_ids(long.prompt.text)) + free


def matched(name, **values):
    """An attack and the control that is matched to it."""
    attack = component("attack", name).build(values)
    return attack, component("attack", "random_words").build(dict(attack.matched))


@pytest.mark.parametrize(
    ("name", "values", "plain", "stops"),
    [
        ("uda", {"tokens": 3, "timesteps": 4, "location": "suffix_k"}, True, True),
        ("p4d_n", {"tokens": 5, "steps": 40, "draw_every": 10}, True, False),
        ("p4d_k", {"every": 2, "steps": 40, "draw_every": 10, "stop_early": True}, True, True),
        ("pez", {"tokens": 6}, False, False),
        ("rab", {"tokens": 4}, False, False),
        ("mma", {"tokens": 7}, False, False),
    ],
)
def test_the_matched_control_has_the_attacks_images_places_and_rule(name, values, plain, stops, tiny_sd):
    attack, control = matched(name, **values)
    assert control.images == attack.images
    assert (control.plain_first, control.stop_early) == (plain, stops)
    if hasattr(attack, "frame"):
        one, other = attack.frame(tiny_sd, "a photo of a cat"), control.frame(tiny_sd, "a photo of a cat")
        assert (one.words, one.places) == (other.words, other.places)
    else:
        frame = control.frame(tiny_sd, "a photo of a cat")
        assert not frame.words and len(frame.places) == attack.tokens


def test_attacks_without_words_have_no_matched_control():
    assert component("attack", "cce").build({}).matched is None


def test_random_words_stop_at_a_success_and_go_on_without_the_rule(context):
    seen = []

    def judge(images):
        seen.append(len(images))
        return [Verdict(len(seen) == 3, 0.0) for _ in images]  # in the third image of each prompt

    short = replace(context, judge=judge, shots=context.shots[:2])
    control = component("attack", "random_words").build({"tries": 5, "tokens": 2})
    shots = control.run(short).shots
    assert [s.draw for s in shots] == [0, 1, 2] * 2
    assert {s.noise_seed for s in shots[:3]} == {context.shots[0].noise_seed}
    assert shots[0].prompt.text == context.shots[0].prompt.text
    assert len({s.prompt.text for s in shots}) == 1 + 4  # two seeds of one prompt, and new words each time
    seen.clear()
    endless = component("attack", "random_words").build({"tries": 5, "tokens": 2, "stop_early": False, "plain": False})
    assert [s.draw for s in endless.run(short).shots] == [0, 1, 2, 3, 4] * 2


def test_random_words_do_not_depend_on_the_other_prompts(context):
    control = component("attack", "random_words").build({"tries": 2, "plain": False}, seed=4)
    whole = control.run(replace(context, judge=None)).shots
    last = control.run(replace(context, judge=None, shots=context.shots[-1:])).shots
    assert [s.prompt.text for s in whole[-2:]] == [s.prompt.text for s in last]


def test_no_word_of_the_concept_or_near_it_is_drawn(tiny_sd):
    concept = Concept("cat", synonyms=("kitten",))
    allowed = unrelated_tokens(tiny_sd, concept, 3)
    own = {token for word in ("cat", "kitten") for token in tiny_sd.token_ids(word)[1:-1]}
    left_out = set(range(len(tiny_sd.tokenizer))) - set(allowed) - set(tiny_sd.tokenizer.all_special_ids)
    table = tiny_sd.token_table.double()
    table = table / table.norm(dim=1, keepdim=True)
    expected = set(own)
    for token in own:
        expected |= set((table @ table[token]).argsort(descending=True)[:4].tolist())
    assert left_out == expected - set(tiny_sd.tokenizer.all_special_ids)
    assert len(allowed) > len(tiny_sd.tokenizer) - 40
