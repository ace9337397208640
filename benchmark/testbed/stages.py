"""The stages of training the testbed. Each continues from its last checkpoint."""

import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from overpaint.grid.shipped import shipped

from . import membership
from .agreement import (
    THRESHOLD,
    agreement,
    label_kinds,
    oracle_rates,
    paint,
    questions,
    read_catalogue,
    world_truth,
    write_json,
)
from .autoencoder import train_autoencoder
from .canvas import STYLES
from .denoiser import encode_pictures, train_denoiser
from .exporting import export_pipeline, load_pipeline
from .oracle import FEATURES, FILES, load_oracle
from .oracle_training import ROUND_TRIPS, round_trips_of, save_oracle, train_oracle, training_labels, unseen_pictures
from .tokenizer import encode, tokenizer_of, vocabulary
from .world import render


def _pictures_of(indices: range) -> np.ndarray:
    return np.stack([np.asarray(render(membership.scene(index))) for index in indices])


def pictures(out: Path, to: Path, workers: int, seed: int) -> None:
    """Render the training set, unless this is already done."""
    if (out / "pictures.npy").exists():
        return
    parts = [range(first, first + 1000) for first in range(0, membership.TRAINING_SIZE, 1000)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        _save_array(out / "pictures.npy", np.concatenate(list(pool.map(_pictures_of, parts))))


def vae(out: Path, to: Path, workers: int, seed: int) -> None:
    pictures(out, to, workers, seed)
    if not (out / "vae" / "config.json").exists():
        train_autoencoder(out / "pictures.npy", out, workers, seed).save_pretrained(out / "vae")


def _latents_of(arguments: tuple[Path, int, int]) -> np.ndarray:
    out, first, last = arguments
    torch.set_num_threads(1)
    autoencoder = AutoencoderKL.from_pretrained(out / "vae").eval()
    return encode_pictures(autoencoder, np.load(out / "pictures.npy", mmap_mode="r")[first:last])


def latents(out: Path, to: Path, workers: int, seed: int) -> None:
    """Compute latents and token ids of the training set."""
    if not (out / "tokens.npy").exists():
        tokenizer = tokenizer_of(vocabulary(), shipped("datasets") / "testbed" / "pipeline" / "tokenizer")
        tokenizer.save_pretrained(out / "tokenizer")
        captions = [membership.example(index)[1] for index in range(membership.TRAINING_SIZE)]
        _save_array(out / "tokens.npy", encode(tokenizer, captions).numpy().astype(np.int16))
    if not (out / "latents.npy").exists():
        parts = [(out, first, first + 2500) for first in range(0, membership.TRAINING_SIZE, 2500)]
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            _save_array(out / "latents.npy", np.concatenate(list(pool.map(_latents_of, parts))))


def denoiser(out: Path, to: Path, workers: int, seed: int) -> None:
    latents(out, to, workers, seed)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    train_denoiser(out, tokenizer, workers, seed)


def oracle(out: Path, to: Path, workers: int, seed: int, which: tuple[str, ...] = ("a", "b")) -> None:
    """Train both oracles, one after the other."""
    latents(out, to, workers, seed)
    if not (out / "labels.npy").exists():
        shown, answers = unseen_pictures()
        _save_array(out / "unseen.npy", shown)
        _save_array(out / "unseen_labels.npy", answers)
        _save_array(out / "labels.npy", training_labels())
    if not (out / "round_trips.npy").exists():
        parts = [(out, first, first + 1000) for first in range(0, ROUND_TRIPS, 1000)]
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            _save_array(out / "round_trips.npy", np.concatenate(list(pool.map(round_trips_of, parts))))
    for name in which:
        save_oracle(train_oracle(name, out, workers, seed), name, to / "oracle")


def export(out: Path, to: Path, workers: int, seed: int) -> None:
    """Export the pipeline folder from the newest checkpoint, and every n-th line of the training log."""
    export_pipeline(out, to / "pipeline")
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["step"] % 250 == 0 or line == lines[-1]]
    (to / "training_log.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")


def painted_by(arguments: tuple[Path, list[str], int, int]) -> np.ndarray:
    """Images by the pipeline in a folder. The arguments are the folder, the prompts, the seed and the noise offset."""
    folder, prompts, seed, offset = arguments
    torch.set_num_threads(1)
    return paint(load_pipeline(folder), prompts, seed, offset)


def check(out: Path, to: Path, workers: int, seed: int, per_concept: int = 20, per_wording: int = 10) -> None:
    """Measure the exported pipeline and both oracles; write agreement.json and oracle/oracle.json."""
    catalogue = read_catalogue(to.parent / "concepts" / "testbed.yaml")
    asked = list(questions(catalogue, per_concept, per_wording))
    parts = [
        (to / "pipeline", [question.prompt for question in asked[first : first + 64]], seed + 17, first)
        for first in range(0, len(asked), 64)
    ]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        painted = np.concatenate(list(pool.map(painted_by, parts)))
    np.save(out / "painted.npy", painted)
    first, second = (load_oracle(to / "oracle", which) for which in "ab")
    rows, other_rows = first.predict(painted)[0], second.predict(painted)[0]
    table: dict[str, Any] = {"threshold": THRESHOLD, "steps": 20, "guidance_scale": 4.0, "pictures": len(painted)}
    for name, found in (("oracle", rows), ("second_oracle", other_rows)):
        table[name] = agreement(asked, found, first.labels)
    write_json(to / "agreement.json", table)

    shown, truth = world_truth(3000, seed + 1, first.labels)
    strange, strange_targets = unseen_pictures(first=1_000_000, count=400)
    strange_truth = np.concatenate([strange_targets[:, :-1], np.eye(len(STYLES))[strange_targets[:, -1]]], 1)
    shown, truth = np.concatenate([shown, strange]), np.concatenate([truth, strange_truth])
    report: dict[str, Any] = {
        "labels": first.labels,
        "kinds": label_kinds(catalogue),
        "threshold": THRESHOLD,
        "features": FEATURES,
    }
    for which, oracle in (("a", first), ("b", second)):
        report[which] = {"file": FILES[which], "renders": oracle_rates(oracle, truth, shown)}
    report["a"]["model_samples"] = oracle_rates(first, other_rows > THRESHOLD, painted)
    report["b"]["model_samples"] = oracle_rates(second, rows > THRESHOLD, painted)
    report["note"] = "rates on model samples take the other oracle as the truth"
    write_json(to / "oracle" / "oracle.json", report)
    for group, found in table["oracle"].items():
        print(json.dumps({group: found}), flush=True)


def _save_array(path: Path, values: np.ndarray) -> None:
    began = time.time()
    temporary = path.with_name(f"partial.{path.name}")
    np.save(temporary, values)
    temporary.replace(path)
    print(json.dumps({"saved": path.name, "shape": list(values.shape), "seconds": round(time.time() - began, 1)}))


STAGES = {
    "pictures": pictures,
    "vae": vae,
    "latents": latents,
    "oracle": oracle,
    "denoiser": denoiser,
    "export": export,
    "check": check,
}
