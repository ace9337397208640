"""The rows of a prompt's encoding that an edit uses."""

import pytest
import torch

from overpaint.blocks.text_rows import TextRows


def test_tails_align_last_word_with_last_word(tiny_sd):
    rows = TextRows(tiny_sd, ["dog", "snoopy", "", " "])
    assert tiny_sd.last_subject_token("dog") == 1
    assert tiny_sd.last_subject_token("snoopy") == 6
    old, new = rows.tails("dog", "snoopy")
    assert len(old) == len(new) == tiny_sd.tokens - 6
    assert torch.equal(old[0], rows.last_subject("dog")[0])
    assert torch.equal(new[0], rows.last_subject("snoopy")[0])


def test_the_empty_text_is_read_at_the_begin_token(tiny_sd):
    rows = TextRows(tiny_sd, ["", " ", "dog"])
    assert torch.equal(rows.last_subject("")[0], rows.all("")[0])
    assert torch.equal(rows.all(""), rows.all(" "))
    torch.testing.assert_close(rows.all("")[0], rows.all("dog")[0])  # the encoder is causal


def test_encodings_match_the_recorded_ones(tiny_sd):
    """Recorded values of the official code's encoder: (position p of the last word piece, E[p, 0], ‖E‖)."""
    recorded = {"": (0, 0.786955, 70.6704), "snoopy": (6, 1.092207, 70.2981), "Picasso": (7, -1.210442, 70.1278)}
    rows = TextRows(tiny_sd, list(recorded))
    for text, (position, first, norm) in recorded.items():
        assert tiny_sd.last_subject_token(text) == position
        assert abs(float(rows.last_subject(text)[0, 0]) - first) < 1e-5
        assert abs(float(rows.all(text).norm()) - norm) < 1e-3


@pytest.mark.parametrize("name", ["tiny_sd_float64", "tiny_sdxl"])
def test_a_last_word_is_the_same_without_what_follows(request, name):
    """Text encoders are causal, so rows before the padding do not depend on it."""
    model = request.getfixturevalue(name)
    texts = ["dog", "a photo of snoopy", "", "dog"]
    padded, short = TextRows(model, texts), TextRows(model, texts, padding=False)
    for text in texts:
        torch.testing.assert_close(short.last_subject(text), padded.last_subject(text), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="padding=True"):
        short.all("dog")
