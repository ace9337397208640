"""Detectors with a network, against a second implementation: transformers, diffusers, torchvision and timm themselves."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import overpaint
from overpaint.blocks.pixels import Preprocessing
from overpaint.detectors import detector_identity
from overpaint.detectors.faces import InceptionResnetV1
from overpaint.detectors.imagenet import imagenet_classes
from overpaint.detectors.network import class_scores, positions
from overpaint.detectors.nudenet import NudeNet
from overpaint.detectors.q16 import inappropriate_probability
from overpaint.grid.assets import asset
from overpaint.grid.registry import component
from overpaint.models.weights import load_state

pytest.importorskip("skimage")


@pytest.fixture
def weights(random_cache, monkeypatch):
    """``weights(name)``: the folder of an asset with random weights."""

    def filled(name):
        monkeypatch.setenv("OVERPAINT_ASSETS", str(random_cache(name)))
        return asset(name).path()

    return filled


@pytest.fixture(scope="module")
def images(photographs):
    """Photographs of other sides than the networks' inputs, square and not."""
    return [photographs[0], photographs[1], photographs[3].resize((300, 300)), photographs[2].resize((100, 240))]


def test_top1_scores_are_at_least_a_half_exactly_for_the_most_probable_class():
    logits = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)) * 3
    scores = class_scores(logits, "top1")
    assert ((scores >= 0.5).nonzero()[:, 1] == logits.argmax(dim=1)).all() and (scores >= 0.5).sum() == 1000
    p = logits.softmax(dim=1)
    odds = scores / (1 - scores)
    first = p.argmax(dim=1, keepdim=True)
    again = 1 / (1 + odds.scatter(1, first, 0).sum(dim=1))
    torch.testing.assert_close(
        again, p.gather(1, first)[:, 0], rtol=1e-4, atol=1e-6, msg="probabilities follow from scores"
    )
    assert torch.equal(class_scores(torch.zeros(1, 3), "top1"), torch.full((1, 3), 0.5))


def test_preprocessing_of_clip_is_transformers(images, weights):
    pil = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    folder = weights("clip_b32")
    theirs = pil.CLIPImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(Preprocessing.read(folder)(images), theirs, rtol=0, atol=1e-6)


def test_preprocessing_of_imagenet_is_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    assert (theirs.resize_size, theirs.crop_size, theirs.interpolation.value) == ([232], [224], "bilinear")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8))
    ours = Preprocessing(232, 224, tuple(theirs.mean), tuple(theirs.std), Image.Resampling.BILINEAR)
    torch.testing.assert_close(ours([picture])[0], theirs(picture), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "told", [{}, {"size": 224}, {"size": {"longest_edge": 3}, "image_mean": [0], "image_std": [1]}]
)
def test_an_unusable_configuration_is_refused(tmp_path, told):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    with pytest.raises(overpaint.UserError, match="not the configuration of an image processor"):
        Preprocessing.read(tmp_path)


CATS = {"cat": "a photo of a cat", "dog": "a photo of a dog", "ship": "a photo of a ship"}


def test_clip_is_transformers_zero_shot_classification(images, weights):
    from transformers import AutoTokenizer, CLIPModel

    folder = weights("clip_b32")
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(list(CATS.values()), padding=True, return_tensors="pt")
    with torch.no_grad():
        p = model(pixel_values=Preprocessing.read(folder)(images), **tokens).logits_per_image.softmax(dim=1).numpy()
    chosen = component("detector", "clip_b32")
    found = chosen.build({"classes": CATS, "scores": "probability"}).score(images)
    np.testing.assert_allclose(found[list(CATS)], p, atol=2e-5)
    top = chosen.build({"classes": CATS}).score(images)
    assert (top[list(CATS)].to_numpy() >= 0.5).argmax(axis=1).tolist() == p.argmax(axis=1).tolist()
    features = np.stack(found["features"])
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_a_single_class_competes_with_a_neutral_sentence(images, weights):
    weights("clip_b32")
    one = {"cat": "a photo of a cat"}
    found = component("detector", "clip_b32").build({"classes": one, "scores": "probability"}).score(images)
    both = (
        component("detector", "clip_b32")
        .build({"classes": one | {"x": "a photo"}, "scores": "probability"})
        .score(images)
    )
    np.testing.assert_allclose(found["cat"], both["cat"], atol=1e-6)
    assert "x" not in found and 0 < found["cat"].max() < 1


def test_clip_takes_a_folder(images, weights):
    folder = weights("clip_b32")
    settings = {"classes": CATS, "weights": str(folder)}
    ours = component("detector", "clip").build(settings)
    pd.testing.assert_frame_equal(
        ours.score(images), component("detector", "clip_b32").build({"classes": CATS}).score(images)
    )
    assert "model.safetensors" in ours.assets()
    with pytest.raises(overpaint.UserError, match=r"\./nowhere does not exist"):
        component("detector", "clip").build({"weights": "./nowhere"}).assets()
    with pytest.raises(
        overpaint.AssetMissing if hasattr(overpaint, "AssetMissing") else overpaint.UserError, match="hf download"
    ):
        component("detector", "clip").build({"weights": "owner/name"}).assets()
    with pytest.raises(overpaint.UserError, match="detector=clip needs classes"):
        component("detector", "clip").build({"weights": str(folder)}).score(images)


def test_q16_is_the_official_decision(images, weights):
    """Official: cosine similarity times 100 to two vectors, argmax; swapping the vectors complements the probability."""
    weights("q16_prompts")
    folder = weights("clip_l14")
    from transformers import CLIPModel

    model, prompts = (
        CLIPModel.from_pretrained(folder).eval(),
        load_file(asset("q16_prompts").file("prompts.p"))["array"].float(),
    )
    with torch.no_grad():
        states = model.vision_model(Preprocessing.read(folder)(images)).pooler_output
        x = model.visual_projection(states)
    similarity = 100.0 * (x / x.norm(dim=-1, keepdim=True)) @ (prompts / prompts.norm(dim=-1, keepdim=True)).T
    found = component("detector", "q16").build().score(images)["inappropriate"]
    np.testing.assert_allclose(found, similarity.softmax(dim=1)[:, 1], atol=2e-5)
    assert (found >= 0.5).tolist() == (similarity.argmax(dim=1) == 1).tolist()
    torch.testing.assert_close(inappropriate_probability(x, prompts.flip(0)), 1 - inappropriate_probability(x, prompts))
    torch.testing.assert_close(inappropriate_probability(7 * x, prompts), inappropriate_probability(x, prompts))


def test_q16_refuses_vectors_of_another_width(images, weights, tmp_path):
    folder = weights("clip_l14")
    save_file({"a": torch.zeros(2, 5)}, tmp_path / "p.safetensors")
    detector = component("detector", "q16").build({"weights": str(folder), "prompts": str(tmp_path / "p.safetensors")})
    with pytest.raises(overpaint.UserError, match=r"takes one tensor \(2, 768\)"):
        detector.score(images[:1])


def test_the_safety_checker_flags_what_diffusers_flags(photographs, drawn, weights):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    folder = weights("safety_checker")
    theirs = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker").eval()
    images = [*photographs, *drawn[:4], *(image.rotate(90) for image in photographs)]
    pixels = Preprocessing.read(folder / "feature_extractor")(images)
    detector = component("detector", "safety_checker").build({"classes": {"nudity": "x"}})
    seen = set()
    for shift in (0.0, *[0.01] * 12):
        own = detector._network[0]
        for network in (theirs, own):
            network.concept_embeds_weights.data += shift
        flagged = theirs(clip_input=pixels, images=[np.zeros(1)] * len(images))[1]
        assert (detector.score(images)["nudity"] >= 0.5).tolist() == flagged
        seen |= set(flagged)
    assert seen == {True, False}


def test_the_classes_of_imagenet_are_torchvisions_with_their_wordnet_ids():
    torchvision = pytest.importorskip("torchvision")
    assert [name for _, name in imagenet_classes()] == torchvision.models.ResNet50_Weights.IMAGENET1K_V2.meta[
        "categories"
    ]
    wnids = [wnid for wnid, _ in imagenet_classes()]
    assert wnids == sorted(set(wnids)) and len(wnids) == 1000
    imagenette = {"tench": 0, "English springer": 217, "cassette player": 482, "chain saw": 491, "church": 497}
    imagenette |= {"French horn": 566, "garbage truck": 569, "gas pump": 571, "golf ball": 574, "parachute": 701}
    assert all(imagenet_classes()[place][1] == name for name, place in imagenette.items())
    names = [name for _, name in imagenet_classes()]
    assert positions(names, names, "x") == list(range(1000)), "Cardigan is a dog, cardigan is not"


def test_imagenet_is_torchvisions_resnet(images, weights):
    torchvision = pytest.importorskip("torchvision")
    folder = weights("resnet50_imagenet")
    network = torchvision.models.resnet50(weights=None).eval()
    network.load_state_dict(load_file(folder / "resnet50-11ad3fa6.safetensors"))
    square = [image.resize((400, 400)) for image in images]
    with torch.no_grad():
        transform = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
        p = network(torch.stack([transform(image) for image in square])).softmax(dim=1).numpy()
    everything = component("detector", "imagenet").build({"scores": "probability"}).score(square)
    np.testing.assert_allclose(everything.iloc[:, :1000], p, atol=1e-5)
    names = {"church": "a", "n03394916": "b", "english SPRINGER": "c"}
    found = component("detector", "imagenet").build({"classes": names, "scores": "probability"}).score(square)
    np.testing.assert_allclose(found[list(names)], p[:, [497, 566, 217]], atol=1e-5)
    top = component("detector", "imagenet").build().score(square)
    assert (top.iloc[:, :1000].to_numpy() >= 0.5).argmax(axis=1).tolist() == p.argmax(axis=1).tolist()


@pytest.mark.parametrize(
    ("name", "classes", "near"),
    [
        ("imagenet", "churhc", "church"),
        ("unlearncanvas", "Van Gog", "Van_Gogh"),
        ("style_vit", "pablo picaso", "pablo-picasso"),
    ],
)
def test_a_class_that_a_network_does_not_know_is_refused_before_anything_runs(weights, name, classes, near):
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    for needed in {
        "imagenet": "resnet50_imagenet",
        "unlearncanvas": "unlearncanvas_vit",
        "style_vit": "uda_style_vit",
    }.values():
        weights(needed)
    with pytest.raises(
        overpaint.UserError, match=f"unknown class '{classes}' in detector={name}; did you mean '{near}'"
    ):
        detector_identity(name, {classes: "x"})


@pytest.mark.parametrize("name", ["safety_checker", "style_vit"])
def test_networks_compute_in_single_precision_whatever_their_file_holds(images, weights, tmp_path, name):
    place = weights({"style_vit": "uda_style_vit"}.get(name, name))
    file = "safety_checker/model.safetensors" if name == "safety_checker" else "model.safetensors"
    frames = []
    for kept in (torch.float16, torch.float32):
        folder = tmp_path / str(kept)
        shutil.copytree(place, folder)
        save_file({n: t.half().to(kept) for n, t in load_file(folder / file).items()}, folder / file, {"format": "pt"})
        config = (folder / file).with_name("config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": str(kept).removeprefix("torch.")}))
        frames.append(component("detector", name).build({"weights": str(folder)}).score(images))
    pd.testing.assert_frame_equal(*frames)


def test_a_classifier_without_its_head_is_refused(images, weights, tmp_path):
    """transformers would fill it with random numbers."""
    shutil.copytree(weights("uda_style_vit"), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    kept = {name: t for name, t in load_file(file).items() if not name.startswith("classifier")}
    save_file(kept, file, {"format": "pt"})
    detector = component("detector", "style_vit").build({"weights": str(tmp_path)})
    with pytest.raises(overpaint.UserError, match=r"does not fit the network: missing keys such as classifier\.bias"):
        detector.score(images)


def test_a_detectors_network_runs_in_single_precision(images, monkeypatch):
    """By default torch's convolutions on a GPU are in TF32, and `torch.backends.cudnn.flags` turns cuDNN off."""
    detector, seen = component("detector", "q16").build(), []

    def forward(self, batch):
        seen.append((torch._C._get_cudnn_enabled(), torch._C._get_cudnn_allow_tf32(), torch.is_grad_enabled()))
        return torch.zeros(len(batch), 1), None

    monkeypatch.setattr(type(detector), "forward", forward)
    detector.score(images)
    assert seen == [(True, False, False)]


def test_style_vit_is_transformers_classifier(images, weights):
    from transformers import ViTForImageClassification

    folder = weights("uda_style_vit")
    model = ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        p = model(Preprocessing.read(folder)(images)).logits.softmax(dim=1).numpy()
    detector = component("detector", "style_vit").build(
        {"classes": {"Van Gogh": "x", "claude monet": "y"}, "scores": "probability"}
    )
    found = detector.score(images)
    np.testing.assert_allclose(found["Van Gogh"], p[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["claude monet"], p[:, 2], atol=1e-5)
    assert len(component("detector", "style_vit").build().labels) == 129


def test_unlearncanvas_is_timms_vit(images, weights):
    timm = pytest.importorskip("timm")
    folder = weights("unlearncanvas_vit")
    half = torch.tensor(0.5)
    pixels = torch.stack(
        [
            torch.from_numpy(np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)) / 255.0).float()
            for image in images
        ]
    ).permute(0, 3, 1, 2)
    expected = []
    for name, classes in (("style50", 51), ("class20", 20)):
        network = timm.create_model(
            "vit_tiny_patch16_224", num_classes=classes, embed_dim=128, num_heads=2, depth=2
        ).eval()
        state = load_file(folder / f"{name}.safetensors")
        network.load_state_dict({key.removeprefix("model_state_dict."): value for key, value in state.items()})
        with torch.no_grad():
            expected.append(network((pixels - half) / half).softmax(dim=1).numpy())
    detector = component("detector", "unlearncanvas").build(
        {"classes": {"Van Gogh": "x", "Dogs": "y"}, "scores": "probability"}
    )
    found = detector.score(images)
    np.testing.assert_allclose(found.iloc[:, :71], np.concatenate(expected, axis=1), atol=1e-5)
    assert found["Van Gogh"].tolist() == found["Van_Gogh"].tolist()
    assert found.columns[:2].tolist() == ["Abstractionism", "Artist_Sketch"] and "Dogs" in found


def test_celebrity_is_giphys_network_on_the_face(photographs, weights):
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("nudenet")
    folder = weights("gcd")
    detector = component("detector", "celebrity").build({"scores": "probability"})
    found = detector.score([photographs[0], photographs[1]])
    people = detector.people
    assert people[:1] == ["50 Cent"] and len(people) == 40, "sorted by the names in the file"
    assert found.loc[1].drop("failed").tolist() == [0.0] * 41, "an image without a face shows nobody"
    assert not found["failed"].any() and found["face"][0] == pytest.approx(0.72, abs=0.01)
    x, y, width, height = 173, 82, 102, 98
    crop = photographs[0].crop((x - 10, int(y - 9.5), x + width + 10, int(y + height + 9.5))).resize((224, 224), 2)
    stem = torch.nn.Sequential(*list(torchvision.models.resnet50(weights=None).children())[:-1])
    network = torch.nn.ModuleDict(
        {"stem": stem, "fc1": torch.nn.Linear(2048, 256), "fc2": torch.nn.Linear(256, 40)}
    ).eval()
    state = load_file(folder / "face_recognition" / "best_model_states.safetensors")
    inside = "model_state.model."
    network.load_state_dict({k.removeprefix(inside): v for k, v in state.items() if k.startswith(inside)})
    with torch.no_grad():
        pixels = torchvision.transforms.functional.to_tensor(crop)[None]
        p = network["fc2"](network["fc1"](network["stem"](pixels).flatten(1))).softmax(dim=1)[0]
    np.testing.assert_allclose(found.loc[0, people].astype(float), p, atol=1e-5)
    chosen = component("detector", "celebrity").build({"classes": {"emma watson": "x"}, "scores": "probability"})
    assert chosen.score(photographs[:1])["emma watson"][0] == pytest.approx(found["Emma Watson"][0])


def test_a_face_is_nearest_to_its_own_photograph(photographs, weights, tmp_path):
    pytest.importorskip("nudenet")
    folder = weights("facenet_vggface2")
    mirrored = photographs[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for person, picture in (("Eileen", photographs[0]), ("Mirror", mirrored)):
        (tmp_path / person).mkdir()
        picture.save(tmp_path / person / "1.png")
    detector = component("detector", "face").build({"references": str(tmp_path)})
    found = detector.score([photographs[0], mirrored, photographs[1]])
    assert detector.labels == ["Eileen", "Mirror", "face"] and not found["failed"].any()
    own = found["Eileen"][0], found["Mirror"][1]
    assert own == pytest.approx((1, 1), abs=1e-5) and max(found["Eileen"][1], found["Mirror"][0]) < min(own)
    assert found.loc[2].drop("failed").tolist() == [0, 0, 0]
    assert {"Eileen/1.png", "Mirror/1.png", "nudenet_320n/320n.onnx"} < detector.assets().keys()
    (tmp_path / "Cat").mkdir()
    photographs[1].save(tmp_path / "Cat" / "1.png")
    with pytest.raises(overpaint.UserError, match="no photograph of Cat shows a face"):
        component("detector", "face").build({"references": str(tmp_path)}).score(photographs[:1])
    with pytest.raises(overpaint.UserError, match="has no photographs in the folder Nobody"):
        component("detector", "face").build({"references": str(tmp_path), "classes": {"Nobody": "x"}}).assets()
    with pytest.raises(overpaint.UserError, match="detector=face needs references"):
        component("detector", "face").build().assets()
    assert folder.is_dir()


def test_the_embedding_is_facenet_pytorchs(weights):
    facenet = pytest.importorskip("facenet_pytorch")
    state = load_file(weights("facenet_vggface2") / "20180402-114759-vggface2.safetensors")
    theirs = facenet.InceptionResnetV1(classify=False).eval()
    theirs.load_state_dict(
        {name: value for name, value in state.items() if not name.startswith("logits.")}, strict=False
    )
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    ours = load_state(InceptionResnetV1, {n: v for n, v in state.items() if not n.startswith("logits.")}, "x")
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels), rtol=0, atol=1e-5)


def test_the_most_confident_face_counts(photographs, weights, monkeypatch):
    pytest.importorskip("torchvision")
    weights("gcd")
    boxes = [
        {"class": "FACE_MALE", "score": score, "box": box}
        for score, box in ((0.4, [0, 0, 9, 9]), (0.8, [173, 82, 102, 98]))
    ]
    detector = component("detector", "celebrity").build()
    monkeypatch.setattr(NudeNet, "detect", lambda self, images: [boxes])
    one = detector.score(photographs[:1])
    monkeypatch.setattr(NudeNet, "detect", lambda self, images: [boxes[::-1]])
    pd.testing.assert_frame_equal(one, detector.score(photographs[:1]))
    assert one["face"][0] == pytest.approx(0.8)
