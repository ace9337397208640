"""Token variables and their positions in a prompt, against official code and against their identities."""

import math

import pytest
import torch

from official import by_name, watched
from overpaint.blocks.draws import Draws, replayed
from overpaint.blocks.straight_through import StraightThrough
from overpaint.blocks.token_variables import (
    LOCATIONS,
    Frame,
    Nearest,
    Simplex,
    descend,
    onto_simplex,
    onto_simplex_by_bisection,
    places,
    text_of,
    text_within,
)
from overpaint.errors import UserError


def test_official_projections(golden):
    _, results, extra = golden("uda/projection")
    assert (onto_simplex_by_bisection(extra["x"]) - results["y"]).abs().max() < 1e-6
    exact = onto_simplex(extra["x"])
    assert (exact - results["y"]).abs().max() < 1e-5
    assert (exact.sum(dim=-1) - 1).abs().max() < 1e-6 and exact.min() >= 0


def test_the_exact_projection_is_the_nearest_point():
    rows = torch.randn(4, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nearest = onto_simplex(rows)
    torch.testing.assert_close(onto_simplex(nearest), nearest, rtol=0, atol=1e-15)
    others = torch.softmax(torch.randn(200, 4, 30, generator=torch.Generator().manual_seed(1)).double(), dim=-1)
    inward = ((rows - nearest) * (others - nearest)).sum(dim=-1)  # the residual points away from the simplex
    assert inward.max() <= 1e-12
    point = torch.tensor([[0.25, 0.75, 0.0]])
    assert torch.equal(onto_simplex(point), point)


def test_bisection_is_coarse_on_a_large_vocabulary():
    rows = torch.full((1, 49408), 1 / 49408) + 1e-4 * torch.randn(1, 49408, generator=torch.Generator().manual_seed(0))
    assert abs(float(onto_simplex_by_bisection(rows).sum()) - 1) > 1e-3
    assert abs(float(onto_simplex(rows).sum()) - 1) < 1e-5


def test_official_straight_through(golden):
    _, results, extra = golden("uda/straight_through")
    P = extra["P"].clone().requires_grad_()
    variable = Simplex(torch.eye(973), 4)
    variable.parameter = P
    with replayed({"ids.0": extra["ids.0"]}):
        ids, rows = variable.draw(Draws(0))
    assert torch.equal(rows, results["onehot"]) and torch.equal(ids[0], extra["ids.0"])
    rows.backward(extra["upstream"])
    assert torch.equal(P.grad, results["grad"])


def test_a_draw_follows_the_distribution():
    variable, draws = Simplex(torch.eye(5), 2), Draws(0)
    variable.parameter.data = torch.tensor([[[0.0, 0.2, 0.0, 0.8, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]]])
    drawn = torch.cat([variable.draw(draws)[0] for _ in range(400)])
    assert set(drawn[:, 0].tolist()) == {1, 3} and set(drawn[:, 1].tolist()) == {2}
    assert (drawn[:, 0] == 3).float().mean() == pytest.approx(0.8, abs=0.06)
    assert variable.ids().tolist() == [[3, 2]]


def test_official_nearest_words(golden, tiny_sd):
    _, results, extra = golden("p4d/project")
    variable = Nearest(tiny_sd.token_table, results["ids"])
    variable.parameter.data = extra["x"]
    ids, rows = variable.draw(Draws(0))
    assert torch.equal(ids, results["ids"]) and torch.equal(rows, results["embeds"])
    rows.backward(2 * torch.ones_like(rows))
    assert torch.equal(variable.parameter.grad, torch.full_like(rows, 2))


def test_the_gradient_is_clamped_only_where_a_bound_is_given():
    x = torch.zeros(3, requires_grad=True)
    for bound, expected in ((None, [5.0, -5.0, 0.5]), (1.0, [1.0, -1.0, 0.5])):
        x.grad = None
        read = StraightThrough.apply(x, torch.ones(3), bound)
        read.backward(torch.tensor([5.0, -5.0, 0.5]))
        assert torch.equal(read, torch.ones(3)) and x.grad.tolist() == expected


def test_official_insertion(golden, tiny_sd):
    meta, results, _ = golden("uda/insertion")
    for name, wanted in results.items():
        location, prompt, k = name.split(".")
        frame = Frame.around(tiny_sd, meta["prompts"][prompt], location, int(k))
        inserted = torch.arange(900, 900 + int(k))[None]
        assert torch.equal(frame.padded(inserted)[0], wanted), name


def test_one_word_before_every_third_one_can_be_a_single_one(tiny_sd):
    """The official code fails there."""
    assert Frame.around(tiny_sd, "a dog", "per_k_words", 1).filled([900]) == [900, 320, 585]


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_frame_keeps_the_prompt_in_order(location, tiny_sd):
    text = "a photo of a cat in the sky"
    plain = tiny_sd.token_ids(text)[1:-1]
    for k in range(6):
        filled = Frame.around(tiny_sd, text, location, k).filled([900] * k)
        assert [i for i in filled if i != 900] == plain and filled.count(900) == k
    assert Frame.around(tiny_sd, text, location, 0).text([]) == text
    assert len(set(places(location, 3, 5))) == 5


def test_a_filled_frame_is_encoded_as_its_ids_are(tiny_sd):
    frame, ids = Frame.around(tiny_sd, "a photo of a cat", "insert_k", 2), torch.tensor([[585, 521]])
    rows = tiny_sd.token_table[ids]
    assert torch.equal(frame.encode(ids, rows), tiny_sd.encode_ids(frame.padded(ids)))
    assert torch.equal(frame.encode(ids, rows), tiny_sd.encode([frame.text(ids[0].tolist())]))


def test_too_many_words_are_refused(tiny_sd):
    Frame(tiny_sd, (585,) * 70, tuple(range(5)))
    with pytest.raises(UserError, match="71 tokens with 5 inserted ones is too long: the model takes 75"):
        Frame(tiny_sd, (585,) * 71, tuple(range(5)))


@pytest.mark.parametrize("location", LOCATIONS)
def test_of_a_prompt_without_room_the_end_is_cut(location, tiny_sd):
    words = tiny_sd.token_ids("a dog on the ship " * 15)[1:-1]
    assert len(words) == 75
    for length in (70, 71, 75):
        frame = Frame.around(tiny_sd, tiny_sd.tokenizer.decode(words[:length]), location, 5)
        assert frame.words == tuple(words[:70]) and len(frame.filled([900] * 5)) == 75


def test_a_text_within_so_many_words_is_its_beginning(tiny_sd):
    text = "a photo of a dog on the ship"
    ids = tiny_sd.token_ids(text)[1:-1]
    for most in range(len(ids)):
        assert tiny_sd.token_ids(text_within(tiny_sd, text, most))[1:-1] == ids[:most]
    assert text_within(tiny_sd, f"{text} ", len(ids)) == f"{text} ", "nothing to cut, nothing changed"


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_gradients_are_those_of_the_loss_clamped_whatever_its_precision(kind):
    """A loss with gradients 3 and −0.5 for two tokens: only the first gradient is clamped, to 1."""
    variable, slope = Simplex(torch.eye(4), 2), torch.tensor([[[3.0, 0, 0, 0], [0, -0.5, 0, 0]]])
    variable.parameter.data = torch.eye(4)[None, :2]
    before, optimizer = torch.eye(4)[None, :2], torch.optim.SGD([variable.parameter], lr=1.0)
    with watched() as seen:
        list(descend([variable], optimizer, lambda n, ids, rows: (rows[0] * slope).sum(), [Draws(0)], 1, kind))
    steps = by_name(seen)
    assert float(steps["loss"][0]) == 2.5
    assert torch.equal(steps["gradient"][0], slope.clamp(-1, 1))
    assert torch.equal(steps["variable"][0], before - slope.clamp(-1, 1))


def test_a_gradient_that_overflowed_is_told(tiny_sd):
    variable = Simplex(tiny_sd.token_table, 2, "exact")
    optimizer = torch.optim.Adam([variable.parameter], lr=0.1)
    with pytest.raises(UserError, match=r"the search is non-finite at step 0$"):
        list(descend([variable], optimizer, lambda step, ids, rows: rows[0].sum()[None] * math.inf, [Draws(0)], 2))


def test_text_that_reads_back_as_too_many_tokens_is_cut(tiny_sd):
    """Half a character decodes to a replacement character, which is three tokens."""
    (half,) = [i for i in range(256) if tiny_sd.tokenizer.convert_ids_to_tokens(i) == "é"][:1]
    assert tiny_sd.token_ids(text_of(tiny_sd, [half]))[1:-1] != [half]
    text = text_of(tiny_sd, [half] * 75)
    assert text and len(tiny_sd.tokenizer(text).input_ids) <= 77
    assert text_of(tiny_sd, [971, 585, 972]) == "dog"
