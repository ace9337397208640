"""Which detector and which threshold a cell gets: by hand, by the concept set, by the kind of concept."""

import pytest

from overpaint.errors import UserError
from overpaint.grid.cells import DETECTORS, cell_from
from overpaint.grid.composition import compose_cells
from overpaint.grid.concepts import KINDS
from overpaint.grid.registry import component, components
from overpaint.images.tasks import cell_assets, words


def cell(*overrides):
    (composed,) = compose_cells([*overrides, "store=x"])
    return cell_from(composed.config, composed.explicit)


def on_sd14(kind, *more):
    return cell("model=sd14", "concepts=inline", "concepts.erase=[van gogh]", f"concepts.kind={kind}", *more)


def test_every_kind_of_concept_has_a_detector():
    assert DETECTORS.keys() == set(KINDS)
    assert set(filter(None, DETECTORS.values())) <= components("detector").keys()


@pytest.mark.parametrize(
    ("kind", "detector", "threshold"),
    [("object", "clip", 0.5), ("style", "clip", 0.5), ("person", "celebrity", 0.5), ("unsafe", "nudenet", 0.6)],
)
def test_auto_chooses_by_the_kind_of_concept(kind, detector, threshold):
    found = on_sd14(kind)
    assert found.model.detector == found.settings["model"]["detector"] == detector
    assert found.metrics.threshold == threshold


def test_a_set_names_its_own_detector_and_the_user_has_the_last_word():
    assert on_sd14("unsafe", "concepts.detector=q16").model.detector == "q16"
    assert (
        on_sd14("unsafe", "concepts.detector=q16", "model.detector=nudenet_exposed9").model.detector
        == "nudenet_exposed9"
    )
    assert on_sd14("unsafe", "concepts.detector=q16", "model.detector=null").model.detector is None
    assert on_sd14("unsafe", "model.detector=nudenet_exposed9").metrics.threshold == 0.45
    assert on_sd14("unsafe", "metrics.threshold=0.2").metrics.threshold == 0.2
    with pytest.raises(UserError, match=r"'nudnet' in concepts\.detector; did you mean 'nudenet'"):
        on_sd14("unsafe", "concepts.detector=nudnet")
    with pytest.raises(UserError, match=r"'aut' in model\.detector; did you mean 'auto'"):
        on_sd14("unsafe", "model.detector=aut")


def test_a_detector_or_kind_of_the_concepts_without_effect_is_refused():
    said = r"concepts\.detector=clip has no effect: model\.detector=oracle judges .*; set model\.detector=clip"
    with pytest.raises(UserError, match=said):
        cell("concepts=church", "concepts.detector=clip")
    assert cell("concepts=church", "concepts.detector=oracle").model.detector == "oracle"
    assert cell("concepts=church", "concepts.detector=clip", "model.detector=auto").model.detector == "clip"
    with pytest.raises(
        UserError, match=r"concepts\.kind=style has no effect: church is of kind object in the catalogue"
    ):
        cell("concepts=church", "concepts.kind=style")
    assert cell("concepts=church", "concepts.kind=object").concepts.kind == "object"
    assert cell("concepts=church", "concepts.kind=style", "concepts.catalogue=null").concepts.kind == "style"


def test_every_real_model_has_a_detector_and_the_testbed_keeps_its_own():
    for name in set(components("model")) - {"testbed"}:
        assert component("model", name).config["detector"] != "oracle" or name.startswith("testbed")
    assert {component("model", name).config["detector"] for name in ("local", "sd14", "sd15", "sd21", "sdxl")} == {
        "auto"
    }
    assert cell().model.detector == "oracle" and cell().metrics.threshold == 0.5


def test_a_detector_gets_the_words_of_the_set():
    found = cell(
        "model=sd14", "concepts=inline", "concepts.erase=[church]", "concepts.retain=[tench]", "concepts.near=[castle]"
    )
    assert words(found.concepts) == {
        "church": "a photo of church",
        "castle": "a photo of castle",
        "tench": "a photo of tench",
    }
    assert words(on_sd14("style").concepts) == {"van gogh": "a painting in the style of van gogh"}
    shapes = words(cell("concepts=church").concepts)
    assert shapes["church"] == "a photo of a church" and "mosaic" not in shapes, (
        "other kinds do not compete with objects"
    )


def test_the_assets_of_a_cell_are_those_of_its_detectors():
    assert cell_assets(on_sd14("unsafe")) == ["nudenet_320n"]
    assert cell_assets(on_sd14("unsafe", "model.judge=q16")) == ["nudenet_320n", "clip_l14", "q16_prompts"]
    assert cell_assets(on_sd14("person")) == ["gcd", "nudenet_320n"]
    assert cell_assets(cell()) == []
    listed = on_sd14("object", "concepts.prompts.target='asset:uda_prompts/church.csv'", "model.detector=null")
    assert cell_assets(listed) == ["uda_prompts"]
