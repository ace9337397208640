"""What `overpaint plan` says that a grid's tests can show."""

import pytest

from overpaint.commands.grids import planned
from overpaint.report.power import largest_share_shown_equal
from overpaint.run.track import track


@pytest.fixture
def power(tmp_path):
    """``power(*overrides)``: the sentences about the power of a grid on the testbed."""

    def sentences(*overrides):
        grid = planned([*overrides, f"store={tmp_path}"], demo=True, partial=True)
        return track(grid.plan.track).power(grid.cells)

    return sentences


def test_each_concept_set_has_a_sentence_about_its_primary_tests(power):
    said = power("method=uce", "concepts=church,car", "attack=none,uda,p4d_k", "budget=lite")
    assert [text.split(",")[0] for text in said] == ["church", "car"]
    assert all("24 target prompts × 1 image " in text and "Holm over 6 primary tests" in text for text in said)


def test_attacks_without_a_control_and_endpoints_that_are_not_measured_have_no_test(power):
    (said,) = power("method=uce", "concepts=church", "attack=none,uda", "attack.control=null", "budget=lite")
    assert "Holm over 4 primary tests" in said
    assert power("method=uce", "concepts=church", "attack=none", "metrics=balance", "budget=lite")[0].endswith(
        "Holm over 2 primary tests)"
    )


def test_searches_against_chance_are_tested_over_all_erasers_and_concepts(power):
    few, many = (
        power("experiment=search_vs_chance", f"method={erasers}", "concepts=church,car", "attack=uda,pez")
        for erasers in ("uce", "uce,esd,rece")
    )
    assert len(few) == len(many) == 1, "its other figures have no control, so no test"
    assert "all together: 60 target prompts × 1 eraser detect" in few[0]
    assert "all together: 60 target prompts × 3 erasers detect" in many[0] and "over 2 attacks" in many[0]
    (whole,) = power("experiment=search_vs_chance")
    equal = float(whole.partition("if at most ")[2].partition("%")[0]) / 100
    assert equal == pytest.approx(largest_share_shown_equal(120, 4, within_prompt=0.1), abs=0.001)
    detectable = [float(text.partition("about ")[2].partition(" ")[0]) for text in (*few, *many)]
    assert detectable[0] > detectable[1]
