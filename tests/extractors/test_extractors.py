"""Extractors with random weights of the real architectures, against the libraries' own computations."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from overpaint.errors import AssetMissing, UserError
from overpaint.extractors import extractor_identity, hps, image_reward
from overpaint.extractors.clip import Aesthetic, ClipFeatures, ClipRating, cosines, unit
from overpaint.extractors.hps import Hps
from overpaint.extractors.image_reward import ImageReward
from overpaint.extractors.inception import Inception
from overpaint.extractors.lpips import Lpips
from overpaint.extractors.sscd import Sscd
from overpaint.extractors.testbed_words import TestbedWords
from overpaint.grid.registry import components
from overpaint.images.stages.extract import extracted
from overpaint.testbed.world import draw_concept

#: The file of a CLIP's tensors.
CLIP = "model.safetensors"
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
    measure = Lpips(weights=str(tmp_path / "alexnet.safetensors"), side=64, resample="bilinear")
    one, other = pictures(3), pictures(3, seed=1)
    found = measure.extract(one, TEXTS, other)["value"].to_numpy()
    theirs = lpips._NoTrainLpips(net="alex", pnet_rand=True)
    for name, value in theirs.net.state_dict().items():
        value.copy_(alexnet.features.state_dict()[name.split(".", 1)[1]])
    as_esd = torchvision.transforms.Compose([torchvision.transforms.Resize(64), torchvision.transforms.ToTensor()])
    with torch.no_grad():
        expected = theirs(*(torch.stack([(as_esd(i) - 0.5) * 2 for i in s]) for s in (one, other))).flatten().numpy()
    assert found == pytest.approx(expected, abs=1e-6)
    assert (found > 0).all()
    assert measure.extract(one, TEXTS, one)["value"].tolist() == [0, 0, 0]
    assert measure.extract(other, TEXTS, one)["value"].to_numpy() == pytest.approx(found, abs=1e-6)
    native = Lpips(weights=str(tmp_path / "alexnet.safetensors"), side=None, resample="bilinear")
    one[1], other[1] = one[1].resize((90, 64)), other[1].resize((90, 64))
    together = native.extract(one, TEXTS, other)["value"].to_numpy()
    alone = [native.extract([i], [""], [j])["value"].item() for i, j in zip(one, other, strict=True)]
    assert together == pytest.approx(alone, abs=1e-6), "images of several sizes"


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
    ours = Inception(weights=str(tmp_path / "inception.safetensors"))
    found = rows(ours.extract(pictures(2), ["", ""]))
    photographs = [pictures(1)[0], Image.new("RGB", (90, 64), "red"), pictures(2)[1]]
    mixed = rows(ours.extract(photographs, [""] * 3))
    assert mixed[[0, 2]] == pytest.approx(found, abs=1e-5), "photographs of a reference differ in size"
    assert mixed[1] == pytest.approx(rows(ours.extract(photographs[1:2], [""]))[0], abs=1e-5)
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in pictures(2)])
    with torch.no_grad():
        (theirs,) = network(pixels)
    assert found.shape == (2, 2048)
    assert found == pytest.approx(theirs.numpy(), abs=1e-5)


class Block(torch.nn.Module):
    """A block of open_clip's transformer, with its names."""

    def __init__(self, width, heads, mask=None):
        super().__init__()
        self.mask = mask
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = torch.nn.ModuleDict(
            {"c_fc": torch.nn.Linear(width, 3 * width), "c_proj": torch.nn.Linear(3 * width, width)}
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        return x + self.mlp["c_proj"](torch.nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class OpenClip(torch.nn.Module):
    """A CLIP as open_clip computes and names it, of 16 tokens and 28 × 28 pixels; `hps` reads its tensors."""

    def __init__(self, words, vision=64, text=32, out=24, heads=16):
        super().__init__()
        draw = lambda *shape: torch.nn.Parameter(torch.randn(shape) / 4)  # noqa: E731
        self.visual = torch.nn.Module()
        self.visual.conv1 = torch.nn.Conv2d(3, vision, 14, stride=14, bias=False)
        self.visual.class_embedding, self.visual.positional_embedding = draw(vision), draw(5, vision)
        self.visual.ln_pre, self.visual.ln_post = torch.nn.LayerNorm(vision), torch.nn.LayerNorm(vision)
        self.visual.transformer = torch.nn.Module()
        self.visual.transformer.resblocks = torch.nn.ModuleList(Block(vision, heads) for _ in range(2))
        self.visual.proj, self.text_projection = draw(vision, out), draw(text, out)
        self.token_embedding, self.positional_embedding = torch.nn.Embedding(words, text), draw(16, text)
        mask = torch.full((16, 16), -torch.inf).triu(1)
        self.transformer = torch.nn.Module()
        self.transformer.resblocks = torch.nn.ModuleList(Block(text, heads, mask) for _ in range(3))
        self.ln_final, self.logit_scale = torch.nn.LayerNorm(text), draw()
        for (
            parameter
        ) in self.parameters():  # biases and norms are 0 and 1 at first, and mistakes with them would not show
            parameter.data += torch.randn_like(parameter) / 8

    def images(self, pixels):
        x = self.visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.visual.positional_embedding
        x = self.visual.ln_pre(x)
        for block in self.visual.transformer.resblocks:
            x = block(x)
        return self.visual.ln_post(x[:, 0]) @ self.visual.proj

    def texts(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_final(x)[torch.arange(len(x)), ids.argmax(dim=-1)] @ self.text_projection


@pytest.fixture(scope="module")
def word_folder(tmp_path_factory):
    """A small tokenizer whose end token has the highest id, as CLIP's has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("words")
    words = ["<pad>", "a", "red", "car", "church", "at", "night", "<begin>", "<end>"]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", 7), ("<end>", 8)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<begin>", eos_token="<end>", pad_token="<pad>", model_max_length=16
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prefix", ["state_dict.", ""])
def test_hps_is_open_clips_cosine(word_folder, tmp_path, prefix):
    torch.manual_seed(4)
    theirs = OpenClip(9).eval()
    state = {f"{prefix}{name}": value.contiguous() for name, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "hps.safetensors")
    ours = Hps(weights=str(tmp_path / "hps.safetensors"), path=str(word_folder))
    images = pictures(3, side=28)
    ids = torch.tensor([[7, 1, 4, 8, *[0] * 12], [7, 1, 2, 3, 5, 6, 8, *[0] * 9], [7, 8, *[0] * 14]])
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (hps.MEAN, hps.STD))
    with torch.no_grad():
        seen, read = theirs.images((pixels - mean) / deviation), theirs.texts(ids)
    expected = 100 * torch.cosine_similarity(seen, read).numpy()
    assert ours.extract(images, TEXTS)["value"].to_numpy() == pytest.approx(expected, abs=1e-3)
    assert np.ptp(expected) > 1, "the pictures and prompts differ"


def test_hps_pads_an_image_to_a_square():
    wide = Image.new("RGB", (40, 20), "white")
    rows = np.asarray(hps.square(wide))
    assert (
        rows.shape == (40, 40, 3) and (rows[10:30] == 255).all() and (rows[:10] == 0).all() and (rows[30:] == 0).all()
    )
    assert hps.square(rows_image := Image.new("RGB", (8, 8))) is rows_image


def test_another_checkpoint_is_refused_by_name(word_folder, tmp_path):
    state = OpenClip(9).state_dict()
    for name, changed in {
        "extra": state | {"extra.weight": torch.ones(2)},
        "less": dict(list(state.items())[:-5]),
    }.items():
        file = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in changed.items()}, file)
        with pytest.raises(UserError, match=f"{name}.safetensors"):
            Hps(weights=str(file), path=str(word_folder)).extract(pictures(1), [""])
    with pytest.raises(UserError, match="is not ImageReward's checkpoint"):
        image_reward.networks({"blip.visual_encoder.cls_token": torch.ones(1, 1, 4)}, "some file")


class BlipAttention(torch.nn.Module):
    """Attention with BERT's names: queries of ``width``, keys and values of ``other``."""

    def __init__(self, width, other, heads):
        super().__init__()
        self.heads = heads
        self.self = torch.nn.ModuleDict(
            {
                "query": torch.nn.Linear(width, width),
                "key": torch.nn.Linear(other, width),
                "value": torch.nn.Linear(other, width),
            }
        )
        self.output = torch.nn.ModuleDict(
            {"dense": torch.nn.Linear(width, width), "LayerNorm": torch.nn.LayerNorm(width, eps=1e-12)}
        )

    def forward(self, x, read, mask=None):
        q, k, v = (
            self.self[name](of).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name, of in (("query", x), ("key", read), ("value", read))
        )
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return self.output["LayerNorm"](self.output["dense"](attended) + x)


class BlipWords(torch.nn.Module):
    """BLIP's text encoder with cross-attention, as Salesforce computes and names it."""

    def __init__(self, words, width, other, depth):
        super().__init__()
        self.embeddings = torch.nn.Module()
        self.embeddings.word_embeddings = torch.nn.Embedding(words, width)
        self.embeddings.position_embeddings = torch.nn.Embedding(40, width)
        self.embeddings.LayerNorm = torch.nn.LayerNorm(width, eps=1e-12)
        self.embeddings.register_buffer("position_ids", torch.arange(40)[None])
        self.encoder = torch.nn.Module()
        self.encoder.layer = torch.nn.ModuleList(self.layer(width, other) for _ in range(depth))

    @staticmethod
    def layer(width, other):
        built = torch.nn.Module()
        built.attention, built.crossattention = (
            BlipAttention(width, width, width // 64),
            BlipAttention(width, other, width // 64),
        )
        built.intermediate = torch.nn.ModuleDict({"dense": torch.nn.Linear(width, 96)})
        built.output = torch.nn.ModuleDict(
            {"dense": torch.nn.Linear(96, width), "LayerNorm": torch.nn.LayerNorm(width, eps=1e-12)}
        )
        return built

    def forward(self, ids, mask, seen):
        x = self.embeddings.word_embeddings(ids) + self.embeddings.position_embeddings.weight[: ids.shape[1]]
        x, mask = self.embeddings.LayerNorm(x), mask.bool()[:, None, None, :]
        for layer in self.encoder.layer:
            x = layer.crossattention(layer.attention(x, x, mask), seen)
            between = torch.nn.functional.gelu(layer.intermediate["dense"](x))
            x = layer.output["LayerNorm"](layer.output["dense"](between) + x)
        return x


def test_image_reward_is_blip_with_linear_layers(word_folder, tmp_path):
    """timm's vision transformer has the names and the arithmetic of Salesforce's."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(5)
    eyes = timm.models.VisionTransformer(
        img_size=224, patch_size=32, embed_dim=64, depth=2, num_heads=1, num_classes=0, mlp_ratio=2
    )
    words = BlipWords(9, 128, 64, 2)
    head = torch.nn.Sequential(torch.nn.Linear(128, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    for network in (eyes, words, head):
        network.eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter) / 8
    state = {f"blip.visual_encoder.{name}": value for name, value in eyes.state_dict().items()}
    state |= {f"blip.text_encoder.{name}": value for name, value in words.state_dict().items()}
    state |= {f"mlp.layers.{name}": value for name, value in head.state_dict().items()}
    state |= {"blip.vision_proj.weight": torch.ones(2), "blip.text_proj.bias": torch.ones(2)}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "reward.safetensors")
    ours = ImageReward(weights=str(tmp_path / "reward.safetensors"), tokenizer=str(word_folder))
    images = pictures(3, side=224)
    ids = torch.tensor([[7, 1, 4, 8, *[0] * 31], [7, 1, 2, 3, 5, 6, 8, *[0] * 28], [7, 8, *[0] * 33]])
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (hps.MEAN, hps.STD))
    states = words(ids, ids != 0, eyes.forward_features((pixels - mean) / deviation))
    expected = ((head(states[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072).numpy()
    assert ours.extract(images, TEXTS)["value"].to_numpy() == pytest.approx(expected, abs=1e-4)
    swapped = ours.extract(images[::-1], TEXTS)["value"].to_numpy()
    assert abs(swapped[0] - expected[0]) > 1e-3, "the prompt's reward depends on the image"


def test_sscd_is_a_resnet_with_generalised_mean_pooling(tmp_path):
    torchvision = pytest.importorskip("torchvision", reason="SSCD needs torchvision (overpaint[metrics])")
    torch.manual_seed(6)
    resnet = torchvision.models.resnet50(weights=None, num_classes=512).eval()
    save_file({f"backbone.{name}": value for name, value in resnet.state_dict().items()}, tmp_path / "sscd.safetensors")
    measure = Sscd(weights=str(tmp_path / "sscd.safetensors"), side=64)
    one, other = pictures(3, side=64), pictures(3, side=64, seed=1)
    trunk = torch.nn.Sequential(*list(resnet.children())[:-2])

    def described(images):
        pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
        mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        cubes = trunk((pixels - mean) / deviation).clamp(min=1e-6) ** 3
        return resnet.fc(cubes.mean(dim=(2, 3)) ** (1 / 3))

    with torch.no_grad():
        expected = torch.cosine_similarity(described(one), described(other)).numpy()
    assert measure.extract(one, TEXTS, other)["value"].to_numpy() == pytest.approx(expected, abs=1e-5)
    assert measure.extract(one, TEXTS, one)["value"].tolist() == pytest.approx([1, 1, 1])


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
    with pytest.raises(AssetMissing, match=r"overpaint fetch asset=|hf download Qwen"):
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


@pytest.mark.parametrize("kept", [torch.float16, torch.bfloat16])
def test_clip_computes_in_single_precision_whatever_its_file_holds(clip_folder, tmp_path, kept):
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    rounded = {name: t.to(kept) if t.is_floating_point() else t for name, t in load_file(tmp_path / CLIP).items()}
    save_file(rounded, tmp_path / CLIP, metadata={"format": "pt"})
    half, whole = ClipFeatures(path=str(tmp_path)), tmp_path / "whole"
    shutil.copytree(tmp_path, whole)
    config = json.loads((tmp_path / "config.json").read_text()) | {"dtype": str(kept).removeprefix("torch.")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({name: t.float() for name, t in rounded.items()}, whole / CLIP, metadata={"format": "pt"})
    single = ClipFeatures(path=str(whole))
    assert half._clip.table.dtype == torch.float32
    assert half.embedded(pictures(2)) == pytest.approx(single.embedded(pictures(2)), abs=1e-5)
    assert half.texts(TEXTS) == pytest.approx(single.texts(TEXTS), abs=1e-5)


def test_a_clip_without_a_tokenizer_reads_images_only(clip_folder, tmp_path):
    """transformers makes a tokenizer without words, so that all texts would have one embedding."""
    for name in ("config.json", "preprocessor_config.json", "processor_config.json", CLIP):
        if (clip_folder / name).exists():
            shutil.copy(clip_folder / name, tmp_path)
    bare = ClipFeatures(path=str(tmp_path))
    assert bare.embedded(pictures(2)) == pytest.approx(
        ClipFeatures(path=str(clip_folder)).embedded(pictures(2)), abs=1e-5
    )
    with pytest.raises(
        AssetMissing, match=r"reads no texts: its folder has no tokenizer \(tokenizer.json or vocab.json"
    ):
        bare.texts(TEXTS)


def test_a_clip_that_lacks_weights_is_refused(clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    kept = {name: t for name, t in load_file(tmp_path / CLIP).items() if not name.startswith("text_projection")}
    save_file(kept, tmp_path / CLIP, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not fit the network: missing keys such as text_projection\.weight"):
        ClipFeatures(path=str(tmp_path)).embedded(pictures(1))


def test_every_extractors_network_runs_in_single_precision(monkeypatch):
    """By default torch's convolutions on a GPU are in TF32, and `torch.backends.cudnn.flags` turns cuDNN off."""
    seen = []

    def note(*_, **__):
        seen.append((torch._C._get_cudnn_enabled(), torch._C._get_cudnn_allow_tf32(), torch.is_grad_enabled()))
        raise StopIteration

    network = property(lambda self: note)
    for kind, name in ((Inception, "_network"), (Lpips, "_network"), (Sscd, "_network"), (ImageReward, "rewards")):
        monkeypatch.setattr(kind, name, network)
    monkeypatch.setattr(ClipFeatures, "_clip", property(note))
    images = pictures(2)
    for extractor in (
        Inception(weights=""),
        Lpips(weights="", side=64, resample="bilinear"),
        Sscd(weights="", side=64),
        ImageReward(weights="", tokenizer=""),
        ClipFeatures(path=""),
    ):
        with pytest.raises(StopIteration):
            extractor.extract(images, ["", ""], images)
    assert seen == [(True, False, False)] * 5


def test_a_failed_image_has_no_reading(clip_folder):
    one, _, other = pictures(3)
    frame = extracted(ClipFeatures(path=str(clip_folder)), [one, None, other], TEXTS)
    assert [row is None for row in frame["features"]] == [False, True, False]
    rated = extracted(ClipRating(path=str(clip_folder)), [one, None, other], TEXTS)
    assert pd.isna(rated["value"]).tolist() == [False, True, False]
    nothing = extracted(ClipFeatures(path=str(clip_folder)), [None, None], TEXTS[:2])
    assert len(nothing) == 2
