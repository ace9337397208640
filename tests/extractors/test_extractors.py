"""Extractors with random weights of the real architectures, against the libraries' own computations."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from overpaint.errors import AssetMissing
from overpaint.extractors import extractor_identity
from overpaint.extractors.clip import Aesthetic, ClipFeatures, ClipRating, cosines, unit
from overpaint.extractors.inception import Inception
from overpaint.extractors.lpips import Lpips
from overpaint.extractors.testbed_words import TestbedWords
from overpaint.grid.registry import components
from overpaint.images.stages.extract import extracted
from overpaint.testbed.world import draw_concept

TEXTS = ["a church", "a red car at night", ""]


def pictures(count, side=72, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP of real layout with a small tokenizer, in transformers' layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPTextConfig,
        CLIPVisionConfig,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("clip")
    words = ["<end>", "<begin>", "a", "red", "car", "church", "at", "night"]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", 1), ("<end>", 0)]
    )
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<begin>", eos_token="<end>", pad_token="<end>", model_max_length=16
    )
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = CLIPTextConfig(
        vocab_size=len(words), max_position_embeddings=16, eos_token_id=0, bos_token_id=1, pad_token_id=0, **small
    )
    vision = CLIPVisionConfig(image_size=64, patch_size=16, **small)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)).eval()
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(clip_folder):
    """The logits (images, texts) of transformers' own forward pass, divided by the scale: cosines."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens, processor = AutoTokenizer.from_pretrained(clip_folder), CLIPImageProcessor.from_pretrained(clip_folder)
    with torch.no_grad():
        found = [
            model(
                **tokens(text, return_tensors="pt"),
                pixel_values=processor(images=pictures(3), return_tensors="pt").pixel_values,
            )
            for text in TEXTS
        ]
    return torch.cat([out.logits_per_image / model.logit_scale.exp() for out in found], dim=1).detach().numpy()


def rows(frame):
    return np.stack([np.asarray(row) for row in frame["features"]])


def test_clip_cosines_are_those_of_transformers(clip_folder, reference):
    clip = ClipFeatures(path=str(clip_folder))
    images, texts = rows(clip.extract(pictures(3), TEXTS)), clip.texts(TEXTS)
    assert unit(images) @ unit(texts).T == pytest.approx(reference, abs=1e-4)  # torchvision resizes in other steps


def test_a_rating_is_the_logit_of_an_image_and_its_prompt(clip_folder, reference):
    rating = ClipRating(path=str(clip_folder))
    from transformers import CLIPModel

    scale = float(CLIPModel.from_pretrained(clip_folder).logit_scale.exp())
    assert rating.extract(pictures(3), TEXTS)["value"].to_numpy() == pytest.approx(scale * np.diag(reference), abs=1e-3)


def test_batches_do_not_matter(clip_folder, monkeypatch):
    clip = ClipFeatures(path=str(clip_folder))
    whole = rows(clip.extract(pictures(5), [""] * 5))
    monkeypatch.setattr("overpaint.extractors.clip.batched", lambda n: (slice(i, i + 2) for i in range(0, n, 2)))
    assert rows(clip.extract(pictures(5), [""] * 5)) == pytest.approx(whole, abs=1e-5)


def test_aesthetic_is_linear_layers_on_the_unit_embedding(clip_folder, tmp_path):
    torch.manual_seed(1)
    head = torch.nn.Sequential(torch.nn.Linear(24, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)).eval()
    save_file({f"layers.{name}": value for name, value in head.state_dict().items()}, tmp_path / "head.safetensors")
    found = Aesthetic(path=str(clip_folder), head=str(tmp_path / "head.safetensors")).extract(pictures(3), TEXTS)
    embedded = rows(ClipFeatures(path=str(clip_folder)).extract(pictures(3), TEXTS))
    with torch.no_grad():
        theirs = head(torch.from_numpy(unit(embedded)).float())[:, 0].numpy()
    assert found["value"].to_numpy() == pytest.approx(theirs, abs=1e-5)


def test_lpips_is_torchmetrics_with_the_given_trunk(tmp_path):
    torchvision = pytest.importorskip("torchvision", reason="LPIPS needs torchvision (overpaint[metrics])")
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    torch.manual_seed(2)
    alexnet = torchvision.models.alexnet(weights=None)
    save_file(alexnet.state_dict(), tmp_path / "alexnet.safetensors")
    measure = Lpips(weights=str(tmp_path / "alexnet.safetensors"), side=64)
    one, other = pictures(3), pictures(3, seed=1)
    found = measure.extract(one, TEXTS, other)["value"].to_numpy()
    theirs = lpips._NoTrainLpips(net="alex", pnet_rand=True)
    for name, value in theirs.net.state_dict().items():
        value.copy_(alexnet.features.state_dict()[name.split(".", 1)[1]])
    pixels = [
        torch.stack([torch.from_numpy(np.array(i.resize((64, 64)))).permute(2, 0, 1) for i in s]) for s in (one, other)
    ]
    with torch.no_grad():
        expected = theirs(*(p / 127.5 - 1 for p in pixels)).flatten().numpy()
    assert found == pytest.approx(expected, abs=1e-6)
    assert (found > 0).all()
    assert measure.extract(one, TEXTS, one)["value"].tolist() == [0, 0, 0]
    assert measure.extract(other, TEXTS, one)["value"].to_numpy() == pytest.approx(found, abs=1e-6)


def test_inception_features_are_torch_fidelitys(tmp_path):
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="needs torch-fidelity (overpaint[metrics])"
    )
    network = module.FeatureExtractorInceptionV3.__new__(module.FeatureExtractorInceptionV3)
    torch.manual_seed(3)
    loaded = {}

    def keep(self, state):
        loaded.update(self.state_dict())

    with pytest.MonkeyPatch.context() as patched:  # random weights of the real architecture
        patched.setattr(module.torch, "load", lambda *args, **kwargs: {})
        patched.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", keep)
        network.__init__("random", ["2048"], "unused")
    save_file({name: value.contiguous() for name, value in loaded.items()}, tmp_path / "inception.safetensors")
    found = rows(Inception(weights=str(tmp_path / "inception.safetensors")).extract(pictures(2), ["", ""]))
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in pictures(2)])
    with torch.no_grad():
        (theirs,) = network(pixels)
    assert found.shape == (2, 2048)
    assert found == pytest.approx(theirs.numpy(), abs=1e-5)


def test_testbed_words_puts_an_image_near_what_it_shows():
    words = TestbedWords(catalogue="testbed")
    images = rows(words.extract(draw_concept("church", 6, seed=3), [""] * 6))
    near = [cosines(images, words.texts([text] * 6)).mean() for text in ("a church", "a car", "")]
    assert near[0] > max(near[1:]) + 0.3
    assert words.texts(["a chapel at night"]).tolist() == words.texts(["eine kirche"]).tolist()
    assert (words.texts(["nothing known"])[0, :-1] == 0).all()


@pytest.mark.parametrize("name", sorted(components("extractor")))
def test_every_extractor_says_which_file_is_missing(name):
    if name == "testbed_words":
        assert len(extractor_identity(name)["assets"]) == 2
        return
    pytest.importorskip("overpaint.grid.assets")
    with pytest.raises(AssetMissing, match="overpaint fetch"):
        extractor_identity(name)


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(AssetMissing, match="does not exist"):
        ClipFeatures(path=str(tmp_path / "nowhere")).assets()


def test_hashes_follow_the_content(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    first = ClipFeatures(path=str(tmp_path)).assets()
    (tmp_path / "b.txt").write_text("other")
    second = ClipFeatures(path=str(tmp_path)).assets()
    assert first.keys() == second.keys() == {"a.txt", "b.txt"}
    assert first["a.txt"] == second["a.txt"] and first["b.txt"] != second["b.txt"]


def test_a_failed_image_has_no_reading(clip_folder):
    one, _, other = pictures(3)
    frame = extracted(ClipFeatures(path=str(clip_folder)), [one, None, other], TEXTS)
    assert [row is None for row in frame["features"]] == [False, True, False]
    rated = extracted(ClipRating(path=str(clip_folder)), [one, None, other], TEXTS)
    assert pd.isna(rated["value"]).tolist() == [False, True, False]
    nothing = extracted(ClipFeatures(path=str(clip_folder)), [None, None], TEXTS[:2])
    assert len(nothing) == 2
