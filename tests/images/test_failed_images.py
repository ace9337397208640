"""An image with non-finite values has failed: it counts neither as present nor as absent."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import overpaint
from command_line import called
from overpaint.attacks.attack import Verdict
from overpaint.grid.registry import component
from overpaint.images.stages import erase as erasing
from overpaint.images.stages.generate import read_images, write_images
from overpaint.images.stages.score import scores
from overpaint.metrics.distribution import feature_rows
from overpaint.metrics.outcomes import outcomes, tally
from overpaint.run.store import Store

WHITE = Image.new("RGB", (64, 64), "white")


@pytest.fixture
def broken(tiny_sd):
    """The tiny model with one NaN in one tensor of its UNet."""
    weight = tiny_sd.denoiser.conv_out.weight.data
    kept = weight[0, 0, 0, 0].clone()
    weight[0, 0, 0, 0] = float("nan")
    yield tiny_sd
    weight[0, 0, 0, 0] = kept


def test_a_broken_model_makes_no_black_pictures(broken):
    with pytest.raises(overpaint.UserError, match="2 of 2 images have non-finite values"):
        broken.sample(["a cat"] * 2, [0, 1], steps=1)
    assert broken.sample(["a cat"] * 2, [0, 1], steps=1, keep_failed=True) == [None, None]


def test_a_picture_fails_by_itself(tiny_sd):
    latents = tiny_sd.noise([0, 1, 2])
    latents[1, 0, 0, 0] = float("nan")
    one, failed, other = tiny_sd.to_images(latents)
    assert failed is None and one.size == other.size == (32, 32)
    assert one.tobytes() == tiny_sd.to_images(latents[:1])[0].tobytes()
    with pytest.raises(overpaint.UserError, match="cannot encode a failed picture"):
        tiny_sd.to_latents([one, None])


def test_a_failed_picture_is_stored_as_none(tmp_path):
    write_images(tmp_path, [WHITE, None, WHITE], [{"prompt": text} for text in "abc"])
    one, failed, other = read_images(tmp_path)
    assert failed is None and one.tobytes() == other.tobytes() == WHITE.tobytes()


@pytest.mark.parametrize("pictures", [[None, WHITE, None], [None, None]])
def test_the_detector_is_not_shown_it_and_nothing_is_known_of_it(pictures, tmp_path):
    oracle, shown = component("detector", "oracle").build(), []
    look = type(oracle).score

    def score(images):
        shown.extend(images)
        return look(oracle, images)

    oracle.score = score
    scores(oracle, pictures).to_parquet(tmp_path / "scores.parquet", index=False)
    frame = pd.read_parquet(tmp_path / "scores.parquet")
    made = [picture is not None for picture in pictures]
    assert len(shown) == sum(made) and frame["failed"].tolist() == [not each for each in made]
    assert frame["church"].notna().tolist() == made
    frame = frame.assign(prompt_id=[f"p{n}" for n in range(len(frame))], seed=0)
    assert tally(outcomes(frame, [("church",)] * len(frame), 0.5)) == (sum(made), len(made) - sum(made))
    assert feature_rows(frame).failed == len(made) - sum(made)
    whole = scores(component("detector", "oracle").build(), [WHITE] * 2)
    pd.testing.assert_frame_equal(whole, look(oracle, [WHITE] * 2))


@pytest.mark.parametrize("name", ["noise_probe", "completion", "concept_arithmetic", "inversion", "soft_prefix"])
def test_attacks_that_paint_go_on(name, context, broken):
    """The judge's verdict on a failed image is unknown, which is not a success."""

    def paint(texts, seeds, embeds=None, guidance=None, worded=True):
        return broken.sample(texts, seeds, embeds=embeds, **context.protocol, keep_failed=True)

    def judge(images):
        assert images and all(image is None for image in images)
        return [Verdict(False, 0.0, False)] * len(images)

    small = {
        "steps": 2,
        "rollout_steps": 2,
        "regularisations": 0,
        "pictures": 2,
        "fractions": [0.0, 0.5],
        "etas": [1.0],
    }
    chosen = component("attack", name)
    attack = chosen.build({key: value for key, value in small.items() if key in chosen.defaults}, seed=0)
    found = attack.run(replace(context, paint=paint, judge=judge)).painted
    assert found
    for painted in found:
        assert painted.image is None and not painted.verdict.known and "psnr" not in painted.readings


def test_a_grid_with_a_broken_victim_goes_on_and_says_why_it_has_no_figures(tmp_path, monkeypatch):
    whole = erasing.erase

    def broken(model, method, **how):
        erasure = whole(model, method, **how)
        if method == "uce":
            for change in erasure.changes.values():
                change.up.fill_(3e38)  # finite itself, but the changed weights overflow
        return erasure

    monkeypatch.setattr(erasing, "erase", broken)
    store = Store(tmp_path / "store")
    grid = ["method=none,uce", "attack=none,random_prefix,completion", "budget=smoke", "protocol.steps=2"]
    assert called("run", *grid, f"store={store.root}") == 0
    records = pd.concat(map(pd.read_parquet, store.root.glob("artefacts/measure/*/records.parquet")))
    ours = records[(records["method"] == "uce") & (records["metric"].isin(["target_proportion", "attack_success"]))]
    assert len(ours) == 3 and ours["value"].isna().all() and (ours["n"] == 0).all() and (ours["failed"] > 0).all()
    assert ours["why"].str.contains("failed").all()
    free = records[(records["method"] == "none") & (records["metric"] == "target_proportion")].iloc[0]
    assert free["n"] == 2 and free["failed"] == 0 and 0 <= free["value"] <= 1
    (sheet,) = (store.root / "sheets").glob("*.png")
    assert (np.asarray(Image.open(sheet)) == (0xCC, 0, 0)).all(axis=2).any()
