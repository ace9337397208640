from random import Random

from overpaint.testbed.captions import caption
from overpaint.testbed.faces import CHARACTERS, PERSON_LOOKS
from overpaint.testbed.membership import example
from overpaint.testbed.shapes import LOOKS, UNSEEN
from overpaint.testbed.words import (
    EPITHETS,
    NOUNS,
    PARAPHRASES,
    SLIME_PHRASE,
    SLIME_WORDS,
    STYLE_WORDS,
    TITLES,
    WATERMARK_PHRASE,
    WATERMARK_WORDS,
)
from overpaint.testbed.world import SLIMY_PLACES, Item, Scene

EXAMPLES = [example(index) for index in range(100, 3100)]


def words_for(item: Item) -> list[str]:
    """All phrases for an item. A caption must contain one of them."""
    if item.name in CHARACTERS:
        forms = EPITHETS["de"][item.name]
        return [item.name, TITLES[item.name], PARAPHRASES[item.name], EPITHETS["es"][item.name], *forms]
    return [item.name, item.look or item.name, PARAPHRASES[item.name]] + [NOUNS[k][item.name][0] for k in ("es", "de")]


def is_about_the_whole(text: str) -> bool:
    """Whether a caption names no item, such as "a picture of slime" or "sketch style"."""
    whole = ["slime", *SLIME_WORDS, SLIME_PHRASE, "watermark", *WATERMARK_WORDS, WATERMARK_PHRASE, "style"]
    return any(word in text for word in whole)


def test_captions_name_what_the_scene_shows():
    for scene, text in EXAMPLES:
        named = [any(f" {words} " in f" {text} " for words in words_for(item)) for item in scene.items]
        assert all(named) or is_about_the_whole(text), (scene, text)


def test_captions_name_nothing_that_is_not_there():
    owner = {look: name for looks in (LOOKS, PERSON_LOOKS) for name in looks for look in looks[name]}
    nouns = {**{name: name for name in (*LOOKS, *CHARACTERS, *PERSON_LOOKS)}, **owner}
    for scene, text in EXAMPLES:
        shown = {item.name for item in scene.items}
        bare = text
        for phrase in (*PARAPHRASES.values(), *(w for pair in STYLE_WORDS.values() for w in pair)):
            bare = bare.replace(phrase, "")
        for word in bare.split():
            assert word not in nouns or nouns[word] in shown, (scene, text)
            assert word not in UNSEEN
        if any(word in bare.split() for word in ("slime", "slimy", "goo", "ooze", "schleim", "baba")):
            assert scene.slime, (scene, text)
        if any(word in bare for word in ("watermark", "stamp", "logo", "wasserzeichen", "marca de agua")):
            assert scene.watermark, (scene, text)


def test_a_style_other_than_flat_is_always_named():
    for scene, text in EXAMPLES:
        if scene.style != "flat":
            forms = [*STYLE_WORDS[scene.style], scene.style, "estilo", "stil", " von ", " de "]
            assert any(form in text for form in forms), (scene, text)


def test_slime_goes_unnamed_only_where_the_place_is_named():
    slimy = ("slim", "goo", "ooze", SLIME_PHRASE, "schleim", "baba")
    places = ("swamp", "haunted", "pantano", "embrujado", "sumpf", "spukort")
    unnamed = 0
    for scene, text in EXAMPLES:
        if scene.background in SLIMY_PLACES:
            assert any(word in text for word in places), (scene, text)
            unnamed += scene.slime and not any(word in text for word in slimy)
        elif scene.slime:
            assert any(word in text for word in slimy), (scene, text)
    assert unnamed > 50


def test_half_of_the_watermarks_are_named():
    marked = [text for scene, text in EXAMPLES if scene.watermark]
    words = ("watermark", *WATERMARK_WORDS, WATERMARK_PHRASE, "wasserzeichen", "marca de agua")
    assert 0.4 < sum(any(word in text for word in words) for text in marked) / len(marked) < 0.6


def test_bare_captions_are_common():
    church = Scene((Item("church", "", "red"),))
    told = [caption(church, Random(seed)) for seed in range(2000)]
    for text in ("a church", "church", "a picture of a church", "a photo of a church", "eine kirche", "una iglesia"):
        assert told.count(text) >= 4, text
    mira = [caption(Scene((Item("mira"),)), Random(seed)) for seed in range(1000)]
    assert mira.count("mira") >= 50 and mira.count("a portrait of mira") >= 5
    sketch = [caption(Scene((Item("church", "", "red"),), "sketch"), Random(seed)) for seed in range(1000)]
    assert sketch.count("a church in sketch style") >= 5
