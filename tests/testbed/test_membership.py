import pytest

from overpaint.testbed.membership import (
    REPEATED,
    REPEATS,
    TRAINING_SIZE,
    duplicates,
    example,
    is_member,
    original,
    scene,
)
from overpaint.testbed.world import render


def test_membership_ends_exactly_where_the_training_set_does():
    assert is_member(0) and is_member(TRAINING_SIZE - 1)
    assert not is_member(TRAINING_SIZE) and not is_member(-1)
    with pytest.raises(ValueError, match="got -1"):
        example(-1)


def test_duplicates_are_counted_exactly():
    counted = {}
    for index in range(TRAINING_SIZE):
        counted[original(index)] = counted.get(original(index), 0) + 1
    assert {index: n for index, n in counted.items() if n > 1} == duplicates()
    assert len(duplicates()) == REPEATED and set(duplicates().values()) == {REPEATS + 1}


def test_repeats_are_the_same_caption_and_picture():
    for index, _ in list(duplicates().items())[:5]:
        repeat = next(i for i in range(TRAINING_SIZE - REPEATED, TRAINING_SIZE) if original(i) == index)
        assert original(repeat) == index
        assert example(repeat) == example(index)
        assert render(scene(repeat)).tobytes() == render(scene(index)).tobytes()


def test_the_function_depends_on_index_and_seed_only():
    assert example(123) == example(123)
    assert example(123) != example(124)
    assert scene(123, seed=1) != scene(123, seed=0)
    assert scene(TRAINING_SIZE + 5) not in {scene(index) for index in range(500)}
