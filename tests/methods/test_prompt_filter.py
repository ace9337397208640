"""The prompt filter: what each rule catches, what becomes of it, and that everything else is untouched."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import overpaint
from official import distance
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.registry import component
from overpaint.methods.prompt_filter import pattern

CAPTIONS = ["a ship on the ground", "a church by the sky", "a painting by monet", "a black and white photo"]


def caught(model, prompts, erase="dog", **values):
    """Which prompts the installed filter catches."""
    erasure = overpaint.erase(model, "prompt_filter", erase=[erase], **values)
    with erasure.attached(model):
        return model.guidance.rule.caught(model, prompts)


def pictures(model, prompts, **how):
    return [np.asarray(i) for i in model.sample(prompts, list(range(len(prompts))), **{"steps": 3} | how)]


@pytest.mark.parametrize(
    "phrase, plural, found, passed",
    [
        ("dog", False, ["a dog", "DOG!", "dog-house", "(dog)"], ["dogs", "hotdog", "do g", ""]),
        ("dog", True, ["two dogs", "a dog"], ["doge", "dogged"]),
        ("church", True, ["churches", "a Church."], ["churchyard"]),
        ("bodies", True, ["a body", "bodies"], ["embodies", "bodied"]),
        ("grass", True, ["grass", "grasses"], ["gras"]),
        ("toy", True, ["toys", "toy"], ["to"]),
        ("horses", True, ["a horse", "horses"], ["hoarse"]),
        ("bus", True, ["buses", "a bus"], ["busy"]),
        ("van gogh", False, ["by Van  Gogh", "van gogh's"], ["van der gogh", "vangogh"]),
    ],
)
def test_words_and_phrases(phrase, plural, found, passed):
    rule = pattern(phrase, plural)
    assert all(rule.search(text) for text in found)
    assert not any(rule.search(text) for text in passed)


def test_tokens_find_the_same_ids_wherever_they_stand(tiny_sd):
    assert caught(tiny_sd, ["a DOG on the ground", "a cat", "dog"], match="tokens") == [True, False, True]
    assert caught(tiny_sd, ["by van gogh", "van der gogh"], erase="van gogh", match="tokens") == [True, False]
    assert caught(tiny_sd, ["a dog"], erase="dog", words=["ship"]) == [True]
    assert caught(tiny_sd, ["a ship"], erase="dog", words=["ship"]) == [True]


def test_synonyms_are_looked_for_if_asked(tiny_sd):
    dog = Concept("dog", synonyms=("puppy",))
    for synonyms in (False, True):
        assert caught(tiny_sd, ["a puppy", "a dog"], erase=dog, synonyms=synonyms) == [synonyms, True]


def test_the_embedding_rule_catches_what_is_near(tiny_sd):
    prompts = ["dog", "a painting by monet"]
    with torch.no_grad():
        rows = tiny_sd.encode(["dog", *prompts])
    ends = [len(tiny_sd.token_ids(text)) - 1 for text in ["dog", *prompts]]
    features = rows[torch.arange(3), ends]
    cosine = float(torch.cosine_similarity(features[0], features[2], dim=0))
    assert caught(tiny_sd, prompts, rule="embedding", threshold=cosine + 1e-3) == [True, False]
    assert caught(tiny_sd, prompts, rule="embedding", threshold=cosine - 1e-3) == [True, True]


def test_the_calibrated_threshold_lets_the_asked_share_of_captions_through(tiny_sd):
    for share, count in ((0.01, 1), (0.5, 2)):
        found = caught(tiny_sd, CAPTIONS, rule="embedding", calibration=CAPTIONS, false_positives=share)
        assert sum(found) <= count
    assert caught(tiny_sd, ["dog"], rule="embedding", calibration=CAPTIONS) == [True]


@pytest.fixture
def classifier(tiny_sd, tmp_path):
    """A random text classifier with the tiny model's tokenizer."""
    torch.manual_seed(0)
    labels = {0: "SFW", 1: "NSFW"}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(
        vocab_size=len(tiny_sd.tokenizer), id2label=labels, label2id={v: k for k, v in labels.items()}, **sizes
    )
    torch.manual_seed(0)
    network = BertForSequenceClassification(config).eval()
    network.classifier.weight.data *= 1000
    network.save_pretrained(tmp_path)
    tiny_sd.tokenizer.save_pretrained(tmp_path)
    return network, str(tmp_path)


def test_the_classifier_rule_reads_the_probability_of_its_label(tiny_sd, classifier):
    network, folder = classifier
    prompts = ["a dog", "a painting by monet", "a black and white photo of a ship"]
    with torch.no_grad():
        alone = [
            float(network(**tiny_sd.tokenizer(text, return_tensors="pt")).logits.softmax(1)[0, 1]) for text in prompts
        ]
    low, middle, _ = sorted(alone)
    threshold = (low + middle) / 2
    found = caught(tiny_sd, prompts, rule="classifier", classifier=folder, label="nsfw", threshold=threshold)
    assert found == [p >= threshold for p in alone] and sorted(found) == [False, True, True]
    with pytest.raises(overpaint.UserError, match="label"):
        caught(tiny_sd, prompts, rule="classifier", classifier=folder, label="nudity", threshold=0.5)


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpm", "euler", "lms"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_refused_prompt_ends_as_the_black_image(predicting, scheduler, prediction):
    model = predicting(prediction)
    black = model.pixels_to_latents(-torch.ones(1, 3, model.image_size, model.image_size))
    with overpaint.erase(model, "prompt_filter", erase=["dog"]).attached(model), torch.no_grad():
        embeds = model.encode(["a dog", "a cat"])
        guidance = model.guidance(model, embeds, model.encode([""]).expand_as(embeds), 5.0, ["a dog", "a cat"])
        ours = model.denoise(model.noise([0, 1]), guidance, scheduler, 8)
    assert float((ours[:1] - black).std()) < 0.05 < float((ours[1:] - black).std())


def test_other_images_are_those_of_the_model_bit_for_bit(tiny_sd):
    prompts = ["a cat", "a dog", "a ship"]
    plain = pictures(tiny_sd, prompts)
    with overpaint.erase(tiny_sd, "prompt_filter", erase=["dog"]).attached(tiny_sd):
        filtered = pictures(tiny_sd, prompts)
    assert [np.array_equal(one, two) for one, two in zip(plain, filtered, strict=True)] == [True, False, True]


def test_nothing_to_look_for_leaves_every_image(tiny_sd):
    with overpaint.erase(tiny_sd, "prompt_filter", erase=["zeppelin"]).attached(tiny_sd):
        filtered = pictures(tiny_sd, ["a dog"])
    assert np.array_equal(filtered, pictures(tiny_sd, ["a dog"]))


def test_a_rewritten_prompt_gives_the_image_of_the_new_text(tiny_sd):
    concept = Concept("van gogh", anchor="monet")
    wanted = pictures(tiny_sd, ["a painting by monet", "a cat"])
    with overpaint.erase(tiny_sd, "prompt_filter", erase=[concept], preset="rewrite").attached(tiny_sd):
        assert all(map(np.array_equal, pictures(tiny_sd, ["a painting by Van  Gogh", "a cat"]), wanted))
    rule = component("method", "prompt_filter").build({"action": "rewrite"}, seed=0)
    assert rule.phrases(Request((Concept("dog"), concept))) == {"dog": "", "van gogh": "monet"}


def test_given_embeddings_pass(tiny_sd):
    with overpaint.erase(tiny_sd, "prompt_filter", erase=["dog"]).attached(tiny_sd), torch.no_grad():
        embeds = tiny_sd.encode(["a dog"])
        guidance = tiny_sd.guidance(tiny_sd, embeds, tiny_sd.encode([""]), 5.0, None)
        filtered = tiny_sd.denoise(tiny_sd.noise([0]), guidance, "ddim", 3)
    with torch.no_grad():
        plain = tiny_sd.guidance(tiny_sd, embeds, tiny_sd.encode([""]), 5.0, None)
        assert torch.equal(tiny_sd.denoise(tiny_sd.noise([0]), plain, "ddim", 3), filtered)


def test_it_stands_in_front_of_another_guard(tiny_sd):
    steering = overpaint.erase(tiny_sd, "sld", erase=["ship"], preset="max")
    with steering.attached(tiny_sd):
        steered = pictures(tiny_sd, ["a ship", "a dog"])
    both = overpaint.erase(tiny_sd, "prompt_filter", erase=["dog"], before=steering)
    with both.attached(tiny_sd):
        assert tiny_sd.guidance.guard.stateful
        ship, dog = pictures(tiny_sd, ["a ship", "a dog"])
    assert np.array_equal(ship, steered[0])
    with overpaint.erase(tiny_sd, "prompt_filter", erase=["dog"]).attached(tiny_sd):
        assert not tiny_sd.guidance.guard.stateful
        assert distance(torch.tensor(pictures(tiny_sd, ["a ship", "a dog"])[1]), torch.tensor(dog)) < 0.05


@pytest.mark.parametrize(
    "values, word",
    [
        ({"rule": "embedding"}, "threshold"),
        ({"rule": "classifier"}, "classifier"),
        ({"rule": "classifier", "classifier": "/nowhere", "threshold": 0.5}, "nowhere"),
        ({"rule": "embedding", "threshold": 0.5, "clip": "/nowhere"}, "nowhere"),
        ({"rule": "embedding", "threshold": 0.5, "action": "rewrite"}, "rewrite"),
        ({"match": "tokens", "action": "rewrite"}, "rewrite"),
        ({"threshold": 1.5}, "threshold"),
        ({"false_positives": 0.0}, "false_positives"),
        ({"calibration": "nowhere"}, "nowhere"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny_sd, values, word):
    with pytest.raises(overpaint.UserError, match=word):
        overpaint.erase(tiny_sd, "prompt_filter", erase=["dog"], **values)
