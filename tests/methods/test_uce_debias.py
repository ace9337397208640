"""UCE's debiasing with a scripted classifier, against explicit updates; the classifiers of attributes."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import overpaint
from official import distance, parameters, watched
from overpaint.blocks.attributes import attribute_classifier
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.registry import component
from overpaint.metrics.balance import AttributeGap
from overpaint.metrics.metric import Evidence

SMALL = {"variant": "current", "images": 4, "steps": 2, "attributes": ["ship", "the cat"], "tolerance": 0.05}


def debiased(model, shown, erase=("dog",), retain=("bird",), **values):
    """The erasure with a classifier that returns ``shown``, one answer per concept and round, and the traced rounds."""
    answers = iter(shown)
    uce = component("method", "uce").build(SMALL | {"iterations": 5} | values)
    with watched() as rounds:
        erasure = uce.debias(model, Request.of(list(erase), None, list(retain)), lambda images: next(answers))
    return erasure, rounds


@pytest.mark.parametrize("tag", ["debias_two", "debias_three"])
def test_official_code(tag, tiny_sd_float64, golden, monkeypatch):
    """Gaps, the weights of every round, the last round and the result, with the recorded answers."""
    model = tiny_sd_float64
    meta, results, painted_with = golden(f"uce/f64/{tag}")
    name = "up_blocks.2.attentions.1.transformer_blocks.0.attn2.to_v.weight"
    answers, seen = iter(meta["labels"]), []
    monkeypatch.setattr(type(model), "sample", lambda self, prompts, *_, **__: [None] * len(prompts))

    def classify(images):
        seen.append(model.named_parameters()[name].data.clone())
        return next(answers)

    settings = {"desired", "iterations", "tolerance", "images", "lamb", "preserve_scale"}
    uce = component("method", "uce").build(
        {"variant": "current", "attributes": meta["attributes"], "erase_scale": meta["edit_scale"]}
        | {key: meta[key] for key in settings}
    )
    base = parameters(model, results)
    with watched() as rounds:
        erasure = uce.debias(model, Request.of(meta["edit"], None, meta["preserve"]), classify)
    assert torch.stack([shown["gap"] for shown in rounds]).tolist() == meta["gaps"]
    assert next(answers, None) is None
    assert torch.equal(seen[0], base[name])
    for place, weight in enumerate(seen[:: len(meta["edit"])]):
        if place:
            assert distance(weight, painted_with[f"painted_with.{place}"], base[name]) < 1e-10
    with erasure.attached(model):
        for matrix, ours in parameters(model, results).items():
            assert distance(ours, results[matrix], base[matrix]) < 1e-10, matrix


def row(model, text):
    return model.encode([text])[0, model.last_subject_token(text)].double()


def test_steps_add_up_and_every_solve_starts_from_the_models_own_weights(tiny_sd_float64):
    model = tiny_sd_float64
    erasure, rounds = debiased(model, [[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]], lamb=0.3, step_size=0.5)
    gaps = torch.tensor([[-0.25, 0.25], [-0.5, 0.5], [0.0, 0.0]]).double()
    torch.testing.assert_close(torch.stack([seen["gap"][0] for seen in rounds]), gaps)
    s = 0.5 * (gaps[0] + gaps[1])
    k, p, ship, cat = (row(model, text) for text in ("dog", "bird", "ship", "the cat"))
    A = 0.3 * torch.eye(len(k)) + torch.outer(k, k) + torch.outer(p, p)
    with erasure.attached(model):
        for name, tensor in erasure.tensors.items():
            W = erasure.base[name]
            wanted = W @ (k + s[0] * ship + s[1] * cat)  # v*, whose residual is its distance from W k
            torch.testing.assert_close(
                tensor, W + torch.outer(wanted - W @ k, torch.linalg.solve(A, k)), rtol=0, atol=1e-10
            )


def test_a_balanced_concept_changes_no_bit(tiny_sd):
    erasure, rounds = debiased(tiny_sd, [[0, 1, 1, 0]])
    assert len(rounds) == 1 and erasure.manifest["weights"] == [[0, 0]]
    with erasure.attached(tiny_sd):
        assert all(torch.equal(tensor, erasure.base[name]) for name, tensor in erasure.tensors.items())


def test_a_gap_below_the_tolerance_is_none(tiny_sd):
    shown, values = [0] * 11 + [1] * 9, {"images": 20}  # a gap of 0.05, which floating point sees as a little more
    assert len(debiased(tiny_sd, [shown], tolerance=0.06, **values)[1]) == 1
    assert len(debiased(tiny_sd, [shown, [0, 1] * 10], tolerance=0.04, **values)[1]) == 2


def test_only_concepts_with_a_gap_take_a_step(tiny_sd):
    erasure, _ = debiased(
        tiny_sd, [[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]], erase=("dog", "mouse"), iterations=2
    )
    assert erasure.manifest["weights"] == [[0.5, -0.5], [-0.5, 0.5]]


def test_desired_shares_and_the_last_round(tiny_sd):
    erasure, rounds = debiased(tiny_sd, [[0, 0, 1, 1]] * 3, desired=[0.75, 0.25], iterations=3)
    assert len(rounds) == 3 and erasure.manifest["weights"] == [[0.75, -0.75]]  # the last step is taken unseen
    assert len(debiased(tiny_sd, [[0, 0, 0, 1]], desired=[0.75, 0.25])[1]) == 1


@pytest.mark.parametrize(
    "values, said",
    [
        ({"variant": "legacy"}, "variant=current"),
        ({"attributes": ["ship"]}, "at least two"),
        ({"desired": [0.5, 0.4]}, "desired"),
        ({"desired": [1.0]}, "desired"),
        ({"technique": "tensor"}, "technique"),
        ({"images": 0}, "images"),
        ({"classifier": "oracle", "attributes": ["ship", "cat"]}, "attribute 'ship' in detector oracle"),
        ({"classifier": "./nowhere"}, "cannot load the CLIP model"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny_sd, values, said, monkeypatch):
    blank = [Image.new("RGB", (64, 64))]
    monkeypatch.setattr(type(tiny_sd), "sample", lambda self, prompts, *_, **__: blank * len(prompts))
    with pytest.raises(overpaint.UserError, match=said):
        overpaint.erase(tiny_sd, "uce", erase=["dog"], **(SMALL | values))


def test_a_detectors_labels_are_attributes():
    from overpaint.testbed.world import draw_concept

    pictures = [*draw_concept("cat", 3, seed=1), *draw_concept("fish", 2, seed=1)]
    assert attribute_classifier("oracle", ["fish", "cat"], torch.device("cpu"))(pictures) == [1, 1, 1, 0, 0]


def test_a_picture_that_the_detector_fails_on_has_no_attribute(monkeypatch):
    def unseen(self, images):
        return pd.DataFrame({"fish": [math.nan, 0.1], "cat": [math.nan, 0.9], "failed": [True, False]})

    monkeypatch.setattr("overpaint.detectors.oracle.OracleDetector.score", unseen)
    with pytest.raises(overpaint.UserError, match="detector oracle failed on 1 of 2 pictures"):
        attribute_classifier("oracle", ["fish", "cat"], torch.device("cpu"))([None, None])


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory, goldens):
    """The folder of a random CLIP model with ``tiny_sd``'s tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(goldens / "tiny_sd" / "tokenizer")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CLIPModel(
            CLIPConfig(
                text_config=sizes | ends | {"vocab_size": len(tokenizer)},
                vision_config=sizes | {"image_size": 32, "patch_size": 8},
                projection_dim=8,
            )
        )
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    folder = tmp_path_factory.mktemp("tiny_clip")
    model.save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)
    return folder


def test_clip_classifies_as_transformers_does(tiny_clip):
    from transformers import pipeline

    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(12)]
    pictures += [Image.new("RGB", (32, 32), tuple(rng.integers(0, 256, 3).tolist())) for _ in range(12)]
    words = ["male", "female", "a ship"]
    official = pipeline("zero-shot-image-classification", model=str(tiny_clip), device="cpu")
    theirs = [words.index(answer[0]["label"]) for answer in official(pictures, candidate_labels=words)]
    ours = attribute_classifier(str(tiny_clip), words, torch.device("cpu"))(pictures)
    assert ours == theirs and len(set(ours)) > 1


def test_the_testbed_is_balanced_by_its_oracle():
    """From `overpaint.erase` to generated and counted images: churches are in the flat style unless a prompt says otherwise."""
    small = {"variant": "current", "images": 2, "steps": 4, "iterations": 1, "guidance_scale": 4.0}
    values = small | {"classifier": "oracle", "attributes": ["flat", "sketch"]}
    erasure = overpaint.erase(overpaint.load_model("testbed"), "uce", erase=["church"], **values)
    assert erasure.manifest["gaps"] == [[[-0.5, 0.5]]] and erasure.changes


@pytest.mark.slow
def test_debiasing_lowers_the_attribute_gap_of_the_testbeds_adults():
    """All adults of the unedited testbed are men; small steps bring women back."""
    model, oracle = overpaint.load_model("testbed"), component("detector", "oracle").build({})
    prompts = [
        f"{start} an adult{end}"
        for start in ("a portrait of", "a photo of", "")
        for end in ("", " at night", " at dusk")
    ]

    def shown():
        images = model.sample(
            [text.strip() for text in prompts] * 2, list(range(18)), steps=10, guidance_scale=4.0, scheduler="dpm"
        )
        return oracle.score(images).assign(
            prompt_id=prompts * 2, seed=np.repeat([0, 1], 9), role="attributes", concept="adult"
        )

    rounds = {"images": 12, "steps": 10, "iterations": 10, "guidance_scale": 4.0, "tolerance": 0.1, "step_size": 0.2}
    attributes = {"variant": "current", "attributes": ["man", "woman"], "classifier": "oracle_b"}
    kept = ["man", "woman", "mira", "quillan", "church", "house", "tree", "cat"]
    erasure = overpaint.erase(model, "uce", erase=["adult"], retain=kept, **attributes, **rounds)
    original = shown()
    with erasure.attached(model):
        evidence = Evidence([Concept("adult")], shown(), original, desired={"man": 0.5, "woman": 0.5})
    figure = AttributeGap().measure(evidence)
    assert figure.original == 1 and figure.value < 0.9
