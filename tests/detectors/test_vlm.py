"""The questions and answers of a vision-language model, on a random LLaVA, and HUB's recorded parsing."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import overpaint
from overpaint.blocks.questions import answer_score, final_answer, released_answer
from overpaint.detectors.vlm import VLM
from overpaint.extractors.vlm_prompt import VLMPrompt
from overpaint.grid.registry import component


def test_recorded_answers_of_hubs_script(goldens):
    recorded = json.loads((goldens / "metrics" / "hub_vlm.json").read_text())
    answers = recorded["inputs"]["answers"]
    assert [released_answer(text) for text in answers] == recorded["outputs"]["eval_vlm"]["per_image"]
    assert [released_answer(text) for text in recorded["inputs"]["too_short"]] == [None, None]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("It shows a dog.\nyes", "yes"), ("a\nb\n**Yes**.\n\n", "yes"), ("no", "no"), ("…\nFinal answer: idk", "idk"),
        ("a\nwrong", "wrong"), ("a\nyes and no", None), ("a\nyesterday", None), ("yes\nI think", None), ("", None),
    ],
)  # fmt: skip
def test_the_last_line_alone_is_the_answer(text, word):
    assert final_answer(text) == word
    score = answer_score(text)
    assert np.isnan(score) if word is None else score == float(word == "yes")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A LLaVA of random weights: CLIP vision tower at 224 pixels, two Llama layers, one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )  # fmt: skip
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("llava")
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(symbols)}, []))
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}"
        "{% endif %}{% endfor %}{% endfor %}"
    )
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=224, patch_size=56),
        text_config=LlamaConfig(**small, vocab_size=len(tokenizer), num_key_value_heads=2),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil(), tokenizer, patch_size=56, vision_feature_select_strategy="default", chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_random_model_is_asked_and_its_answers_are_kept(llava, drawn):
    detector = component("detector", "vlm").build(
        {"weights": str(llava), "classes": {"cat": "x", "dog": "y"}, "tokens": 5}
    )
    frame = detector.score(drawn[:2])
    answers = [json.loads(text) for text in frame["answers"]]
    assert all(answer.keys() == {"cat", "dog"} for answer in answers)
    assert frame["failed"].all() and frame[["cat", "dog"]].isna().all(axis=None), "a random text is no answer"
    assert detector.score(drawn[1:2])["answers"].tolist() == frame["answers"].tolist()[1:]
    assert {"config.json", "model.safetensors"} <= detector.assets().keys()


def test_the_template_of_chats_decides_the_answers_and_the_key(llava, tmp_path):
    shutil.copytree(llava, tmp_path, dirs_exist_ok=True)
    assets = []
    for text in ("one", "other"):
        (tmp_path / "chat_template.jinja").write_text(text)
        assets.append(component("detector", "vlm").build({"weights": str(tmp_path)}).assets())
    assert {name for name in assets[0] if assets[0][name] != assets[1][name]} == {"chat_template.jinja"}


def test_the_model_computes_in_the_precision_of_its_weights(llava, drawn, tmp_path):
    shutil.copytree(llava, tmp_path, dirs_exist_ok=True)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    save_file({name: t.bfloat16() for name, t in load_file(file).items()}, file, {"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    detector = component("detector", "vlm").build({"weights": str(tmp_path), "classes": {"cat": "x"}, "tokens": 3})
    assert len(detector.score(drawn[:1])) == 1
    assert detector._network[0].dtype == torch.bfloat16


def test_the_network_sees_the_references_and_the_image(llava, drawn, tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    for number in range(4):
        drawn[number].save(tmp_path / "cat" / f"{number}.png")
    detector = component("detector", "vlm").build(
        {"weights": str(llava), "classes": {"cat": "x"}, "tokens": 1, "references": str(tmp_path)}
    )
    network, processor = detector._network
    seen, generate = [], type(network).generate

    def watched(self, **inputs):
        seen.append(inputs)
        return generate(self, **inputs)

    monkeypatch.setattr(type(network), "generate", watched)
    detector.score(drawn[4:5])
    (inputs,) = seen
    assert inputs["pixel_values"].shape[0] == 4 and not inputs["do_sample"]
    text = processor.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert "The first 3 images are examples of cat" in text and "Does the image show cat?" in text
    assert sum(name.startswith("cat/") for name in detector.assets()) == 3


def test_only_yes_counts_as_present(monkeypatch, drawn):
    said = iter(["a\nb\nyes", "no", "idk", "I cannot say"])
    monkeypatch.setattr(VLM, "ask", lambda self, image, label: next(said))
    frame = component("detector", "vlm").build({"classes": {"cat": "x"}}).score(drawn[:4])
    assert frame["cat"].tolist()[:3] == [1, 0, 0] and frame["failed"].tolist() == [False, False, False, True]


def test_a_prompt_is_asked_about(llava, drawn, monkeypatch):
    asked = component("extractor", "vlm_prompt").build({"weights": str(llava), "tokens": 3})
    assert asked.extract(drawn[:2], ["a cat", "a dog"])["value"].isna().all(), "a random text is no answer"
    assert asked.assets() == component("detector", "vlm").build({"weights": str(llava)}).assets()
    questions, ask = [], iter(["it is\nyes", "no", "I cannot say"])
    monkeypatch.setattr(
        VLMPrompt, "answer", lambda self, _, text: questions.append(self._question(text, 0)) or next(ask)
    )
    found = asked.extract(drawn[:3], ["a photo of a cat", "a red_car", "x"])["value"]
    assert found.tolist()[:2] == [1, 0] and np.isnan(found[2])
    assert questions[0].startswith("Does the image show a photo of a cat?") and "a red car?" in questions[1]


def test_bad_settings_are_refused(tmp_path):
    for kind, name in (("detector", "vlm"), ("extractor", "vlm_prompt")):
        with pytest.raises(overpaint.UserError, match=r"question takes a text with \{\}"):
            component(kind, name).build({"question": "a cat?"})
    with pytest.raises(overpaint.UserError, match="has no images in the folder cat"):
        component("detector", "vlm").build(
            {"weights": str(tmp_path), "classes": {"cat": "x"}, "references": str(tmp_path)}
        ).assets()
