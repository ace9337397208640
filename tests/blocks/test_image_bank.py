"""Training images, and the latents and batches drawn from them."""

from itertools import islice

import pytest
import torch
from PIL import Image

import overpaint
from overpaint.blocks.draws import Draws, replayed
from overpaint.blocks.image_bank import diffused, paint, read_folder, shuffled
from overpaint.blocks.templates import with_article
from overpaint.run.progress import watched

SAMPLER = {"scheduler": "ddim", "steps": 2, "guidance_scale": 3.0}


def test_the_same_draws_paint_the_same_pictures(tiny_sd):
    captions, seen = ["a cat", "a dog", "a cat"], []
    with watched(lambda done, total, what: seen.append((done, total, what))):
        one = paint(tiny_sd, captions, Draws(1), **SAMPLER)
    assert one.captions == captions and len(one) == 3
    assert seen == [(0, 3, "pictures"), (3, 3, "pictures")]
    same, other = (paint(tiny_sd, captions, Draws(seed), **SAMPLER) for seed in (1, 2))
    assert [i.tobytes() for i in one.images] == [i.tobytes() for i in same.images]
    assert [i.tobytes() for i in one.images] != [i.tobytes() for i in other.images]
    assert one.images[0].tobytes() != one.images[2].tobytes(), "one seed a picture"


def test_a_negative_prompt_changes_the_pictures(tiny_sd):
    plain, without = (
        paint(tiny_sd, ["a cat"], Draws(0), **SAMPLER, negative_prompt=text).images[0] for text in ("", "a dog")
    )
    assert plain.tobytes() != without.tobytes()


def test_latents_are_drawn_around_the_posterior_mean(tiny_sd):
    bank = paint(tiny_sd, ["a cat", "a dog"], Draws(0), **SAMPLER)
    mean, deviation = bank.posterior
    torch.testing.assert_close(mean, tiny_sd.to_latents(bank.images))
    noise = torch.randn(2, *mean.shape[1:], generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(bank.latents([1, 0], Draws(5), "z"), mean[[1, 0]] + deviation[[1, 0]] * noise)
    with replayed({"z.0": torch.ones_like(mean)}):
        assert bank.latents([1, 0], Draws(5), "z").eq(1).all()


def test_every_row_comes_once_before_any_comes_twice():
    batches = list(islice(shuffled(Draws(0), "rows", 5, 2), 10))
    rows = [row for batch in batches for row in batch]
    assert all(sorted(rows[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 20, 5))
    assert len(next(shuffled(Draws(0), "rows", 2, 5))) == 5


def test_diffused_latents_have_the_level_of_their_timestep(tiny_sd):
    latents = tiny_sd.noise([1, 2])
    x_t, t, noise = diffused(tiny_sd, latents, Draws(3), "_remain")
    alpha = tiny_sd.alphas_cumprod[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, alpha.sqrt() * latents + (1 - alpha).sqrt() * noise)
    with replayed({"t_remain.0": torch.tensor([7, 8])}):
        assert diffused(tiny_sd, latents, Draws(3), "_remain").t.tolist() == [7, 8]


def test_pictures_of_a_folder_are_made_square(tiny_sd, tmp_path):
    Image.new("RGB", (90, 30), "red").save(tmp_path / "b.png")
    Image.new("L", (30, 40), 7).save(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    images = read_folder(tiny_sd, tmp_path)
    assert [image.size for image in images] == [(tiny_sd.image_size,) * 2] * 2
    assert images[1].getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(overpaint.UserError, match="holds no pictures"):
        read_folder(tiny_sd, tmp_path / "empty")


@pytest.mark.parametrize("noun, phrase", [("house", "a house"), ("umbrella", "an umbrella"), ("the sea", "the sea")])
def test_a_noun_gets_the_article_that_fits(noun, phrase):
    assert with_article(noun) == phrase
