"""The stage *membership*: it computes the scores that the metrics read, and each of them does not depend on the others."""

import pandas as pd
import pytest
from plans import plan, stages

from overpaint.errors import UserError
from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.images.measurements import membership_task
from overpaint.images.stages import membership as stage
from overpaint.images.workbench import Workbench
from overpaint.metrics.membership import SCORES
from overpaint.run.plan import Plan

GRID = (
    "budget=smoke",
    "protocol.steps=2",
    "method=none",
    "concepts=church",
    "attack=none",
    "budget.reference_images=8",
)
PRIVLEAK = "+metrics.metrics.privleak=overpaint.metrics.membership:PrivLeak"


def tasks_of(*overrides):
    return stages(plan(*GRID, *overrides), "membership")


def test_all_scores_are_the_default_and_one_is_named():
    (every,), (one,) = tasks_of("metrics=muse"), tasks_of(PRIVLEAK)
    assert "scores" not in every.config
    assert one.config == every.config | {"scores": ["loss"]}


def test_an_unknown_score_is_refused():
    (composed,) = compose_cells([*GRID, "metrics=muse"])
    with pytest.raises(UserError, match="unknown column of a membership metric 'sec_mi'; did you mean 'secmi'"):
        membership_task(Plan("images"), cell_from(composed.config, composed.explicit), ["loss", "sec_mi"])


def test_a_score_does_not_depend_on_the_others(tmp_path):
    tables = []
    for chosen in ("metrics=muse", PRIVLEAK):
        (task,) = tasks_of(chosen)
        stage.run(task, {}, tmp_path, Workbench())
        tables.append(pd.read_parquet(tmp_path / "membership.parquet"))
    every, one = tables
    assert list(every) == ["image", "member", *SCORES] and list(one) == ["image", "member", "loss"]
    assert not every.isna().any(axis=None)
    pd.testing.assert_frame_equal(one, every[list(one)])
