"""Conceptor: the pseudo-token's equations, its dictionary, and what it finds. There is no recording: no official code was run."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

import overpaint
from official import by_name, watched
from overpaint.attacks.conceptor import Conceptor, Decomposition
from overpaint.blocks.clip import Clip
from overpaint.blocks.draws import Draws
from overpaint.commands.list import lines
from overpaint.grid.registry import component


def conceptor(**values) -> Conceptor:
    small = {"pictures": 2, "steps": 3, "batch_size": 2, "words": 5, "hidden": 8}
    return component("attack", "conceptor").build(small | values, seed=0)


def test_the_token_is_a_positive_sum_of_words_of_the_tables_mean_norm():
    words = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    made = Decomposition(words, 2.5, 4, 8, Draws(0))
    alphas, token, kept, top = made()
    w1, b1, w2, b2 = made.parameters
    theirs = torch.stack([(torch.relu(w1 @ w + b1) @ w2[0] + b2[0]).abs() for w in words])
    torch.testing.assert_close(alphas, theirs)
    whole = (theirs[:, None] * words).sum(dim=0)
    torch.testing.assert_close(token, 2.5 * whole / whole.norm())
    assert top.tolist() == theirs.argsort(descending=True)[:4].tolist()
    torch.testing.assert_close(kept, sum(theirs[i] * words[i] for i in top))
    assert w1.abs().max() <= 6**-0.5 and w2.abs().max() <= 8**-0.5


def test_with_all_words_on_top_the_sum_is_sparse():
    words = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    _, token, kept, _ = Decomposition(words, 1.0, 5, 8, Draws(0))()
    assert float(torch.cosine_similarity(kept, token, dim=0)) == pytest.approx(1, abs=1e-5)


def test_the_gradient_is_that_of_the_whole_loss(context, tiny_sd):
    """One step without decay moves every weight by the learning rate in the direction that the chain rule gives."""
    attack = conceptor(steps=1, learning_rate=1e-3, weight_decay=0.0, sparsity=0.5)
    images = context.concept_images(2, "conceptor")
    latents = tiny_sd.to_latents(images)
    table = tiny_sd.token_table.detach()
    ids = attack.dictionary(context, images)
    draws = Draws(0)
    made = Decomposition(table[ids], float(table.norm(dim=1).mean()), 5, 8, draws)
    _, token, kept, _ = made()
    whole = attack.reconstruction(tiny_sd, token, "a photo of a <concept>", latents, draws)
    whole = whole + 0.5 * (1 - torch.cosine_similarity(kept, token, dim=0))
    slopes = torch.autograd.grad(whole, made.parameters)
    start = [p.detach().clone() for p in made.parameters]
    with torch.no_grad():
        for parameter, slope in zip(made.parameters, slopes, strict=True):
            parameter -= 1e-3 * slope / (slope.abs() + 1e-8)
        _, token, kept, _ = made()
    found = attack.run(context).tokens["<concept>"]
    torch.testing.assert_close(found, kept / kept.norm() * token.norm(), rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(one, two) for one, two in zip(start, made.parameters, strict=True))


def test_training_lowers_the_loss_and_names_the_words(context, tiny_sd):
    with watched() as seen:
        assault = conceptor(steps=30, learning_rate=1e-2, words=4).run(context)
    losses, (names,), (shares,) = (by_name(seen)[key] for key in ("sparse", "words", "shares"))
    assert losses[-1] < losses[0]
    assert len(names) == 4 and float(shares.sum()) == pytest.approx(1)
    assert all(f"{names[0]} " in shot.prompt.variant for shot in assault.shots)
    assert all("<concept>" in shot.prompt.text and "cat" not in shot.prompt.text for shot in assault.shots)
    norm = float(tiny_sd.token_table.norm(dim=1).mean())
    assert float(assault.tokens["<concept>"].norm()) == pytest.approx(norm, rel=1e-5)


def test_the_concepts_own_words_can_be_left_out(context, tiny_sd):
    name = tiny_sd.token_ids("cat")[1]
    with_it, without = (conceptor(exclude_name=on).dictionary(context, []).tolist() for on in (False, True))
    assert name in with_it and name not in without
    assert set(with_it) - set(without) == {
        i for s in ("cat", "dog", "ship", "the old bird") for i in tiny_sd.token_ids(s)[1:-1]
    }
    assert not set(with_it) & set(tiny_sd.tokenizer.all_special_ids)


@pytest.fixture
def clip(tiny_sd, tmp_path):
    """A random CLIP model with the tiny model's tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    words = {"vocab_size": len(tiny_sd.tokenizer), "bos_token_id": tiny_sd.tokenizer.bos_token_id}
    words |= {"eos_token_id": tiny_sd.tokenizer.eos_token_id, "max_position_embeddings": 77}
    config = CLIPConfig(
        text_config=sizes | words, vision_config=sizes | {"image_size": 32, "patch_size": 16}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(tmp_path)
    tiny_sd.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_resize": true, "do_center_crop": true,'
        ' "do_rescale": true, "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],'
        ' "resample": 3, "rescale_factor": 0.00392156862745098}'
    )
    return str(tmp_path)


def test_clip_chooses_the_words_closest_to_the_images(context, tiny_sd, clip):
    images = context.concept_images(2, "conceptor")
    chosen = conceptor(clip=clip, dictionary_size=7).dictionary(context, images)
    every = conceptor().dictionary(context, images)
    network = Clip.load(clip, tiny_sd.device)
    with torch.no_grad():
        shown = network.image_features(images).mean(dim=0)
        cosines = torch.stack(
            [
                torch.cosine_similarity(
                    network.features(i.reshape(1, 1), network.table[i].reshape(1, 1, -1))[0], shown, dim=0
                )
                for i in every
            ]
        )
    assert sorted(chosen.tolist()) == sorted(every[cosines.topk(7).indices].tolist())


@pytest.mark.parametrize("values", [{"words": 0}, {"hidden": 0}, {"sparsity": -1.0}, {"dictionary_size": 0}])
def test_settings_that_mean_nothing_are_refused(values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        conceptor(**values)


def test_probes_are_listed_by_themselves():
    attacks, probes = list(lines("attacks")), list(lines("probes"))
    assert [line.split()[0] for line in probes] == ["completion", "conceptor", "inversion", "noise_probe"]
    assert set(probes) < set(attacks)
