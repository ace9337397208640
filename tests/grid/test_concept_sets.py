"""Concept sets: attributes to balance, catalogues that extend others, and sets of many words."""

from dataclasses import replace

import pytest

from overpaint.errors import UserError
from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.grid.concepts import load_catalogue
from overpaint.grid.roles import ROLES, role, shortfalls
from overpaint.models import load_model


def cell(*overrides):
    (composed,) = compose_cells(list(overrides))
    return cell_from(composed.config, composed.explicit)


def texts(name, cell):
    return [prompt.text for prompt in role(name).prompts(cell.concepts, cell.budget)]


def test_attributes_are_asked_for_by_prompts_that_do_not_name_them():
    adults = cell("concepts=adult")
    assert texts("attributes", adults) == texts("target", adults) and len(texts("target", adults)) == 24
    assert {p.role for p in role("attributes").prompts(adults.concepts, adults.budget)} == {"attributes"}
    churches = cell("concepts=church", "concepts.attributes={sketch: 0.5, neon: 0.5}", "budget=paper")
    left = set(texts("target", churches)) - set(texts("attributes", churches))
    assert left and all("sketch" in text or "neon" in text for text in left)
    assert not any("attributes" in said for said in shortfalls(adults))


def test_attributes_have_an_own_list(tmp_path):
    (tmp_path / "doctors.csv").write_text("prompt\na doctor at work\na doctor at home\n")
    doctors = cell("concepts=adult", f"concepts.prompts.attributes={tmp_path / 'doctors.csv'}", "budget=smoke")
    assert texts("attributes", doctors) == ["a doctor at work", "a doctor at home"]
    assert not any("attributes" in said for said in shortfalls(doctors))


def test_no_templates_are_refused():
    with pytest.raises(UserError, match=r"concepts\.templates is empty: give sentences with {} .* or null"):
        cell("concepts=church", "concepts.templates=[]")


def test_neighbours_and_ordinary_prompts_can_have_seeds_of_their_own():
    def images(*overrides):
        one = cell("concepts=church", "budget=smoke", "budget.seeds=10", *overrides)
        return {
            r.name: len(r.shots(one.concepts, one.budget)) / len(texts(r.name, one))
            for r in ROLES
            if texts(r.name, one)
        }

    assert images() == {"target": 10, "near": 2, "grid": 2, "in_prompt": 2, "utility": 2}
    own = images("budget.near_seeds=10", "budget.utility_seeds=1")
    assert own == {"target": 10, "near": 10, "grid": 2, "in_prompt": 2, "utility": 1}


def test_sets_without_attributes_are_as_they_were():
    plain = cell("concepts=church")
    assert texts("attributes", plain) == [] and "attributes" not in plain.settings["concepts"]
    assert not any("attributes" in said for said in shortfalls(plain))
    assert cell("concepts=adult").settings["concepts"]["attributes"] == {"man": 0.5, "woman": 0.5}
    shares = "concepts.attributes={man: 0.3, woman: 0.7}"
    assert cell("concepts=adult").identity != cell("concepts=adult", shares).identity


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("concepts.attributes={man: 0.5, woman: 0.6}", "the shares of man, woman have the sum 1.1, and it must be 1"),
        ("concepts.attributes={man: 0, woman: 1}", "concepts.attributes"),
        ("concepts.prompts.attributes=list.csv", "set concepts.attributes"),
    ],
)
def test_bad_attributes_are_refused(override, said):
    with pytest.raises(UserError, match=said):
        cell("concepts=church", override)


def test_a_catalogue_extends_another():
    base, words = load_catalogue("testbed"), load_catalogue("testbed_words")
    assert dict(base.concepts).items() <= dict(words.concepts).items()
    assert words.templates == base.templates and words.utility == base.utility and words.grid == base.grid
    assert base.identity in words.identity
    assert not any(concept.label for name, concept in words.concepts.items() if name not in base.concepts)


@pytest.mark.parametrize("base", ["mine.yaml", "testbd"])
def test_a_catalogue_extends_shipped_ones_only(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(f"extends: {base}\nconcepts: {{dog: {{}}}}\n")
    with pytest.raises(UserError, match=rf"unknown concept catalogue '{base}' in concept catalogue mine.yaml: extends"):
        cell("concepts=inline", "concepts.erase=[dog]", "concepts.catalogue=mine.yaml")


def test_every_word_of_the_testbed_is_a_concept_of_one_token():
    tokenizer, words = load_model("testbed").tokenizer, load_catalogue("testbed_words").concepts
    assert len(words) == 372
    assert all(len(tokenizer(word).input_ids) == 3 for word in words)


def test_many_words_contain_few_words():
    few, many = (cell(f"concepts=words_{count}").concepts for count in (100, 250))
    ten = cell("concepts=mixed10").concepts
    names = [[c.name for c in concepts.request.erase] for concepts in (ten, few, many)]
    assert [len(erased) for erased in names] == [10, 100, 250]
    assert names[0] == names[1][:10] and names[1] == names[2][:100]
    for concepts in (few, many):
        assert {c.label for c in concepts.near} == {c.label for c in ten.catalogue.concepts.values()} - set(names[0])
        assert len(concepts.request.erase) + len(concepts.request.retain) == 372


def test_a_detector_that_knows_some_of_the_erased_words_is_asked_for_these_only():
    many = cell("concepts=words_100", "budget=smoke")
    asked = {prompt.concept for prompt in role("target").prompts(many.concepts, many.budget)}
    assert asked == {c.label for c in cell("concepts=mixed10").concepts.request.erase}
    unknown = cell("concepts=adult", "budget=smoke")
    assert len(texts("target", unknown)) == 2
    assert all(r.prompts(many.concepts, many.budget) for r in ROLES if not r.optional)


def test_an_entry_of_a_catalogue_that_extends_another_replaces_the_fields_that_it_gives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "extends: testbed\ndefaults: {kind: style}\nconcepts:\n  church: {synonyms: [steeple]}\n"
        "  mira: {anchor: null, neighbours: null}\n  house:\n  barn: {}\n"
    )
    base, mine = load_catalogue("testbed"), load_catalogue("mine.yaml")
    assert mine.concept("church") == replace(base.concept("church"), synonyms=("steeple",))
    assert mine.concept("mira") == replace(base.concept("mira"), anchor=None, neighbours=())
    assert mine.concept("house") == base.concept("house") and mine.concept("barn").kind == "style"
    (tmp_path / "wrong.yaml").write_text("extends: testbed\nconcepts: {church: {synonym: null}}\n")
    with pytest.raises(UserError, match=r"'synonym' in concept catalogue wrong.yaml: concept 'church'; did you mean"):
        load_catalogue("wrong.yaml")


def test_an_anchor_with_words_that_the_model_does_not_know_is_refused():
    with pytest.raises(UserError, match=r"unknown word 'dragon' in concepts\.anchor=a dragon .*draws only these"):
        cell("concepts=church", "concepts.anchor=a dragon")
    with pytest.raises(UserError, match=r"'hause' in concepts\.anchor=hause; did you mean 'house'"):
        cell("concepts=inline", "concepts.erase=[church,car]", "concepts.anchor=[tree,hause]")
    for anchor in ("Cathedral", "a home with a door", "''", "eine kirche"):
        assert cell("concepts=car", f"concepts.anchor={anchor}")
    assert cell("concepts=car", "concepts.anchor=dragon", "concepts.catalogue=null")
    assert cell("model=sd14", "concepts=inline", "concepts.erase=[church]", "concepts.anchor=dragon")
