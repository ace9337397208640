"""The recipe of the shipped weights matches the committed training log and the shipped tokenizer."""

import json

import pytest

from overpaint.grid.shipped import shipped
from overpaint.testbed import denoiser
from overpaint.testbed.tokenizer import split_words, tokenizer_of


@pytest.mark.parametrize("legs", [denoiser.FIRST_LEGS, denoiser.WORDY_LEGS])
def test_each_leg_goes_on_where_the_last_one_stopped(legs):
    steps = [leg.steps for leg in legs]
    assert steps == sorted(set(steps))
    assert legs[-1].steps == {312_000: 9750, 124_000: 3875}[legs[-1].stop or legs[-1].images]
    assert len({(leg.batch, leg.peak, leg.ema, leg.warm_up_steps) for leg in legs}) == 1


def test_the_log_of_the_shipped_run_has_the_rates_of_these_legs():
    lines = (shipped("datasets") / "testbed" / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [line for line in map(json.loads, lines) if line["stage"].startswith("denoiser")]
    assert len(log) == 39 + 16
    for line in log:
        legs = denoiser.FIRST_LEGS if line["stage"] == "denoiser" else denoiser.WORDY_LEGS
        leg = next(leg for leg in legs if leg.steps >= line["step"])
        assert round(leg.rate(line["step"] - 1), 7) == line["rate"], line


def test_a_word_that_the_known_tokenizer_splits_asks_for_a_new_one(tmp_path):
    known = tokenizer_of(["church", "cat"], tmp_path / "none")
    known.save_pretrained(tmp_path / "known")
    assert tokenizer_of(["cat"], tmp_path / "known").get_vocab() == known.get_vocab()
    new = tokenizer_of(["church", "dog"], tmp_path / "known")
    assert split_words(new, ["church", "dog"]) == [] != split_words(known, ["dog"])
