"""Controls: chance at the same number of images."""

from dataclasses import replace

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
