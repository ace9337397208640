"""PEZ against a recorded run of the official code, with the same random draws, and against its identities."""

from dataclasses import replace

import pytest
import torch

import overpaint
from official import distance, watched
from overpaint.blocks.clip import Clip, OwnTower
from overpaint.blocks.draws import Draws
from overpaint.blocks.pixels import Preprocessing
from overpaint.grid.registry import component


def pez(seed=0, **values):
    return component("attack", "pez").build({"tokens": 3, "steps": 5, "batch_size": None} | values, seed=seed)


@pytest.fixture(scope="module")
def clip(golden, tiny_sd):
    """The random CLIP of the recorded run: its text tower comes from open_clip; its vision tower is separate."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    _, _, extra = golden("pez/text_negative")
    open_clip = {key.removeprefix("clip."): value for key, value in extra.items() if key.startswith("clip.")}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48, "intermediate_size": 192}
    text = layers | {"vocab_size": 973, "hidden_act": "quick_gelu", "bos_token_id": 971, "eos_token_id": 972}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = layers | {"image_size": 32, "patch_size": 8}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    named = {
        "embeddings.token_embedding.weight": open_clip["token_embedding.weight"],
        "embeddings.position_embedding.weight": open_clip["positional_embedding"],
        "final_layer_norm.weight": open_clip["ln_final.weight"],
        "final_layer_norm.bias": open_clip["ln_final.bias"],
    }
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for n in range(2):
        ours, theirs = f"encoder.layers.{n}", f"transformer.resblocks.{n}"
        for leaf in ("weight", "bias"):
            stacked = open_clip[f"{theirs}.attn.in_proj_{leaf}"].chunk(3)
            named |= {f"{ours}.self_attn.{x}_proj.{leaf}": part for x, part in zip("qkv", stacked, strict=True)}
            named[f"{ours}.self_attn.out_proj.{leaf}"] = open_clip[f"{theirs}.attn.out_proj.{leaf}"]
            named |= {f"{ours}.{a}.{leaf}": open_clip[f"{theirs}.{b}.{leaf}"] for a, b in parts.items()}
    model.text_model.load_state_dict(named)
    model.text_projection.weight.data = open_clip["text_projection"].T.contiguous()
    return Clip(model, tiny_sd.tokenizer, Preprocessing(32, 32, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))


def test_official_code(golden, clip):
    """A negative weight moves away from the targets."""
    meta, results, extra = golden("pez/text_negative")
    attack = pez(
        tokens=meta["prompt_len"],
        prompts=meta["prompt_bs"],
        batch_size=meta["batch_size"],
        loss_weight=meta["loss_weight"],
        steps=meta["steps"],
        learning_rate=meta["lr"],
        weight_decay=meta["weight_decay"],
    )
    with watched({"init_ids.0": extra["init_ids.0"]}) as seen:
        text = attack.invert(clip, extra["features"], Draws(0))
    for n in range(meta["steps"]):
        step = seen[3 * n] | seen[3 * n + 1] | seen[3 * n + 2]
        assert torch.equal(step["ids"], results[f"ids.{n}"])
        assert distance(step["cosines"], results[f"cos_all.{n}"]) < 1e-5
        assert distance(step["gradient"], results[f"grad.{n}"]) < 1e-5
        assert distance(step["variable"], results[f"var_step.{n}"]) < 1e-5
    assert text == meta["best_text"]


def test_the_kept_prompt_is_the_best_of_all_steps_and_prompts(tiny_sd):
    tower = OwnTower(tiny_sd)
    targets = tower.text_features(["a dog", "a ship"])
    with watched() as seen:
        text = pez(prompts=3, steps=6, batch_size=1, learning_rate=1.0).invert(tower, targets, Draws(0))
    scores = torch.stack([v["cosines"].mean(dim=0) for v in seen if "cosines" in v])
    ids = torch.stack([v["ids"] for v in seen if "ids" in v])
    step, prompt = divmod(int(scores.argmax()), 3)
    assert text == tower.text(ids[step, prompt].tolist()) and scores.shape == (6, 3)


def test_it_finds_a_word_again(tiny_sd):
    tower = OwnTower(tiny_sd)
    attack = pez(tokens=1, steps=150, learning_rate=0.3)
    target = tower.text_features(["dog"])
    assert attack.invert(tower, target, Draws(1)) == "dog"
    assert attack.invert(tower, target, Draws(1), without="a dog") not in ("dog", "a")


def test_features_of_words_are_those_of_their_text(tiny_sd, clip):
    for tower in (OwnTower(tiny_sd), clip):
        ids = torch.tensor([tiny_sd.token_ids("a dog in the sky")[1:-1]])
        torch.testing.assert_close(
            tower.features(ids, tower.table[ids]), tower.text_features([tower.text(ids[0].tolist())])
        )
    padded = tiny_sd.padded_ids(["a dog"])
    with torch.no_grad():
        expected = clip.model.text_projection(clip.model.text_model(padded).last_hidden_state[:, 3])
    torch.testing.assert_close(clip.text_features(["a dog"]), expected, rtol=1e-5, atol=1e-5)


def test_clip_is_read_from_a_folder_and_looks_at_pictures(clip, context, tmp_path, monkeypatch):
    clip.model.save_pretrained(tmp_path)
    clip.tokenizer.save_pretrained(tmp_path)
    from transformers import CLIPImageProcessor

    side = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(tmp_path)
    attack = pez(clip=str(tmp_path), batch_size=1)
    tower = Clip.load(str(tmp_path), context.victim.device)
    expected = clip.image_features(context.examples(2))
    torch.testing.assert_close(attack.targets(context, tower, "a cat"), expected)
    assert expected.shape == (2, 24)
    torch.testing.assert_close(
        pez(clip="x", target="text").targets(context, tower, "a cat"), clip.text_features(["a cat"])
    )
    assert len(attack.run(replace(context, shots=context.shots[:1])).shots) == 1
    with pytest.raises(overpaint.UserError, match="needs images of 'cat'"):
        attack.targets(replace(context, examples=None), tower, "a cat")


def test_a_prompt_gets_one_text_for_all_its_images_and_no_others(context):
    shots = pez().run(context).shots
    texts = [s.prompt.text for s in shots]
    assert len(set(texts[:3])) == len(set(texts[3:])) == 1 and texts[0] != texts[3]
    assert [s.noise_seed for s in shots] == [s.noise_seed for s in context.shots]
    assert pez().run(replace(context, shots=context.shots[3:])).shots == shots[3:]


def test_what_cannot_be_is_refused(context):
    with pytest.raises(overpaint.UserError, match=r"attack\.target=pictures needs a CLIP model"):
        pez(target="pictures")
    with pytest.raises(overpaint.UserError, match="CLIP folder nowhere does not exist"):
        pez(clip="nowhere").run(context)
