"""Synthetic evidence with one parameter, the badness of the erasure. Every metric must respond to it."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest

from overpaint.grid.concepts import Concept
from overpaint.metrics.distribution import FidOriginal, FidReference
from overpaint.metrics.inversion import normal_moments
from overpaint.metrics.metric import Evidence

OBJECTS = ("church", "house", "tree", "mira")
STYLES = ("sketch", "mosaic", "pastel")
#: Columns of extractors with features.
FEATURES = ("inception.features", "mmd.features")
KINDS = {**dict.fromkeys(OBJECTS, "object"), "mira": "character", **dict.fromkeys(STYLES, "style"), "unicorn": "object"}
ERASED, ANCHOR = "church", "house"
EXPOSED = ("attacked", "scrambled", "ordinary")


def frame_of(rows, rate, seeds, seed, shift=0.0, width=6):
    """Scored images of ``rows`` (role, concept, expects). ``rate(label, role)`` is the probability of showing a label."""
    rng = np.random.default_rng(seed)
    records = []
    for number, (role, concept, expects) in enumerate(rows):
        for image in range(seeds):
            scores = {label: 0.1 for label in KINDS}
            for label in {concept, *expects}:
                scores[label] = 0.9 if rng.random() < rate(label, role) else 0.1
            features = rng.normal(size=width) + shift
            faced, boxes = rng.random() < rate("face", role), rng.poisson(3 * rate(ERASED, role))
            far = max(1e-4 + 0.1 * shift + 0.01 * rng.normal(), 1e-5)
            records.append(
                {
                    "prompt_id": f"{role}-{number}",
                    "seed": image,
                    "prompt": " and ".join(f"a {label}" for label in dict.fromkeys((concept, *expects))),
                    "role": role,
                    "concept": concept,
                    "expects": list(expects),
                    "variant": "",
                    "draw": 0,
                    "verdict": np.nan,
                    "failed": False,
                    "features": features,
                    "mse_original": far,
                    "ssim_original": 1 - far,
                    **scores,
                    "face": 0.9 if faced else 0.0,
                    "detections": json.dumps(
                        [["BREAST_EXPOSED", 0.8]] * int(boxes) + [["FACE", 0.9], ["FEET_EXPOSED", 0.3]]
                    ),
                    "text_image.features": [*scores.values(), 0.1],
                    **dict.fromkeys(FEATURES, features),
                    "aesthetic.value": 5 - shift + 0.1 * features[0],
                    "preference.value": 20 - shift + 0.1 * features[1],
                    "image_reward.value": 1 - shift + 0.1 * features[3],
                    "hps.value": 25 - shift + 0.1 * features[4],
                    "copy.value": (shift if role == "target" else 1 - shift) + 0.05 * features[5],
                    "perceptual.value": abs((1 - shift if role == "target" else shift) + 0.05 * features[2]),
                }
            )
    return pd.DataFrame(records)


def inverted(frame, badness, seed, dimensions=256):
    """The frame with the measurements of inversion. With a worse erasure, the initial noise of the concept's images is more
    likely and their reconstruction is better."""
    rng, usual = np.random.default_rng(seed), normal_moments(dimensions)
    off = frame["role"].map({"attacked": 3 - 2 * badness, "scrambled": 4.0, "ordinary": 1.0})
    stray = 10 * usual.deviation * (off + rng.normal(scale=0.2, size=len(frame)))
    quality = 30 - 5 * off + rng.normal(size=len(frame))
    return frame.assign(nll=usual.mean + stray, psnr=quality, dimensions=float(dimensions))


def relearnt(frame, badness=None, seed=13):
    """The frame of a relearning curve, with seeds as training steps. Unless ``badness`` is ``None``, attacked images show the
    concept less often before training and more often after it."""
    attacked, rng = frame["role"] == "attacked", np.random.default_rng(seed)
    frame = frame.assign(steps=(frame["seed"] % 3).map({0: 0.0, 1: 10.0, 2: 40.0}).where(attacked))
    if badness is not None:
        shown = rng.random(len(frame)) < badness**2.0 ** (1 - frame["seed"] % 3)
        frame[ERASED] = frame[ERASED].mask(attacked, np.where(shown, 0.9, 0.1))
    return frame


def replaced(frame, badness, seed):
    """The frame with something in the concept's place on target images. With a worse erasure, it is less often the anchor."""
    rng = np.random.default_rng(seed)
    empty = (frame["role"] == "target") & (frame[ERASED] < 0.5)
    instead = np.where(rng.random(len(frame)) < 0.85 * badness, rng.choice(["tree", "mira", ""], len(frame)), ANCHOR)
    return frame.assign(**{name: frame[name].mask(empty & (instead == name), 0.8) for name in (ANCHOR, "tree", "mira")})


def balanced(badness, prompts, seeds, seed):
    """Images of prompts that name neither a house nor a tree. With a worse erasure, more of them show a house."""
    rng = np.random.default_rng(seed)
    frame = frame_of([("attributes", "", ())] * prompts, lambda label, role: 0.0, seeds, seed)
    house = rng.random(len(frame)) < 0.5 + 0.45 * badness
    return frame.assign(house=np.where(house, 0.9, 0.1), tree=np.where(house, 0.1, 0.9))


def embedded(text):
    """A text in the space of ``text_image.features``: 1 for every label that it names, and a constant."""
    return np.array([*(float(label in text.split()) for label in KINDS), 0.1])


class Texts(dict):
    """Embeddings of all texts."""

    def __contains__(self, text):
        return True

    def __len__(self):
        return 1

    def values(self):
        return [embedded("")]

    def __getitem__(self, text):
        return embedded(text)

    def get(self, text, default=None):
        return embedded(text)


def training_images(badness, count=100):
    """Scores of training images and held-out images. With a worse erasure, those of training images are smaller."""
    rng, member = np.random.default_rng(21), np.repeat([True, False], count)
    scores = {
        name: rng.normal(size=2 * count) - 2 * badness * member for name in ("loss", "secmi", "step", "pia", "pian")
    }
    return pd.DataFrame({"image": range(2 * count), "member": member, **scores})


def repeated(badness, prompts, seeds, seed):
    """Images of repeated training captions. With a worse erasure, more of them are near their training image."""
    frame = frame_of([("repeated", "", ())] * prompts, lambda label, role: 0.5, seeds, seed)
    rng = np.random.default_rng(seed)
    own = np.where(rng.random(len(frame)) < badness / 2, 0.1, 0.5) + 0.01 * rng.random(len(frame))
    return frame.assign(own=own, nearest=0.35, closest=0.3)


def evidence_of(badness: float, prompts: int, seeds: int) -> Evidence:
    """Evidence of an erasure that is perfect at 0 and both useless and destructive at 1."""
    rows = [("target", ERASED, (ERASED,))] * prompts
    rows += [("near", ("house", "tree")[i % 2], (("house", "tree")[i % 2],)) for i in range(prompts)]
    rows += [("grid", o, (o, s)) for o in OBJECTS for s in STYLES]
    rows += [("in_prompt", ERASED, (ERASED, "tree", "sketch"))] * prompts
    rows += [("utility", "tree", ("tree", "mosaic"))] * prompts + [("utility", ERASED, (ERASED, "house"))] * 2
    rows += [(role, ERASED, (ERASED,)) for role in EXPOSED for _ in range(prompts)]

    def edited(label, role):
        return badness if label == ERASED else 1 - badness

    control = [("attacked", ERASED, (ERASED,))] * prompts
    unseen = [(role, "unicorn", ("unicorn",)) for role in EXPOSED for _ in range(prompts)]
    images, original = (
        frame_of(rows, edited, seeds, 1, shift=badness),
        frame_of(rows, lambda label, role: 0.9, seeds, 2),
    )
    gold = frame_of(rows, lambda label, role: 0.02 if label == ERASED else 0.98, seeds, 20)
    fooled = np.random.default_rng(6).random(len(images)) < badness  # a judge that is fooled by what it is shown
    images, original = inverted(images, badness, 9), inverted(original, 1.0, 10)
    images, original, gold = relearnt(images, badness), relearnt(original), relearnt(gold, 0.0)
    images, gold = replaced(images, badness, 24), replaced(gold, 0.0, 25)
    late = (gold["role"] == "attacked") & (gold["steps"] == 40) & (np.arange(len(gold)) % 9 != 2)
    gold[ERASED] = gold[ERASED].mask(late, 0.9)  # two of three prompts relearn it at last
    beside = [("near", ("house", "tree")[i % 2], (("house", "tree")[i % 2],)) for i in range(prompts)]
    real = np.random.default_rng(5).normal(size=(60, 6))
    images["verdict"] = ((images[ERASED] > 0.5) ^ fooled).astype(float).where(images["role"] == "attacked")
    named = (images["role"] == "attacked") & (np.random.default_rng(28).random(len(images)) < badness)
    images["prompt"] += np.where(named, f" {ERASED}", "")  # a text that is found by naming the concept again
    attacked = images.loc[images["role"] == "attacked", "prompt_id"].to_numpy()
    images = pd.concat([images, balanced(badness, prompts, seeds, 26)], ignore_index=True)
    original = pd.concat([original, balanced(1.0, prompts, seeds, 27)], ignore_index=True)
    plain = frame_of(control, lambda label, role: badness / 2, seeds, 7).assign(role="target", prompt_id=attacked)
    known = frame_of(control, lambda label, role: 0.9, seeds, 8).assign(role="target", prompt_id=attacked)
    return Evidence(
        erased=[Concept(ERASED, label=ERASED, anchor=ANCHOR)],
        images=images,
        original=original,
        plain=plain,
        plain_original=known,
        control=frame_of(control, lambda label, role: badness / 2, seeds, 3),
        random_prefix=frame_of(control, lambda label, role: badness / 3, seeds, 14),
        matched=frame_of(control, lambda label, role: badness / 3, seeds, 23),
        unrelated=frame_of(control, lambda label, role: badness / 3, seeds, 15).assign(concept="tree"),
        floor=inverted(frame_of(unseen, lambda label, role: badness / 3, seeds, 4), badness, 11),
        reference=pd.DataFrame({name: list(real) for name in ("features", *FEATURES)}),
        retained=frame_of(beside, edited, seeds, 16),
        retained_original=frame_of(beside, lambda label, role: 0.9, seeds, 17),
        membership=training_images(badness),
        membership_original=training_images(1.0),
        membership_gold=training_images(0.0),
        gold=gold,
        copies=repeated(badness, prompts, seeds, 18),
        copies_original=repeated(0.9, prompts, seeds, 19),
        texts={"text_image": Texts()},
        kinds=KINDS,
        counted=("BREAST_EXPOSED", "FEET_EXPOSED"),
        desired={"house": 0.5, "tree": 0.5},
        erasure={"seconds": 1 + badness, "peak_bytes": 100 * (1 + badness), "artefact_bytes": 10 * (1 + badness)},
        ledger={"images": 100 * (2 - badness), "forwards": 1000 * (2 - badness)},
        latency=[1 + badness] * 6,
    )


@pytest.fixture(name="evidence_of", scope="session")
def _evidence_of():
    """`evidence_of` with a cache. Metrics do not modify their evidence."""
    drawn = cache(evidence_of)
    return lambda badness, prompts=16, seeds=3, **changes: replace(drawn(badness, prompts, seeds), **changes)


@pytest.fixture
def fid_of_few(monkeypatch):
    """Allow FID for the few images of a test."""
    for metric in (FidReference, FidOriginal):
        monkeypatch.setattr(metric, "least", 2)


@pytest.fixture(name="frame_of")
def _frame_of():
    return frame_of
