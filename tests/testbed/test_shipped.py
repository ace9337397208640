"""The committed weights, tokenizer and catalogue."""

import csv
import hashlib
import json

import numpy as np
import pytest
import yaml

from overpaint.detectors.oracle import OracleDetector
from overpaint.grid.concepts import load_catalogue
from overpaint.grid.shipped import shipped
from overpaint.testbed.captions import draw_world
from overpaint.testbed.exporting import weight_bytes
from overpaint.testbed.membership import example
from overpaint.testbed.oracle import load_oracle
from overpaint.testbed.tokenizer import MAX_TOKENS, split_words
from overpaint.testbed.world import LABELLED, draw_concept

FOLDER = shipped("datasets") / "testbed"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(FOLDER / "pipeline" / "tokenizer")


@pytest.fixture(scope="module")
def catalogue():
    return yaml.safe_load((shipped("datasets") / "concepts" / "testbed.yaml").read_text(encoding="utf-8"))


def catalogue_prompts(catalogue):
    for name, entry in catalogue["concepts"].items():
        yield from (template.format(name) for template in catalogue["templates"][entry["kind"]]["en"])
        for language, templates in catalogue["templates"][entry["kind"]].items():
            words = entry["translations"].get(language) or [*entry["synonyms"], *entry["paraphrases"]]
            yield from (template.format(word) for template in templates for word in words)
    yield from catalogue["implicit"]
    yield from (row["prompt"] for row in load_catalogue("testbed").utility)


def test_every_caption_word_is_one_token_and_captions_fit(tokenizer):
    captions = [example(index)[1] for index in range(3000)]
    assert split_words(tokenizer, sorted({word for text in captions for word in text.split()})) == []
    assert max(len(ids) for ids in tokenizer(captions).input_ids) <= MAX_TOKENS == tokenizer.model_max_length


def test_every_catalogue_word_is_one_token_and_prompts_fit(tokenizer, catalogue):
    prompts = list(catalogue_prompts(catalogue))
    assert split_words(tokenizer, sorted({word for text in prompts for word in text.split()})) == []
    assert max(len(ids) for ids in tokenizer(prompts).input_ids) <= MAX_TOKENS


def test_unseen_words_are_no_tokens_and_not_in_the_catalogue(tokenizer, catalogue):
    assert set(split_words(tokenizer, ["rocket", "snowman"])) == {"rocket", "snowman"} == set(catalogue["unseen"])
    assert not set(catalogue["unseen"]) & set(catalogue["concepts"])


def test_the_catalogue_is_consistent(catalogue):
    labels = set(json.loads((FOLDER / "oracle" / "oracle.json").read_text(encoding="utf-8"))["labels"])
    for name, entry in catalogue["concepts"].items():
        assert entry["label"] in labels
        assert set(entry["neighbours"]) <= set(catalogue["concepts"]) - {name}
        assert entry["anchor"] in ("", *catalogue["concepts"])
        assert all(template.count("{}") == 1 for t in catalogue["templates"][entry["kind"]].values() for template in t)
    assert all(set(row["expects"]) <= labels for row in catalogue["utility"])
    assert not any(word in prompt for prompt in catalogue["implicit"] for word in ("slim", "goo", "ooze", "drips"))


def test_every_kind_has_fifty_target_prompts_and_the_first_24_never_change(catalogue):
    english = {kind: by_language["en"] for kind, by_language in catalogue["templates"].items()}
    assert set(english) == {entry["kind"] for entry in catalogue["concepts"].values()}
    for name, entry in catalogue["concepts"].items():
        prompts = [template.format(name) for template in english[entry["kind"]]]
        assert len(prompts) == len(set(prompts)) >= 50, name
    first = "\n".join(f"{kind}: {line}" for kind in sorted(english) for line in english[kind][:24])
    assert hashlib.sha256(first.encode()).hexdigest()[:16] == "d2f0f19cbf992a2f"


def test_there_are_a_thousand_ordinary_prompts_and_the_listed_ones_come_first(catalogue):
    utility, labels = load_catalogue("testbed").utility, {entry["label"] for entry in catalogue["concepts"].values()}
    assert [dict(row) for row in utility[: len(catalogue["utility"])]] == catalogue["utility"]
    assert len({row["prompt"] for row in utility}) == len(utility) >= 1000
    for row in utility:
        assert set(row["expects"]) <= labels and len(set(row["expects"])) == len(row["expects"]) > 0
    made = utility[len(catalogue["utility"]) :]
    assert {row["expects"][0] for row in made[:22]} == {row["expects"][0] for row in made}, (
        "each round has every concept"
    )
    first = "\n".join(row["prompt"] for row in utility[:100])
    assert hashlib.sha256(first.encode()).hexdigest()[:16] == "29b03006a1bc1144"


def test_every_added_sentence_was_measured_and_is_painted(catalogue):
    """`scripts/check_prompts.py` writes the figures."""
    with (FOLDER / "prompts.csv").open(encoding="utf-8") as file:
        measured = {(row["kind"], row["sentence"]): row for row in csv.DictReader(file)}
    added = [(kind, line) for kind, lines in catalogue["templates"].items() for line in lines["en"][24:]]
    added += [("utility", row["prompt"]) for row in catalogue["utility_templates"]]
    assert list(measured) == added
    assert [key for key, row in measured.items() if float(row["agreement"]) < 0.9 or int(row["images"]) < 13] == []


@pytest.mark.parametrize("which", ["a", "b"])
def test_the_oracle_reads_fresh_renders(which):
    oracle = load_oracle(FOLDER / "oracle", which)
    drawn = draw_world(200, seed=99)
    probabilities, features = oracle.predict([picture for _, _, picture in drawn])
    truth = np.array([[label in scene.labels for label in oracle.labels] for scene, _, _ in drawn])
    assert probabilities.shape == truth.shape and features.shape[0] == 200 and features.shape[1] <= 128
    assert ((probabilities > 0.5) == truth).mean() > 0.99
    assert (probabilities > 0.5)[truth].mean() > 0.93
    assert np.allclose(probabilities[:, len(LABELLED) :].sum(1), 1, atol=1e-4)


def test_the_oracle_knows_objects_the_model_never_saw():
    oracle = load_oracle(FOLDER / "oracle")
    for name in ("rocket", "snowman"):
        probabilities, _ = oracle.predict(draw_concept(name, 30, seed=4))
        assert (probabilities[:, oracle.labels.index(name)] > 0.5).mean() > 0.9


def test_predictions_do_not_depend_on_the_batch():
    oracle = load_oracle(FOLDER / "oracle")
    pictures = draw_concept("cat", 7, seed=2)
    assert np.allclose(oracle.predict(pictures)[0], oracle.predict(pictures, batch=2)[0], atol=1e-5)
    assert oracle.predict([])[0].shape == (0, len(oracle.labels))
    with pytest.raises(ValueError, match="64x64"):
        oracle.predict(np.zeros((1, 32, 32, 3), np.uint8))


def test_the_detector_reads_pictures_of_another_size():
    detector, pictures = OracleDetector(which="a"), draw_concept("cat", 20, seed=3)
    own, twice = (detector.score([p.resize((side, side)) for p in pictures]) for side in (64, 128))
    assert (own["cat"] > 0.5).mean() > 0.9
    assert ((own["cat"] > 0.5) == (twice["cat"] > 0.5)).mean() >= 0.9


def test_weights_are_small_half_precision_and_safe():
    from safetensors import safe_open

    assert weight_bytes(FOLDER) <= 15_000_000
    for path in FOLDER.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} <= {"F16", "I64"}, path  # noqa: SIM118
    assert not [path for pattern in ("*.bin", "*.pt", "*.pkl", "*.ckpt") for path in FOLDER.rglob(pattern)]


def test_the_pipeline_loads_and_paints():
    import torch

    from overpaint.testbed.exporting import load_pipeline

    pipeline = load_pipeline(FOLDER / "pipeline")
    assert pipeline.vae.config.scaling_factor == 1.0
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = (
        pipeline("a church", latents=noise.clone(), num_inference_steps=3, height=64, width=64, output_type="np").images
        for _ in range(2)
    )
    assert first.shape == (1, 64, 64, 3) and np.array_equal(first, second)
