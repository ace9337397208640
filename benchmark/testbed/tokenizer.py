"""A CLIP tokenizer in which every known word is one token. Unknown words are split into several tokens."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .membership import TRAINING_SIZE, example

MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def vocabulary() -> list[str]:
    """Every word of the training captions, in alphabetical order."""
    words = set()
    for index in range(TRAINING_SIZE):
        words.update(example(index)[1].split())
    return sorted(words)


def tokenizer_of(words: list[str], known: Path) -> CLIPTokenizer:
    """The tokenizer in folder `known` if it has a single token for each of `words`, else a new tokenizer.

    Byte-pair training breaks ties at random. A new tokenizer therefore numbers the words differently, and training with
    it gives different weights."""
    if known.is_dir():
        tokenizer = CLIPTokenizer.from_pretrained(known)
        if not split_words(tokenizer, words):
            return tokenizer
    return build_tokenizer(words)


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A tokenizer with enough byte-pair merges to join each of `words` into a single token."""
    words = list(words)
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=20 * len(words) + 600,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(words, trainer)
    state = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in state["merges"]]
    vocabulary = {token: index for index, token in enumerate(sorted(state["vocab"], key=state["vocab"].get))}
    for special in (START, END):
        vocabulary[special] = len(vocabulary)
    # transformers annotates merges as strings, but the underlying tokenizer takes pairs
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)  # type: ignore[arg-type]


def encode(tokenizer: CLIPTokenizer, texts: list[str]):
    """Token ids (n, MAX_TOKENS) as in the pipeline: padded with the end token and truncated."""
    return tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids


def split_words(tokenizer: CLIPTokenizer, words: Iterable[str]) -> list[str]:
    """The words that are not exactly one token."""
    return [word for word in words if len(tokenizer(word).input_ids) != 3]
