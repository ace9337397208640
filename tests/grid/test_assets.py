"""The shipped assets: complete, with checksums of the right form, and used by what they are for."""

import re

import pytest

from overpaint.errors import AssetMissing, UserError
from overpaint.grid.assets import asset, content_digest, referred, require
from overpaint.grid.registry import component, components

ASSETS = sorted(components("asset"))


@pytest.mark.parametrize("name", ASSETS)
def test_a_shipped_asset_is_complete_and_pinned(name):
    found = asset(name)
    assert found.summary and found.licence and found.purpose
    assert component("asset", name).config["name"] == name
    for entry in found.files.values():
        assert {"sha256", "bytes"} <= entry.keys(), "null says that it is not known"
    if found.source.startswith("hub:"):
        pinned = re.search(r"@[0-9a-f]{40}$", found.source)
        unknown = found.source.endswith("@main") and not any(entry["sha256"] for entry in found.files.values())
        assert pinned or unknown, "a revision of the hub; a branch only where nothing is known yet"
    if "githubusercontent" in found.source:
        assert re.search(r"/[0-9a-f]{40}(/|$)", found.source), "a commit, not a branch"
        assert all(entry["sha256"] for entry in found.files.values())


def test_every_asset_that_a_component_names_exists():
    for kind in ("detector", "method", "attack", "model", "concepts"):
        for name in components(kind):
            for needed in referred(component(kind, name).config):
                assert needed in ASSETS, f"{kind}={name}"


def test_references_are_found_inside_settings():
    assert referred({"a": "asset:one", "b": ["asset:two/x.csv", {"c": "asset:one"}], "d": 3, "e": None}) == [
        "one",
        "two",
    ]
    assert referred("asset:") == referred("my asset:one") == []


def test_a_missing_assets_files_are_identified_by_the_hashes_of_its_yaml(monkeypatch, tmp_path):
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path))
    files = component("asset", "uda_prompts").config["files"]
    assert content_digest("asset:uda_prompts/church.csv") == files["church.csv"]["sha256"]
    with pytest.raises(UserError, match=r"unknown file 'chruch.csv' in asset=uda_prompts; did you mean 'church.csv'"):
        content_digest("asset:uda_prompts/chruch.csv")


def test_several_missing_assets_are_one_sentence_with_one_command(monkeypatch, tmp_path):
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path))
    with pytest.raises(AssetMissing) as raised:
        require(["clip_l14", "q16_prompts", "clip_l14"])
    said = "the assets clip_l14, q16_prompts are missing; get them with: overpaint fetch asset=clip_l14,q16_prompts"
    assert str(raised.value) == said and raised.value.assets == ("clip_l14", "q16_prompts")
    with pytest.raises(
        AssetMissing, match=r"asset=clip_l14 \(CLIP ViT-L/14 of OpenAI\) is not in .*: overpaint fetch asset=clip_l14$"
    ):
        require(["clip_l14"])
    require([])
