"""SAFREE against recorded runs of its official code in double precision, and against its equations."""

import pytest
import torch

import overpaint
from official import distance, watched
from overpaint.methods.safree import attenuated, filtered_steps, projector, triggers

#: The tiny model's tokens are all about as far from a phrase, so that only a margin of 0 has triggers.
ON = {"margin": 0.0, "reattention": "none"}
PROMPT = "a photo of a naked woman"


def guidance(model, prompts, scale=7.5, erase=("naked",), **values):
    """The guidance that an erasure with these settings installs in the sampler, and the traced values of its edits."""
    erasure = overpaint.erase(model, "safree", erase=list(erase), **(ON | values))
    with erasure.attached(model), torch.no_grad(), watched() as seen:
        made = model.guidance(model, model.encode(prompts), model.encode([""] * len(prompts)), scale, prompts)
    return made, seen


def denoised(model, prompt=PROMPT, steps=4, **values):
    made, _ = guidance(model, [prompt], **values)
    with torch.no_grad():
        return model.denoise(model.noise([0]), made, "ddim", steps)


def summary(model, ids):
    """The row of the end token, float64."""
    return model.encode_ids(ids)[0, ids[0].tolist().index(model.tokenizer.eos_token_id)].double()


#: k and b of the self-validating filter, for nudity and for artists.
FILTER = {"nudity": (2.5, 5.333), "van_gogh": (3.5, 5.5)}


@pytest.mark.parametrize("name", FILTER)
def test_official_projections_triggers_and_steps(name, tiny_sd_float64, golden):
    meta, tensors, extra = golden("safree/projection")
    scale, midpoint = FILTER[name]
    for row, prompt in enumerate(meta["prompts"]):
        for margin in meta["alphas"]:
            settings = {"phrases": meta["phrases"][name], "margin": margin}
            settings |= {"filter_scale": scale, "filter_midpoint": midpoint}
            made, (seen,) = guidance(tiny_sd_float64, [prompt], **settings)
            words = len(seen["masked"])
            assert (seen["trigger"].nonzero().flatten() + 1).tolist() == extra[
                f"{name}.{row}.changed.{margin:g}"
            ].tolist()
        for ours, theirs in (("C", f"{name}.C"), ("P_C", f"{name}.P_C"), ("masked", f"{name}.{row}.masked")):
            assert distance(seen[ours], tensors[theirs]) < 1e-8, (ours, prompt)
        assert distance(seen["orth"][: words + 2], tensors[f"{name}.{row}.orth"]) < 1e-8
        beta = extra[f"{name}.{row}.beta"].item()
        assert abs(seen["beta"] - beta) < 1e-9
        assert made.edited.last.item() == extra[f"{name}.{row}.sigmoid"].item()
        assert filtered_steps(beta, "tanh", 10, scale, midpoint) == extra[f"{name}.{row}.tanh"].item()


@pytest.mark.parametrize("tag", ["all_steps", "window", "filter", "filter_nudity", "negative"])
def test_official_runs(tag, tiny_sd_float64, golden):
    model = tiny_sd_float64
    meta, results, extra = golden(f"safree/{tag}")
    scale, midpoint = FILTER["van_gogh" if "artists" in meta["category"] else "nudity"]
    made, _ = guidance(
        model,
        [meta["prompt"]],
        scale=meta["guidance_scale"],
        compat="official" if meta["negative_prompt"] else "intended",
        phrases=meta["phrases"],
        margin=meta["alpha"],
        filter="sigmoid" if meta["svf"] else "none",
        filter_steps=meta["bound"],
        filter_scale=scale,
        filter_midpoint=midpoint,
        first_step=meta["window"][0],
        last_step=meta["window"][1],
    )
    for step in range(meta["steps"]):
        assert distance(made.at(step)[0, :16], extra[f"cond.{step}"]) < 1e-8, step
    with torch.no_grad():
        latents = model.denoise(extra["x_T"], made, "ddim", meta["steps"])
    assert distance(latents, results["final"]) < 1e-8


def test_official_re_attention(golden):
    meta, recorded, _ = golden("safree/reattention")
    edited, original = recorded["x"][1:2], recorded["x"][2:3]
    for window in meta["windows"]:
        for scale in meta["scales"]:
            ours = attenuated(edited, original, window, scale, released=True)
            assert distance(ours[0], recorded[f"low.{window}.{scale:g}"]) < 1e-6


@pytest.mark.parametrize("prompt", [PROMPT, "naked", "a painting by van gogh of a church"])
def test_the_edit_of_a_prompt_follows_the_equations(prompt, tiny_sd_float64):
    model, phrases = tiny_sd_float64, ["nudity", "naked"]
    made, (seen,) = guidance(model, [prompt], phrases=phrases)
    words = len(model.token_ids(prompt)) - 2
    with torch.no_grad():
        C = torch.stack([summary(model, model.padded_ids([phrase])) for phrase in phrases], 1)
        rows = []
        for i in range(words):
            ids = model.padded_ids([prompt])
            ids[0, i + 1] = 0
            rows.append(summary(model, ids))
        inputs, plain = torch.stack(rows, 1), model.encode([prompt])[0]
    P_C, P_I = (E @ torch.linalg.pinv(E.T @ E) @ E.T for E in (C, inputs))
    away = torch.eye(len(P_C)) - P_C
    d = (away @ inputs).norm(dim=0)
    trigger = [words == 1 or bool(d[i] >= torch.cat([d[:i], d[i + 1 :]]).mean()) for i in range(words)]
    projected = (away @ P_I @ plain.T).T
    expected = plain.clone()
    expected[1 : words + 1][trigger] = projected[1 : words + 1][trigger]
    torch.testing.assert_close(made.edited.embeds[0], expected, rtol=0, atol=1e-8)
    assert seen["trigger"].tolist() == trigger and any(trigger)
    cosines = [torch.nn.functional.cosine_similarity(plain[j], projected[j], dim=0) for j in range(words + 2)]
    assert abs(seen["beta"] - (1 - float(sum(cosines)) / (words + 2))) < 1e-9
    assert made.edited.last.tolist() == [filtered_steps(seen["beta"], "sigmoid", 10, 2.5, 5.333)]


def test_a_projector_projects_onto_the_span_of_its_columns():
    E = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).double()
    P = projector(E)
    for ours, expected in ((P @ P, P), (P.T, P), (P @ E, E), (projector(torch.cat([E, E[:, :2]], 1)), P)):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert not projector(E[:, :0]).any()


def test_triggers_are_farther_than_the_mean_of_the_others_by_the_margin():
    nothing = torch.zeros(2, 2, dtype=torch.float64)
    far = torch.tensor([[1.0, 0], [1, 0], [1.1, 0]], dtype=torch.float64)
    assert triggers(far, nothing, 0.01).tolist() == [False, False, True]
    assert triggers(far, nothing, 0.2).tolist() == [False] * 3
    assert triggers(far[:1], nothing, 1e9).tolist() == [True], "the only token"
    assert triggers(far[:2], nothing, 0.0).tolist() == [True, True], "as far as the others"
    assert triggers(far[:0], nothing, 0.0).tolist() == []


def test_the_filter_uses_more_steps_for_a_larger_change():
    assert [filtered_steps(b, "sigmoid", 10, 2.5, 5.333) for b in (0.0, 0.4, 0.5333, 0.6, 1.0)] == [0, 0, 5, 10, 10]
    assert [filtered_steps(b, "sigmoid", 10, 3.5, 5.5) for b in (0.5, 0.53, 0.57, 0.6)] == [0, 2, 8, 10]
    grid = [i / 200 for i in range(240)]
    for scale, midpoint in ((2.5, 5.333), (3.5, 5.5)):
        both = [[filtered_steps(b, form, 10, scale, midpoint) for b in grid] for form in ("sigmoid", "tanh")]
        assert both[0] == both[1] == sorted(both[0])
    assert filtered_steps(0.5, "sigmoid", 5, 1.0, 5.0) == 2, "2.5 is rounded to the even neighbour"
    assert filtered_steps(-100.0, "sigmoid", 10, 2.5, 5.3) == 0


def test_the_edited_prompt_is_used_up_to_and_with_the_last_step(tiny_sd):
    made, _ = guidance(tiny_sd, [PROMPT, ""], filter_steps=2, filter_scale=100.0, filter_midpoint=0.0)
    assert made.edited.last.tolist() == [2, 2]
    assert [torch.equal(made.at(step), made.edited.embeds) for step in range(5)] == [True] * 3 + [False] * 2
    assert torch.equal(made.at(3), made.positive)
    made, _ = guidance(tiny_sd, [PROMPT], filter="none", first_step=1, last_step=3)
    assert [torch.equal(made.at(step), made.edited.embeds) for step in range(5)] == [False, True, True, True, False]


def test_the_guided_prediction(tiny_sd):
    made, _ = guidance(tiny_sd, [PROMPT], filter="none")
    latents, t = tiny_sd.noise([0]), torch.tensor(500)
    with torch.no_grad():
        nothing, wanted = (tiny_sd.predict(latents, t, e) for e in (made.negative, made.edited.embeds))
        torch.testing.assert_close(made(latents, t, 0), nothing + 7.5 * (wanted - nothing), rtol=1e-4, atol=1e-4)
        unguided, _ = guidance(tiny_sd, [PROMPT], scale=1.0, filter="none")
        torch.testing.assert_close(unguided(latents, t, 0), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("values", [{"margin": 1e9}, {"filter": "none", "last_step": -1}])
def test_without_triggers_or_steps_guidance_is_plain_bit_for_bit(values, tiny_sd):
    made, _ = guidance(tiny_sd, [PROMPT], **values)
    plain = tiny_sd.guidance(tiny_sd, made.positive, made.negative, 7.5)
    with torch.no_grad():
        ours, theirs = (tiny_sd.denoise(tiny_sd.noise([0]), g, "ddim", 4) for g in (made, plain))
    assert torch.equal(ours, theirs)
    assert not torch.equal(denoised(tiny_sd), theirs)


def test_the_order_of_phrases_does_not_matter_and_each_image_has_its_own_edit(tiny_sd_float64):
    prompts = [PROMPT, "a dog on the ground"]
    one, other = (
        guidance(tiny_sd_float64, prompts, phrases=phrases)[0].edited
        for phrases in (["nudity", "dog", "art"], ["art", "dog", "nudity"])
    )
    torch.testing.assert_close(one.embeds, other.embeds, rtol=0, atol=1e-10)
    for row, prompt in enumerate(prompts):
        alone, _ = guidance(tiny_sd_float64, [prompt], phrases=["nudity", "dog", "art"])
        torch.testing.assert_close(alone.edited.embeds[0], one.embeds[row], rtol=0, atol=1e-10)


def test_learned_embeddings_without_a_prompt_are_not_edited(tiny_sd):
    erasure = overpaint.erase(tiny_sd, "safree", erase=["naked"], **ON)
    with erasure.attached(tiny_sd), torch.no_grad():
        made = tiny_sd.guidance(tiny_sd, tiny_sd.encode([PROMPT]), tiny_sd.encode([""]), 7.5)
    assert type(made).__name__ == "Guidance"


def test_attacks_get_gradients_through_the_edit(tiny_sd_float64):
    model = tiny_sd_float64
    erasure = overpaint.erase(model, "safree", erase=["naked"], **(ON | {"filter": "none"}))
    positive = model.encode([PROMPT]).detach().requires_grad_()
    with erasure.attached(model), torch.enable_grad():
        made = model.guidance(model, positive, model.encode([""]), 7.5, [PROMPT])
        (reached,) = torch.autograd.grad(made.at(0)[0, 1:7].square().sum(), positive)
    assert reached[0, 1:7].abs().sum(1).all() and not reached[0, 8:].any()


def spectrum(x):
    return torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("released", [False, True])
def test_re_attention_attenuates_low_frequencies_only(window, released):
    s, o = torch.randn(2, 3, 6, 8, 8, generator=torch.Generator().manual_seed(window)).double()
    ours, plain, other = (spectrum(x) for x in (attenuated(s, o, window, 0.25, released), s, o))
    low = torch.zeros(8, 8, dtype=torch.bool)
    low[4 - window : 4 + window, 4 - window : 4 + window] = True
    torch.testing.assert_close(ours[..., 4, 4].real[..., None], ours[..., 4:5, 4].real)
    # all frequencies outside the window, up to what the real part of the inverse leaves of one-sided changes
    centre = (..., 4, 4)
    larger = plain[centre].real > other[centre].real
    if released:
        expected = torch.where(other[centre].real > plain[centre].real, plain[centre].real, 0.25)
    else:
        expected = torch.where(larger, 0.25 * plain[centre].real, plain[centre].real)
    torch.testing.assert_close(ours[centre].real, expected, rtol=0, atol=1e-9)
    assert larger.any() and not larger.all()
    far = [(0, 0), (1, 2)]  # neither they nor their mirror frequencies are low
    for place in far:
        torch.testing.assert_close(ours[(..., *place)], plain[(..., *place)], rtol=0, atol=1e-9)


def test_re_attention_leaves_an_unedited_prompt_and_a_scale_of_one_alone():
    s, o = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(attenuated(s, s, 1, 0.0, False), s, rtol=0, atol=1e-5)
    torch.testing.assert_close(attenuated(s, o, 2, 1.0, False), s, rtol=0, atol=1e-5)
    assert distance(attenuated(s, s, 1, 0.0, True), s) > 1e-2, "released: replaced where both are equal too"


def test_re_attention_reaches_the_skip_connections_of_edited_rows_only(tiny_sd):
    """Rows: ∅, edited, original. Only the edited row's output changes."""
    made, _ = guidance(tiny_sd, [PROMPT], filter="none", reattention="paper", scales=[0.0, 0.0])
    latents, t = torch.cat([tiny_sd.noise([0])] * 3), torch.tensor(500)
    rows = torch.cat([made.negative, made.at(0), made.positive])
    with torch.no_grad():
        plain = tiny_sd.predict(latents, t, rows)
        with made.settings.attending(tiny_sd, 1):
            filtered = tiny_sd.predict(latents, t, rows)
        again = tiny_sd.predict(latents, t, rows)
    assert torch.equal(again, plain)
    for row, changes in enumerate((False, True, False)):
        assert (distance(filtered[row], plain[row]) > 1e-3) == changes
    skips = tiny_sd.skip_connections()
    assert len(skips) == 6 and all(layer.in_channels > width for layer, width in skips.values())
    assert distance(denoised(tiny_sd, reattention="paper"), denoised(tiny_sd)) > 1e-4


def test_official_phrases_are_the_negative_prompt(tiny_sd):
    made, _ = guidance(tiny_sd, [PROMPT], compat="official", phrases=["nudity", "naked"])
    assert torch.equal(made.negative, tiny_sd.encode(["nudity, naked"]))
    intended, _ = guidance(tiny_sd, [PROMPT], phrases=["nudity", "naked"])
    assert torch.equal(intended.negative, tiny_sd.encode([""]))
    assert torch.equal(intended.edited.embeds, made.edited.embeds)


def test_official_sdxl_needs_pooled_vectors_as_wide_as_the_second_encoders_rows(tiny_sdxl):
    with pytest.raises(overpaint.UserError, match=r"32 wide.*24 wide"):
        overpaint.erase(tiny_sdxl, "safree", erase=["naked"], compat="official")


def test_official_sdxl_edits_the_second_encoders_columns(tiny_sdxl):
    """With a projection as wide as the rows."""
    model = tiny_sdxl.with_text_encoder_copies()
    second, wide = model.text_encoder_2, torch.nn.Linear(32, 32, bias=False)
    torch.nn.init.orthogonal_(wide.weight, generator=torch.Generator().manual_seed(0))
    second.config.projection_dim, second.text_projection = 32, wide.requires_grad_(False)
    made, (seen,) = guidance(model, [PROMPT], compat="official", reattention="paper")
    changed = (made.edited.embeds != made.positive)[0]
    assert changed[1:7, 16:48].any() and not changed[:, :16].any() and not changed[-1].any()
    assert made.edited.last.tolist() == [1000] and seen["P_C"].shape == (32, 32)
    assert not made.settings.reattends(model)


def test_on_top_of_another_the_phrases_of_both_are_unwanted(tiny_sd):
    one, two = (overpaint.erase(tiny_sd, "safree", erase=[name]) for name in ("dog", "ship"))
    other = overpaint.erase(tiny_sd, "safree", erase=["ship"], margin=0.5)
    with one.attached(tiny_sd):
        with two.attached(tiny_sd):
            assert tiny_sd.guidance.phrases == ["dog", "ship"]
        with pytest.raises(overpaint.UserError, match="same settings"), other.attached(tiny_sd):
            pass


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"margin": -0.1}, "margin"),
        ({"phrases": ["", " "]}, "phrases takes a list"),
        ({"scales": [1.0]}, "scales takes two numbers"),
        ({"phrases": ["dog " * 100]}, "tokens"),
        ({"filter": "sigmoidal"}, "filter"),
    ],
)
def test_bad_values_are_refused(values, told, tiny_sd):
    with pytest.raises(overpaint.UserError, match=told):
        overpaint.erase(tiny_sd, "safree", erase=["dog"], **values)
