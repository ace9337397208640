"""Grids that a plan refuses, and prompts that it warns of, before anything is computed."""

import shutil

import pytest
from plans import plan

from overpaint.errors import UserError
from overpaint.grid.registry import component


def test_prompts_of_lists_that_ask_for_a_label_the_detector_lacks_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.csv").write_text("prompt,concept\na zebra,zebra\na house,house\n")
    (tmp_path / "both.csv").write_text("prompt,concept,expects\nx,church,church;unicorn\ny,church,church;tree\n")
    lists = "concepts.prompts={near: near.csv, in_prompt: both.csv, utility: null}"
    grid = ("method=none", "concepts=church", "attack=none", "budget=smoke", lists)
    lacking = [note for note in plan(*grid).notes if "no label" in note]
    why = "for which detector=oracle has no label, so it does not score their images"
    assert lacking == [
        f"near prompts: 1 of 2 of near.csv ask for zebra, {why}",
        f"in_prompt prompts: 1 of 2 of both.csv ask for unicorn, {why}",
    ]
    assert not any("no label" in note for note in plan(*grid, "model.detector=null").notes)


def test_sizes_that_the_model_has_no_images_of_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"protocol.size=63: .* multiples of 4 pixels; near 63 are 60 and 64"):
        plan("method=none", "attack=none", "budget=smoke", "protocol.size=63")
    listed = tmp_path / "p.csv"
    listed.write_text("prompt,width,height\na church,64,64\na red church,64,66\n")
    lists = ("method=none", "attack=none", "budget=smoke", f"concepts.prompts.target={listed}")
    with pytest.raises(UserError, match=r"prompt 'a red church' of 64 × 66 pixels: .*; near 66 are 64 and 68"):
        plan(*lists, "protocol.size=null")
    assert plan(*lists, "protocol.size=64")  # replaces those of the list


@pytest.mark.parametrize("attack", ["uda", "completion", "cce"])
def test_an_attack_on_images_of_one_size_refuses_prompts_with_sizes_of_their_own(attack, tmp_path):
    listed = tmp_path / "p.csv"
    listed.write_text("prompt,width,height\na church,64,64\na red church,64,72\n")
    asked = ("method=uce", f"attack={attack}", "budget=smoke", "concepts=church", f"concepts.prompts.target={listed}")
    own = rf"attack={attack} works on images of one size, .* concepts=church .* \(64×64 and others\): set protocol.size=64"
    with pytest.raises(UserError, match=own):
        plan(*asked, "protocol.size=null")
    assert plan(*asked, "protocol.size=64")
    assert plan(*asked[:1], "attack=seed_search,random_prefix", *asked[2:], "protocol.size=null")


@pytest.fixture
def unloadable(tiny_sdxl_folder, tmp_path, monkeypatch):
    """A folder that names SDXL's pipeline and holds nothing else. Reading its weights would fail."""
    (tmp_path / "sdxl").mkdir()
    shutil.copy(tiny_sdxl_folder / "model_index.json", tmp_path / "sdxl")
    monkeypatch.setattr(
        "overpaint.images.task_parts.fingerprint_model", lambda path: pytest.fail("the weights were read")
    )
    return ["model=local", f"model.path={tmp_path / 'sdxl'}", "concepts=inline", "concepts.erase=[church]"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=uce,mace"], "method=mace supports the families sd, not sdxl"),
        (["method=uce", "attack=none,cce"], "attack=cce runs on models of the families sculpture, not on sdxl"),
        (["method=none", "attack=cce"], "attack=cce runs on models of the families sculpture, not on sdxl"),
    ],
)
def test_an_unsupported_family_is_refused_before_anything_is_read(unloadable, overrides, said, monkeypatch):
    monkeypatch.setattr(component("attack", "cce").load(), "families", ("sculpture",))
    with pytest.raises(UserError, match=f"^{said}$"):
        plan(*unloadable, *overrides, "budget=smoke")


def test_a_control_of_an_unsupported_family_is_refused_too(unloadable, monkeypatch):
    for name, value in (("families", ("sculpture",)), ("needs", "victim")):
        monkeypatch.setattr(component("attack", "seed_search").load(), name, value)
    with pytest.raises(UserError, match=r"^attack=seed_search runs on models of the families sculpture, not on sdxl$"):
        plan(*unloadable, "attack=uda", "attack.control=seed_search", "method=none", "budget=smoke")


def test_concepts_that_a_method_does_not_erase_are_refused_when_they_are_planned(monkeypatch):
    method = component("method", "uce").load()
    for name, value in (("kinds", ("style",)), ("multiple", False)):
        with monkeypatch.context() as patched:
            patched.setattr(method, name, value)
            if name == "kinds":
                with pytest.raises(UserError, match="method=uce erases the kinds style, not object"):
                    plan("method=none,uce", "concepts=mosaic,church", "budget=smoke")
            else:
                assert plan("method=uce", "concepts=objects5", "concepts.sequential=true", "budget=smoke").cells
                with pytest.raises(UserError, match="method=uce erases one concept per request, got 5"):
                    plan("method=uce", "concepts=objects5", "budget=smoke")


def test_an_unknown_family_of_a_hub_model_is_checked_when_it_is_loaded(monkeypatch):
    monkeypatch.setattr("overpaint.images.planner.model_family", lambda path: None)
    monkeypatch.setattr(component("attack", "cce").load(), "families", ("sculpture",))
    assert plan("method=uce", "attack=cce", "budget=smoke").cells
