"""Random weights of the real architectures, as assets of a cache, and published files that a test writes."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from overpaint.grid.assets import RECEIPT, asset, stored_name


def fill(root: Path, name: str, write: Callable[[Path], None] | None = None) -> None:
    """Make the asset ``name`` present in the cache ``root``: ``write(folder)``, by default random weights, writes its files.

    The receipt gives the hashes of the published files, so that the asset counts as fetched.
    """
    chosen, folder = asset(name), root / name
    if chosen.package or folder.exists():
        return
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        (write or WEIGHTS[name])(folder)
    files = {}
    for file, entry in chosen.files.items():
        stored = folder / stored_name(file)
        if not stored.exists():  # a file that nothing reads
            stored.write_text("{}")
        size = stored.stat().st_size
        digest = entry.get("sha256") or sha256(stored.read_bytes()).hexdigest()
        files[file] = {"sha256": digest, "bytes": size, "stored_bytes": size}
    (folder / RECEIPT).write_text(json.dumps({"source": chosen.source, "files": files}))


def fill_texts(root: Path, name: str, texts: Mapping[str, str]) -> None:
    """Make the asset ``name`` present, with these texts in its files."""

    def write(folder: Path) -> None:
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8", newline="")

    fill(root, name, write)


def clip(folder, width=64, patch=32):
    """A CLIP of random weights at its real input size, with the tiny pipeline's tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    tiny = Path(__file__).parent / "goldens" / "tiny_sd" / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(tiny)
    small = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    config = CLIPConfig(
        text_config=text, vision_config=small | {"image_size": 224, "patch_size": patch}, projection_dim=768
    )
    spread(CLIPModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    clip_processor(folder)


def clip_processor(folder):
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    folder.mkdir(exist_ok=True)
    told = {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3}
    told |= {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


def spread(network):
    """The network with larger random weights, so that its outputs differ from image to image."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.5)
    return network


def q16_prompts(folder):
    save_file({"array": torch.randn(2, 768).half()}, folder / "prompts.safetensors")


def safety_checker(folder):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = small | {"image_size": 224, "patch_size": 14}
    network = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=768))
    spread(network)
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(network, name).data.normal_()
        getattr(network, f"{name}_weights").data.uniform_(-0.01, 0.06)
    network.save_pretrained(folder / "safety_checker")
    clip_processor(folder / "feature_extractor")


def resnet50(folder):
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.resnet50(weights=None)
    torch.nn.init.normal_(network.fc.weight, std=0.5)
    save_file(settled(network).state_dict(), folder / "resnet50-11ad3fa6.safetensors")


def settled(network, images=8):
    """The network with the statistics of its batch normalisation measured on noise, as after training."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(images, 3, 224, 224))
    return network.eval()


def style_vit(folder):
    from transformers import ViTConfig, ViTForImageClassification

    artists = ["vincent-van-gogh", "pablo-picasso", "claude-monet", *(f"artist-{n}" for n in range(126))]
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = ViTForImageClassification(ViTConfig(**small, id2label=dict(enumerate(artists)), num_labels=129))
    spread(network).save_pretrained(folder)
    told = {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


def timm_vit(classes):
    """timm's ViT in UnlearnCanvas's layout, narrower; the head has as many channels as in ViT-L."""
    timm = pytest.importorskip("timm")
    return spread(timm.create_model("vit_tiny_patch16_224", num_classes=classes, embed_dim=128, num_heads=2, depth=2))


def unlearncanvas_vit(folder):
    for name, classes in (("style50", 51), ("class20", 20)):
        state = {f"model_state_dict.{key}": value for key, value in timm_vit(classes).state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")


#: Names in GIPHY's file, in another order than the network's.
PEOPLE = ["Emma_Watson_[m.1]", "Brad_Pitt_[m.2]", "50_Cent_[m.3]", *(f"Person_{n}_[m.x]" for n in range(37))]


def gcd(folder):
    torchvision = pytest.importorskip("torchvision")
    trunk = settled(torchvision.models.resnet50(weights=None))
    stem = torch.nn.Sequential(*list(trunk.children())[:-1])
    network = torch.nn.ModuleDict(
        {"stem": stem, "fc1": torch.nn.Linear(2048, 256), "fc2": torch.nn.Linear(256, len(PEOPLE))}
    )
    torch.nn.init.normal_(network["fc2"].weight)
    (folder / "face_recognition").mkdir()
    state = {f"model_state.model.{name}": value for name, value in network.state_dict().items()}
    state["model_state.center_loss_criterion.centers"] = torch.zeros(len(PEOPLE), 256)
    save_file(state, folder / "face_recognition" / "best_model_states.safetensors")
    rows = ["Labels,Index", *(f"{name},{number}" for number, name in enumerate(PEOPLE))]
    (folder / "face_recognition" / "labels.csv").write_text("\n".join(rows) + "\n")


def facenet(folder):
    from overpaint.detectors.faces import InceptionResnetV1

    network = InceptionResnetV1().train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, 160, 160))
    state = network.state_dict() | {"logits.weight": torch.zeros(3, 512), "logits.bias": torch.zeros(3)}
    save_file(state, folder / "20180402-114759-vggface2.safetensors")


#: Asset -> a function that writes random weights of its architecture into a folder.
WEIGHTS = {
    "clip_l14": lambda folder: clip(folder, patch=14),
    "clip_b32": clip,
    "q16_prompts": q16_prompts,
    "safety_checker": safety_checker,
    "resnet50_imagenet": resnet50,
    "uda_style_vit": style_vit,
    "unlearncanvas_vit": unlearncanvas_vit,
    "gcd": gcd,
    "facenet_vggface2": facenet,
}
