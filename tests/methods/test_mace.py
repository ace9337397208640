"""MACE against tensors written by the official code, for each stage, and against its identities."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import overpaint
from official import distance, flat, watched
from overpaint.blocks.concept_masks import Segmenter
from overpaint.blocks.draws import Draws
from overpaint.blocks.image_bank import ImageBank
from overpaint.blocks.prior import caption_statistics
from overpaint.errors import AssetMissing, UserError
from overpaint.methods.mace import (
    MACE,
    aligned,
    attention_loss,
    concept_tokens,
    focal_timesteps,
    fuse,
    official_latents,
    refine,
)
from overpaint.models.erasure import Erasure, LowRank, Replacement

#: Official code inverts in the precision of its run.
TOLERANCE = {"f32": 5e-3, "f64": 1e-9}
#: The smallest second stage.
QUICK = {"iterations": 1, "pictures": 1, "picture_steps": 1}


def base(model):
    return {p.name: p.weight.clone() for p in model.projections("key", "value")}


def error(ours, official, start):
    assert ours.keys() == official.keys() == start.keys()
    return max(distance(ours[name], official[name], start[name]) for name in official)


def edited(model, **arguments):
    erasure = overpaint.erase(model, "mace", **({"erase": ["ship"], "anchor": "ground"} | QUICK | arguments))
    return {name: change.tensor for name, change in erasure.changes.items()}


@pytest.mark.parametrize("tag", ["cfr_own_plain", "cfr_own_prior"])
def test_official_refinement(tag, tiny_sd_float64, golden):
    """Through `overpaint.erase`: if the second stage does not train, the result is that of the first stage."""
    meta, official, _ = golden(f"mace/f64/{tag}")
    ours = edited(
        tiny_sd_float64,
        compat="official",
        erase=meta["concepts"],
        anchor=meta["mapping"],
        retain=meta["domain"] or (),
        templates=meta["templates"],
        all_words=meta["all_words"],
        lamb=meta["lamb"],
        preserve_scale=meta["preserve_scale"],
        prior_captions=meta["prior"],
        domain_weight=meta["preserve_weight"],
        learning_rate=0.0,
    )
    assert error(ours, official, base(tiny_sd_float64)) < TOLERANCE["f64"]


@pytest.mark.parametrize("precision, tag", [("f32", "plain"), ("f64", "prior")])
def test_official_fusion(precision, tag, tiny_sd_in, golden):
    model = tiny_sd_in(precision)
    meta, official, extra = golden(f"mace/{precision}/fusion_own_{tag}")
    changes = [
        {name: LowRank(extra[f"lora.{i}.{name}.up"], extra[f"lora.{i}.{name}.down"]) for name in official}
        for i in range(len(meta["concepts"]))
    ]
    sentences = [[t.format(concept) for t in meta["templates"]] for concept in meta["concepts"]]
    captions, _, _ = golden("mace/f64/cfr_own_prior")
    B = caption_statistics(model, captions["prior"])[0]
    B += meta["preserve_weight"] * caption_statistics(model, captions["domain"])[0]
    start = base(model)
    ours = fuse(model, sentences, changes, start, meta["fuse_preserve_scale"] * B, meta["lamb"])
    assert error(ours, official, start) < TOLERANCE[precision]


def test_official_attention_loss(goldens):
    official = load_file(goldens / "mace" / "attnloss_masked.safetensors")["loss"]
    given = load_file(goldens / "mace" / "attnloss_masked.extra.safetensors")
    maps = [given[f"attn.{i}"] for i in range(3)]
    ours = attention_loss(maps, given["positions"][0].bool(), given["mask"][0, 0] > 0.5)
    assert abs(float(ours / official) - 1) < 1e-6


def orders(meta, extra):
    """The order of each pass over two images. The run recorded the image of every step and completed only some passes."""
    first = [
        int(extra[f"image.{concept * meta['steps'] + k}"])
        for concept in range(len(meta["concepts"]))
        for k in range(0, meta["steps"], 2)
    ]
    return {f"order.{n}": torch.tensor([image, 1 - image]) for n, image in enumerate(first)}


@pytest.mark.parametrize("tag", ["lora_masked", "lora_plain"])
def test_official_training(tag, tiny_sd_float64, golden, monkeypatch):
    """All three stages through `overpaint.erase`, with the draws, images and masks of the recorded run."""
    model = tiny_sd_float64
    meta, official, extra = golden(f"mace/{tag}")

    def kept(what, concept):
        number = meta["concepts"].index(concept.name)
        return [extra[f"{what}.{number}.{k}"] for k in range(meta["pictures"])]

    def bank(model, concept):
        images = [Image.fromarray(pixels.numpy()) for pixels in kept("picture", concept)]
        return ImageBank(model, images, [concept.name] * len(images))

    banks, learned, learn = [], [], MACE.learn
    monkeypatch.setattr(MACE, "paint", lambda _, model, concept, draws: banks.append(bank(model, concept)) or banks[-1])
    monkeypatch.setattr(MACE, "learn", lambda *a: learned.append(learn(*a)) or learned[-1])
    if meta["use_gsam_mask"]:
        monkeypatch.setattr(MACE, "masked", lambda _, concept, *rest: [m.bool() for m in kept("mask", concept)])
    latents = {name: x.double() for name, x in extra.items() if name.startswith("x_0.")}
    with watched(extra | latents | orders(meta, extra)) as seen:
        ours = edited(
            model,
            compat="official",
            erase=meta["concepts"],
            anchor=meta["mapping"],
            retain=meta["domain"],
            templates=meta["templates"],
            phrases=len(meta["templates"]),
            lamb=meta["lamb"],
            preserve_scale=meta["preserve_scale"],
            fuse_preserve_scale=meta["fuse_preserve_scale"],
            prior_captions=meta["prior"],
            domain_weight=meta["preserve_weight"],
            rank=meta["rank"],
            learning_rate=meta["learning_rate"],
            iterations=meta["steps"],
            importance=meta["importance_sampling"],
            end_tokens=meta["use_pooler"],
        )

    iterations = [drawn | step for drawn, step in zip(seen[::2], seen[1::2], strict=True)]
    assert len(iterations) == len(extra["loss"]) == len(meta["concepts"]) * meta["steps"]
    for n, step in enumerate(iterations):
        concept, k = divmod(n, meta["steps"])
        assert torch.equal(step["tokens"], extra[f"positions.{n}"].bool())
        drawn = official_latents(
            banks[concept], [int(extra[f"image.{n}"])], Draws(meta["first_picture_seed"] + n), "x_0"
        )
        assert distance(drawn, extra[f"x_0.{n}"]) < 1e-6
        assert float(step["loss"]) == pytest.approx(float(extra["loss"][n]), rel=1e-6)
        gradients = {name: g for name, g in step["gradients"].items() if g is not None}
        theirs = {name: extra[f"grad.{concept}.{name}"][k] for name in gradients}
        assert sum(key.startswith(f"grad.{concept}.") for key in extra) == len(gradients)
        assert distance(flat(gradients, gradients), flat(theirs, gradients)) < 1e-6

    for concept, changes in enumerate(learned):
        for part in ("up", "down"):
            factors = {name: getattr(change, part) for name, change in changes.items()}
            theirs = {name: extra[f"lora.{concept}.{name}:{part}"] for name in changes}
            assert distance(flat(factors, changes), flat(theirs, changes)) < 1e-6, (concept, part)
    start = {name: weight.flatten()[:: meta["every"]] for name, weight in base(model).items()}
    assert error({name: tensor.flatten()[:: meta["every"]] for name, tensor in ours.items()}, official, start) < 1e-6


def test_official_timesteps(golden):
    _, _, extra = golden("mace/lora_masked")
    torch.testing.assert_close(focal_timesteps(1000), extra["probabilities"], rtol=1e-9, atol=0)


SENTENCES = [["a photo of ship", "ship at night", "a ship in public"]]


def no_prior(model):
    return caption_statistics(model, [])[0]


@pytest.mark.parametrize("s", [0.0, 0.3])
def test_a_concept_mapped_to_itself_is_refined_to_what_it_was(tiny_sd, s):
    B = caption_statistics(tiny_sd, ["a dog on the ground", "snoopy"])[0]
    ours = refine(tiny_sd, [[(text, text) for text in SENTENCES[0]]], s * B, 0.1, all_words=False)
    for name, weight in base(tiny_sd).items():
        assert torch.equal(ours[name], weight.double())


def test_refinement_is_the_least_squares_fit_of_the_other_words(tiny_sd_float64):
    """The test solves the problem differently: with stacked rows and an orthogonal factorisation."""
    model, lamb, s = tiny_sd_float64, 2.0, 0.5
    old, new, kept = SENTENCES[0][1], "ground at night", "a church by the sky"
    ours = refine(model, [[(old, new)]], s * caption_statistics(model, [kept])[0], lamb, all_words=False)
    i, j = aligned(model, old, new)
    K, G, E = (model.encode([text])[0] for text in (old, new, kept))
    for name, W in base(model).items():
        rows = torch.cat([K[i], s**0.5 * E, lamb**0.5 * torch.eye(len(W.T), dtype=W.dtype)])
        wanted = torch.cat([G[j] @ W.T, s**0.5 * E @ W.T, lamb**0.5 * W.T])
        torch.testing.assert_close(ours[name], torch.linalg.lstsq(rows, wanted).solution.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "old, new, old_rows, new_rows",
    [
        ("snoopy", "dog", [0, *range(7, 77)], [0, *range(2, 72)]),
        ("dog", "snoopy", [0, *range(2, 72)], [0, *range(7, 77)]),
        ("a snoopy a", "a dog a", [0, 1, *range(8, 77)], [0, 1, *range(3, 72)]),
        ("a dog", "a cat", [0, 1, *range(3, 77)], [0, 1, *range(3, 77)]),
        ("a dog", "a dog", [*range(77)], [*range(77)]),
    ],
)  # fmt: skip
def test_rows_are_paired_around_the_concepts_own_words(tiny_sd, old, new, old_rows, new_rows):
    """In this tokenizer, snoopy has six word pieces; dog and cat have one."""
    assert aligned(tiny_sd, old, new) == (old_rows, new_rows)


def test_all_words_refines_the_concepts_own_row_too(tiny_sd_float64):
    model, pairs = tiny_sd_float64, [[("a dog", "a cat")]]
    dog, cat = model.encode(["a dog", "a cat"])[:, 2]
    some, every = (refine(model, pairs, no_prior(model), 1.0, all_words) for all_words in (False, True))
    for name, W in base(model).items():
        apart = {key: (dog @ refined[name].T - cat @ W.T).norm() for key, refined in (("some", some), ("every", every))}
        assert apart["every"] < 0.5 * apart["some"]


def test_the_squared_scale_of_the_official_code_is_no_more_than_that(tiny_sd):
    prior = {"prior_captions": ["a dog on the ground"], "lamb": 1.0, "learning_rate": 0.0}
    official = edited(tiny_sd, compat="official", preserve_scale=0.5, **prior)
    intended = edited(tiny_sd, compat="intended", preserve_scale=0.25, **prior)
    assert all(torch.equal(official[name], intended[name]) for name in official)


def low_rank(model, seed):
    draws = Draws(seed)
    return {
        name: LowRank(draws.noise("up", (len(W), 1), W), draws.noise("down", (1, W.shape[1]), W))
        for name, W in base(model).items()
    }


def test_fusion_without_anything_learned_changes_nothing(tiny_sd):
    still = {name: LowRank(change.up * 0, change.down) for name, change in low_rank(tiny_sd, 0).items()}
    B = caption_statistics(tiny_sd, ["a dog on the ground"])[0]
    for prior, lamb in ((0 * B, 0.5), (B, 0.5)):
        ours = fuse(tiny_sd, SENTENCES, [still], base(tiny_sd), prior, lamb)
        for name, weight in base(tiny_sd).items():
            assert torch.equal(ours[name], weight.double())


def test_fusion_without_ridge_answers_the_sentences_as_the_low_rank_change_does(tiny_sd_float64):
    model, change = tiny_sd_float64, low_rank(tiny_sd_float64, 0)
    ours = fuse(model, SENTENCES, [change], base(model), no_prior(model), 1e-5)
    E = model.encode(SENTENCES[0])
    for name, W in base(model).items():
        wanted = E @ (W + change[name].up @ change[name].down).T
        torch.testing.assert_close(E @ ours[name].T, wanted, rtol=1e-4, atol=1e-4)


def test_fusion_is_the_least_squares_fit_of_all_concepts(tiny_sd_float64):
    """The ridge pulls towards the refined matrices, the prior towards the original ones."""
    model, lamb, s, kept = tiny_sd_float64, 2.0, 0.5, "a church by the sky"
    sentences, changes = [["a ship", "ship at night"], ["a photo of dog"]], [low_rank(model, 0), low_rank(model, 1)]
    refined = {name: W + 0.1 * low_rank(model, 2)[name].up for name, W in base(model).items()}
    ours = fuse(model, sentences, changes, refined, s * caption_statistics(model, [kept])[0], lamb)
    blocks, E = [model.encode(own).flatten(0, 1) for own in sentences], model.encode([kept])[0]
    for name, W0 in base(model).items():
        W1, U = refined[name], [change[name].up @ change[name].down for change in changes]
        rows = torch.cat([*blocks, s**0.5 * E, lamb**0.5 * torch.eye(len(W0.T), dtype=W0.dtype)])
        learned = [K @ (W1 + UD).T for K, UD in zip(blocks, U, strict=True)]
        wanted = torch.cat([*learned, s**0.5 * E @ W0.T, lamb**0.5 * W1.T])
        torch.testing.assert_close(ours[name], torch.linalg.lstsq(rows, wanted).solution.T, rtol=0, atol=1e-10)


def traced_erase(model, records=None, **arguments):
    """The iterations of the second stage: draws, loss and gradients."""
    with watched(records) as seen:
        edited(model, **arguments)
    return [drawn | step for drawn, step in zip(seen[::2], seen[1::2], strict=True)]


def test_each_low_rank_change_starts_from_the_refined_network(tiny_sd_float64):
    model, templates = tiny_sd_float64, ["a photo of {}"]
    pairs = [[("a photo of ship", "a photo of ground")], [("a photo of snoopy", "a photo of cat")]]
    refined = refine(model, pairs, no_prior(model), 1.0, all_words=False)
    plain = model.named_parameters()
    both = {"erase": ["ship", "snoopy"], "anchor": ["ground", "cat"], "templates": templates, "lamb": 1.0}
    iterations = traced_erase(model, **both, iterations=2, learning_rate=0.1)
    assert len(iterations) == 4
    for prompt, seen, later in zip([p[0][0] for p in pairs], iterations[::2], iterations[1::2], strict=True):
        erasure = Erasure("mace", changes={n: Replacement(W) for n, W in refined.items()})
        for attached, same in ((erasure, True), (None, False)):
            undo = attached.attach(model) if attached else lambda: None
            with torch.no_grad(), model.attention_maps() as maps:
                model.predict(seen["x_t"], seen["t"], model.encode([prompt]))
            undo()
            expected = attention_loss(maps.values(), seen["tokens"], seen["mask"])
            assert (abs(float(seen["loss"] / expected) - 1) < 1e-6) == same
        assert later["loss"] != seen["loss"]
    assert all(model.named_parameters()[name] is plain[name] for name in plain)


def test_every_projection_learns_but_the_last_values(tiny_sd):
    """No attention map depends on the values of the last cross-attention layer."""
    first, second = traced_erase(tiny_sd, iterations=2, learning_rate=1e-3, lamb=1.0)
    last = "up_blocks.2.attentions.1.transformer_blocks.0.attn2.to_v.weight"
    others = base(tiny_sd).keys() - {last}
    assert first["gradients"][f"{last}:up"] is None and second["gradients"][f"{last}:down"] is None
    for name in others:
        assert first["gradients"][f"{name}:up"].abs().sum() > 0
        assert first["gradients"][f"{name}:down"].abs().sum() == 0  # the other factor is zero still
        assert second["gradients"][f"{name}:down"].abs().sum() > 0


def test_gradients_are_clipped_to_unit_norm(tiny_sd):
    shown = [step["gradients"].values() for step in traced_erase(tiny_sd, lamb=1.0, iterations=4, learning_rate=0.0)]
    norms = [float(sum(g.square().sum() for g in gradients if g is not None).sqrt()) for gradients in shown]
    assert max(norms) == pytest.approx(1, rel=1e-4) and min(norms) < 0.999, norms  # what is shown is clipped in place


def test_every_picture_is_learned_from_before_one_comes_again(tiny_sd, monkeypatch):
    masks = [torch.eye(4)[k].bool().expand(4, 4) for k in range(3)]  # tell the pictures apart
    monkeypatch.setattr(MACE, "masked", lambda *_: masks)
    steps = traced_erase(tiny_sd, lamb=1.0, iterations=6, learning_rate=0.0, pictures=3)
    seen = [next(k for k, mask in enumerate(masks) if torch.equal(mask, step["mask"])) for step in steps]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]


def test_the_attention_falls(tiny_sd):
    draws = {f"t.{n}": torch.tensor([300]) for n in range(30)}
    slow = {"templates": ["a photo of {}"], "learning_rate": 1e-2, "lamb": 1e6}
    losses = [step["loss"] for step in traced_erase(tiny_sd, draws, iterations=30, **slow)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), losses


def test_timesteps_are_drawn_around_300():
    likely = focal_timesteps(1000)
    assert abs(float(likely.sum()) - 1) < 1e-12 and int(likely.argmax()) == 300
    assert abs(float(likely[201:400].sum()) - 0.86) < 0.005


@pytest.mark.parametrize("importance, low, high", [(True, 0.75, 1.0), (False, 0.0, 0.4)])
def test_importance_decides_the_timesteps(tiny_sd, importance, low, high):
    t = torch.cat([step["t"] for step in traced_erase(tiny_sd, iterations=60, importance=importance)])
    assert low <= float(((t > 200) & (t < 400)).float().mean()) <= high


def test_the_loss_is_zero_just_where_no_attention_is_in_the_mask():
    maps = torch.zeros(2, 16, 5)
    maps[:, :8, 1], maps[:, 8:, 3] = 1.0, 1.0  # the upper half looks at token 1, the lower at token 3
    upper = torch.tensor([[True] * 8] * 4 + [[False] * 8] * 4)
    token = torch.tensor([False, True, False, False, False])
    assert float(attention_loss([maps], token, ~upper)) == 0
    assert float(attention_loss([maps], token, upper)) == pytest.approx(16**0.5)
    everywhere = torch.ones(1, 1, dtype=torch.bool)
    assert float(attention_loss([maps, maps], token, everywhere)) == pytest.approx(2 * 16**0.5)  # a sum of norms


@pytest.mark.parametrize(
    "prompt, concept, found",
    [
        ("a dog", "dog", [2]),
        ("a dog and a dog", "Dog", None),
        ("a snoopy", "snoopy", [2, 3, 4, 5, 6, 7]),
    ],
)
def test_tokens_of_a_concept(tiny_sd, prompt, concept, found):
    words = concept_tokens(tiny_sd, prompt, concept, end_tokens=False).nonzero().flatten().tolist()
    ids = tiny_sd.token_ids(prompt)
    if found is None:  # both times
        found = [k for k, i in enumerate(ids) if i == tiny_sd.token_ids("dog")[1]]
        assert len(found) == 2
    assert words == found
    more = concept_tokens(tiny_sd, prompt, concept, end_tokens=True).nonzero().flatten().tolist()
    assert more == found + [k for k in range(len(ids) - 1, 77) if k not in found]


def test_a_sentence_without_the_concepts_words_is_refused(tiny_sd):
    with pytest.raises(overpaint.UserError, match="templates"):
        edited(tiny_sd, templates=["{}s"], end_tokens=False)


def test_the_official_code_shows_the_autoencoder_other_pixels(tiny_sd):
    (ours,), (theirs,) = (traced_erase(tiny_sd, compat=compat, lamb=1.0) for compat in ("intended", "official"))
    assert torch.equal(ours["t"], theirs["t"]) and not torch.allclose(ours["x_t"], theirs["x_t"])


def test_imagenets_mean_colour_is_what_official_latents_call_grey(tiny_sd):
    mean = Image.new("RGB", (64, 64), tuple(round(255 * value) for value in (0.485, 0.456, 0.406)))
    ours = official_latents(ImageBank(tiny_sd, [mean], ["grey"]), [0], Draws(0), "x_0")
    grey = tiny_sd.pixels_to_latents(torch.zeros(1, 3, 64, 64), torch.Generator().manual_seed(0))
    white = tiny_sd.to_latents([Image.new("RGB", (64, 64), "white")], torch.Generator().manual_seed(0))
    assert (ours - grey).norm() < 0.1 * (white - grey).norm()


def test_attention_masks_are_a_part_of_each_picture(tiny_sd):
    (seen,) = traced_erase(tiny_sd, masks="attention", lamb=1.0)
    assert seen["mask"].shape == seen["x_t"].shape[-2:] and seen["mask"].dtype == torch.bool
    assert 0 < float(seen["mask"].float().mean()) < 1


@pytest.mark.parametrize("masks", ["attention", "segmenter"])
def test_a_style_is_everywhere(tiny_sd, masks):
    (seen,) = traced_erase(tiny_sd, masks=masks, erase=["van gogh"], anchor="art", kind="style")
    assert seen["mask"].all()


def test_a_missing_segmenter_is_told_before_anything_is_painted(tiny_sd, tmp_path):
    with pytest.raises(AssetMissing, match=r"masks=attention"):
        edited(tiny_sd, masks="segmenter", detector=str(tmp_path))


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A detector and a segmenter of random weights."""
    import transformers as hf

    folder = tmp_path_factory.mktemp("networks")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "a", "ship"]))
    swin = hf.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    bert = hf.BertConfig(vocab_size=9, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    detector = hf.GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5,
    )  # fmt: skip
    shared = {"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16}
    sam = hf.SamConfig(
        vision_config=shared | {"output_channels": 16, "num_hidden_layers": 1, "image_size": 64, "num_pos_feats": 8},
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "image_embedding_size": 4},
        mask_decoder_config=shared | {"num_hidden_layers": 1, "iou_head_hidden_dim": 16, "iou_head_depth": 2},
    )
    small = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        hf.GroundingDinoForObjectDetection(detector).save_pretrained(folder / "detector")
        hf.SamModel(sam).save_pretrained(folder / "segmenter")
    pictures = hf.GroundingDinoImageProcessor(size={"shortest_edge": 160, "longest_edge": 160})
    hf.GroundingDinoProcessor(pictures, hf.BertTokenizer(str(folder / "vocab.txt"))).save_pretrained(
        folder / "detector"
    )
    hf.SamProcessor(hf.SamImageProcessor(**small)).save_pretrained(folder / "segmenter")
    return {"detector": str(folder / "detector"), "segmenter": str(folder / "segmenter")}


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8))


def test_boxes_are_those_of_the_detectors_own_processor(networks, picture):
    segmenter = Segmenter(**networks, box_threshold=0.5, device=torch.device("cpu"))
    inputs = segmenter.words(images=picture, text="ship.", return_tensors="pt")
    with torch.no_grad():
        outputs = segmenter.detector(**inputs)
    sure = outputs.logits.sigmoid().amax(-1).flatten().sort().values
    segmenter.box_threshold = float(sure[1:3].mean())
    (theirs,) = segmenter.words.post_process_grounded_object_detection(
        outputs, inputs.input_ids, threshold=segmenter.box_threshold, target_sizes=[(48, 80)]
    )
    ours = segmenter.boxes(picture, "Ship")
    assert len(ours) == 3
    torch.testing.assert_close(ours, theirs["boxes"])


def test_a_segmented_picture(networks, picture):
    some, none = (Segmenter(**networks, box_threshold=b, device=torch.device("cpu")) for b in (0.0, 1.0))
    assert some(picture, "ship").shape == (48, 80) and not some(picture, "ship").all()
    assert none(picture, "ship").shape == (48, 80) and none(picture, "ship").all()  # nothing found: everywhere


def test_a_segmenter_decides_the_mask(tiny_sd, networks):
    (seen,) = traced_erase(tiny_sd, masks="segmenter", box_threshold=0.0, lamb=1.0, **networks)
    assert seen["mask"].shape == (tiny_sd.image_size,) * 2 and not seen["mask"].all()


@pytest.mark.parametrize("values", [{"pictures": 0}, {"iterations": 0}, {"rank": 0}, {"lamb": -1.0}, {"masks": "some"}])
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        edited(tiny_sd, **values)


def test_half_precision_models_learn_in_float32(goldens):
    model = overpaint.load_model(str(goldens / "tiny_sd"), dtype="bfloat16")
    (seen,) = traced_erase(model, lamb=1.0)
    assert {g.dtype for g in seen["gradients"].values() if g is not None} == {torch.float32}
    assert {tensor.dtype for tensor in edited(model).values()} == {torch.bfloat16}


def test_given_images_and_masks(tiny_sd, tmp_path, cat):
    """White masks are the same as none; half a mask is not; a mask that is missing is refused."""
    for number, colour in enumerate(("red", "blue")):
        for folder, image in (
            (cat.name, Image.new("RGB", (32, 32), colour)),
            (f"{cat.name} mask", Image.new("L", (32, 32), 255)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            image.save(tmp_path / folder / f"{number}.png")
    given = {"erase": [cat.name], "folder": str(tmp_path), "iterations": 2}
    everywhere, white = edited(tiny_sd, masks="all", **given), edited(tiny_sd, masks="folder", **given)
    assert all(torch.equal(everywhere[name], white[name]) for name in everywhere)
    half = Image.new("L", (32, 32), 0)
    half.paste(255, (0, 0, 16, 32))
    for number in range(2):
        half.save(tmp_path / f"{cat.name} mask" / f"{number}.png")
    assert not all(
        torch.equal(everywhere[name], part) for name, part in edited(tiny_sd, masks="folder", **given).items()
    )
    (tmp_path / f"{cat.name} mask" / "1.png").unlink()
    with pytest.raises(UserError, match="has 1 masks for 2 images of cat"):
        edited(tiny_sd, masks="folder", **given)
    with pytest.raises(UserError, match="masks=folder needs a folder"):
        edited(tiny_sd, masks="folder", erase=[cat.name])
