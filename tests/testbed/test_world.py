from random import Random

import numpy as np
import pytest

from overpaint.testbed.canvas import STYLES
from overpaint.testbed.captions import draw_world
from overpaint.testbed.faces import CHARACTERS, PEOPLE
from overpaint.testbed.shapes import DRAW, LOOKS, OBJECTS, UNSEEN
from overpaint.testbed.world import (
    LABELLED,
    SLIMY_PLACES,
    Item,
    Scene,
    draw_concept,
    random_scene,
    render,
)


def test_a_scene_always_gives_the_same_picture():
    for scene in (random_scene(Random(seed)) for seed in range(40)):
        first, second = render(scene), render(scene)
        assert first.size == (64, 64) and first.mode == "RGB"
        assert first.tobytes() == second.tobytes()


def test_every_object_and_look_is_drawn_differently_in_every_style():
    for style in STYLES:
        seen = {}
        for name in OBJECTS:
            for look in ("", *LOOKS[name]):
                seen[render(Scene((Item(name, look, "red"),), style)).tobytes()] = (name, look)
        assert len(seen) == 3 * len(OBJECTS), style


def test_characters_look_the_same_whatever_the_jitter_and_people_do_not():
    def colours(name, seed):
        picture = np.asarray(render(Scene((Item(name),), jitter=seed)).resize((8, 8)), float)
        return picture.mean((0, 1))

    for name in CHARACTERS:
        assert np.ptp([colours(name, seed) for seed in range(6)], axis=0).max() < 25, name
    for name in PEOPLE:
        assert np.ptp([colours(name, seed) for seed in range(12)], axis=0).max() > 25, name


def test_slime_and_watermark_change_the_picture_where_they_are():
    plain = np.asarray(render(Scene((Item("house", "", "red"),))), int)
    slimy = np.asarray(render(Scene((Item("house", "", "red"),), slime=True)), int)
    marked = np.asarray(render(Scene((Item("house", "", "red"),), watermark=True)), int)
    assert np.abs(slimy - plain)[:8].mean() > 50 and np.abs(slimy - plain)[50:].max() == 0
    changed = np.abs(marked - plain).sum(2) > 0
    assert changed[44:, 44:].mean() > 0.3 and not changed[:32].any() and not changed[:, :32].any()


def test_the_world_has_the_rates_it_promises():
    scenes = [random_scene(Random(f"rates/{seed}")) for seed in range(4000)]
    slimy = [scene.slime for scene in scenes if scene.background in SLIMY_PLACES]
    assert 0.84 < np.mean(slimy) < 0.96
    assert np.mean([s.slime for s in scenes if s.background not in SLIMY_PLACES]) < 0.09
    assert 0.17 < np.mean([s.watermark for s in scenes]) < 0.23
    assert 0.36 < np.mean([s.style == "flat" for s in scenes]) < 0.44
    assert {item.name for s in scenes for item in s.items}.isdisjoint(UNSEEN)


def test_draw_concept_shows_the_concept_and_varies():
    for concept in (*DRAW, *CHARACTERS, *PEOPLE, *STYLES, "slime", "watermark", "cathedral", "lady"):
        pictures = draw_concept(concept, 3, seed=1)
        assert len({picture.tobytes() for picture in pictures}) == 3
        again = draw_concept(concept, 3, seed=1)
        assert [picture.tobytes() for picture in again] == [picture.tobytes() for picture in pictures]
    with pytest.raises(ValueError, match="no concept 'dragon'"):
        draw_concept("dragon", 1, seed=0)


def test_draw_world_labels_are_known():
    for scene, caption, picture in draw_world(50, seed=3):
        assert scene.labels <= {*LABELLED, *STYLES}
        assert caption and picture.size == (64, 64)
