"""Statistics of captions: streaming, caching, and accepted caption files."""

import pytest
import torch

import overpaint
from overpaint.blocks import prior
from overpaint.blocks.prior import caption_statistics, read_captions
from overpaint.blocks.templates import OBJECT, STYLE, phrase_templates
from overpaint.testbed.membership import held_out_captions

CAPTIONS = ["a dog on the ground", "snoopy", "a church by the sky"]


def test_statistics_are_the_sum_over_all_rows(tiny_sd, monkeypatch):
    rows = tiny_sd.encode(CAPTIONS).double().flatten(0, 1)
    monkeypatch.setattr(prior, "CAPTIONS_AT_ONCE", 2)
    total, count = caption_statistics(tiny_sd, CAPTIONS)
    assert count == 3 and total.dtype == torch.float64
    torch.testing.assert_close(total, rows.T @ rows, rtol=1e-12, atol=1e-9)


def test_no_captions_sum_to_nothing(tiny_sd):
    total, count = caption_statistics(tiny_sd, [])
    assert count == 0 and total.shape == (48, 48) and not total.any()


def test_long_captions_are_cut(tiny_sd):
    long = "dog " * 200
    assert torch.equal(
        caption_statistics(tiny_sd, [long])[0],
        caption_statistics(tiny_sd, [" ".join(["dog"] * (tiny_sd.tokens - 2))])[0],
    )


def test_large_collections_are_remembered(tiny_sd, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(prior, "REMEMBERED_FROM", 2)
    first, _ = caption_statistics(tiny_sd, CAPTIONS)
    (file,) = tmp_path.rglob("*.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(prior, "_sum", None)  # would fail if it were called
        assert torch.equal(caption_statistics(tiny_sd, CAPTIONS)[0], first)
    assert caption_statistics(tiny_sd, CAPTIONS[:2])[0].trace() < first.trace()
    file.write_bytes(b"broken")
    assert torch.equal(caption_statistics(tiny_sd, CAPTIONS)[0], first)


def test_a_cache_that_cannot_be_written_is_done_without(tiny_sd, monkeypatch, tmp_path):
    (tmp_path / "overpaint").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(prior, "REMEMBERED_FROM", 2)
    assert caption_statistics(tiny_sd, CAPTIONS)[0].any()


def test_where_captions_come_from(tmp_path):
    (tmp_path / "mine.csv").write_text("image_id,caption\n1,a dog\n2,a cat\n")
    assert read_captions(str(tmp_path / "mine.csv")) == ["a dog", "a cat"]
    assert read_captions(CAPTIONS) == CAPTIONS and read_captions(None) == []
    assert read_captions("testbed/captions") == held_out_captions(500)
    with pytest.raises(overpaint.UserError, match="did you mean 'testbed/captions'"):
        read_captions("testbed/caption")


def test_a_method_gets_the_first_templates_of_the_kind_or_of_its_own_list():
    assert len(set(OBJECT)) >= 30 and len(set(STYLE)) >= 30
    assert phrase_templates("style", 3) == list(STYLE[:3])
    assert phrase_templates("person", 3) == phrase_templates("object", 3) == list(OBJECT[:3])
    assert phrase_templates("style", 15, ["{} here"]) == ["{} here"]
    with pytest.raises(overpaint.UserError, match=r"one \{\} each"):
        phrase_templates("style", 3, ["no place"])
