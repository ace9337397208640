"""Gold references: models of the drawn world that never saw a concept, and a base model that saw it late.

A *trunk* learns the world without church, car, quillan and sketch. Short continuations of the trunk then add them:
`base` learns all four; each `gold_<concept>` learns the other three. An eraser edits `base`; the gold of the same concept
is the ideal result. `scratch_church` is trained from the start without the church and with the other three.

All models with one seed share their data order, noise and timesteps. An example that a model must not see is replaced
by a stand-in from a second seeded stream. Every other example keeps its slot, its noise and its timestep."""

import hashlib
import json
import os
import shutil
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from overpaint.grid.shipped import shipped
from overpaint.models.checkpoints import unpacked

from . import membership
from .agreement import CONCEPT, THRESHOLD, Question, agreement, questions, read_catalogue, write_json
from .denoiser import NOISY_WEIGHT, RARE_SHARE, RARE_WORDS, Builder, Denoiser, WordyDenoiser, start, start_wordy
from .exporting import load_pipeline
from .oracle import load_oracle
from .parallel import Schedule, train
from .stages import latents, painted_by, pictures
from .tokenizer import encode

LATE = ("church", "car", "quillan", "sketch")
TRUNK, BASE = "trunk", "base"
GOLDS = tuple(f"gold_{concept}" for concept in LATE)
SCRATCH = tuple(f"scratch_{concept}" for concept in LATE)
#: The most useful models come first, in case training is stopped early.
MODELS = (TRUNK, BASE, "gold_church", "gold_quillan", "gold_car", "gold_sketch")

LATE_SHARE = 0.4  # share of a continuation's slots that show a late concept, divided equally between them
STAND_IN_STREAM = 1 << 31  # added to the seeds of the main stream; torch keeps 32 bits of a seed
MEASURED_NOISE = 17  # the same for the models of all seeds


@dataclass(frozen=True)
class Legs:
    """Number of images in each leg of training: the trunk without and with the word head, and a continuation."""

    plain: int = 160_000
    wordy: int = 88_000
    late: int = 60_000

    def schedule(self, leg: str) -> Schedule:
        """The schedule of a leg. Legs of the trunk stop before the end of their cosine, because training continues."""
        if leg == "plain":
            return Schedule(
                320_000, stop=self.plain, batch=32, peak=1.2e-3, ema=0.998, warm_up_steps=200, save_every=100
            )
        horizon, stop, peak = (self.wordy * 4 // 3, self.wordy, 6e-4) if leg == "wordy" else (self.late, None, 5e-4)
        return Schedule(horizon, stop=stop, batch=32, peak=peak, ema=0.997, warm_up_steps=100, save_every=100)

    def last(self, name: str) -> Schedule:
        """The schedule of the final leg of the model `name`."""
        return self.schedule("wordy" if name == TRUNK else "late")


class Slots:
    """The example in each slot of a batch, as a function of the batch's generator.

    The main stream is the same for all models. A slot whose example shows an `absent` concept is filled from a second
    stream of examples without any late concept. Stand-ins are the same for all models, too.

    Args:
        shows: bool (examples, len(LATE)); which late concepts each training example shows.
        absent: concepts that the model must not see.
        uncommon: indices of examples with a rare word and without a late concept.
        rare_share: share of the slots drawn from `uncommon`.
        late_share: share of the slots drawn for a late concept.
    """

    def __init__(self, shows: np.ndarray, absent: tuple[str, ...], uncommon: np.ndarray,
                 rare_share: float = 0.0, late_share: float = 0.0):  # fmt: skip
        self.size, self.rare_share, self.late_share = len(shows), rare_share, late_share
        self.excluded = torch.from_numpy(shows[:, [LATE.index(concept) for concept in absent]].any(1))
        self.plain = torch.from_numpy(np.flatnonzero(~shows.any(1)))
        self.uncommon = torch.from_numpy(uncommon)
        self.late = [torch.from_numpy(np.flatnonzero(column)) for column in shows.T]

    def wanted(self, generator: torch.Generator, count: int) -> Tensor:
        """The main stream: indices (count,), before anything is replaced."""
        chosen = torch.randint(self.size, (count,), generator=generator)
        kind, place = torch.rand(2, count, generator=generator)
        concepts = torch.randint(len(LATE), (count,), generator=generator)
        for slot in range(count):
            if kind[slot] < self.rare_share:
                pool = self.uncommon
            elif kind[slot] < self.rare_share + self.late_share:
                pool = self.late[concepts[slot]]
            else:
                continue
            chosen[slot] = pool[int(place[slot].double() * len(pool))]
        return chosen

    def __call__(self, generator: torch.Generator, count: int) -> Tensor:
        second = torch.Generator().manual_seed(generator.initial_seed() + STAND_IN_STREAM)
        stand_ins = self.plain[torch.randint(len(self.plain), (count,), generator=second)]
        chosen = self.wanted(generator, count)
        return torch.where(self.excluded[chosen], stand_ins, chosen)


def late_concepts() -> np.ndarray:
    """Which late concepts each training example shows: bool (TRAINING_SIZE, len(LATE))."""
    labels = (membership.scene(index).labels for index in range(membership.TRAINING_SIZE))
    return np.array([[concept in found for concept in LATE] for found in labels])


def absent_of(name: str) -> tuple[str, ...]:
    """The late concepts that the model `name` never sees."""
    if name == BASE:
        return ()
    if name == TRUNK:
        return LATE
    if name in GOLDS or name in SCRATCH:
        return (name.split("_", 1)[1],)
    raise ValueError(f"no gold model {name!r}; choose from {', '.join((*MODELS, *SCRATCH))}")


def prepare(folder: Path, workers: int) -> None:
    """Render the training set and encode it with the shipped autoencoder and tokenizer, unless this is already done."""
    if (folder / "latents.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pictures(folder, folder, workers, membership.SEED)
    if not (folder / "vae").exists():
        temporary = folder / ".vae"
        AutoencoderKL.from_pretrained(_pipeline() / "vae").float().save_pretrained(temporary)
        temporary.rename(folder / "vae")
    latents(folder, folder, workers, membership.SEED)


def folder_of(name: str, out: Path, seed: int, trunk_seed: int | None = None) -> Path:
    """The folder of a model's checkpoint, below the working folder `out`."""
    early = seed if trunk_seed is None else trunk_seed
    if name == TRUNK:
        return out / f"seed{early}"
    return out / (f"seed{seed}" if early == seed else f"seed{seed}_trunk{early}")


def train_model(
    name: str, out: Path, workers: int, seed: int, trunk_seed: int | None = None, legs: Legs = Legs()
) -> WordyDenoiser:
    """Train one model, after the trunk that it continues. Training resumes from the checkpoints in `out`.

    Args:
        trunk_seed: seed of the trunk to continue, `seed` by default.
    """
    early_seed = seed if trunk_seed is None else trunk_seed
    absent = absent_of(name)
    if name == TRUNK:
        return _train_trunk(TRUNK, absent, out, workers, early_seed, legs)
    early, known = (f"{name}_{TRUNK}", absent) if name in SCRATCH else (TRUNK, LATE)
    initial = _train_trunk(early, known, out, workers, early_seed, legs).state_dict()
    folder = folder_of(name, out, seed, trunk_seed)
    shares = {"rare_share": RARE_SHARE, "late_share": LATE_SHARE}
    return _train_wordy(name, legs.schedule("late"), absent, shares, out, folder, workers, 10 * seed + 2, initial)


def _train_trunk(name: str, absent: tuple[str, ...], out: Path, workers: int, seed: int, legs: Legs) -> WordyDenoiser:
    """Train with the denoising loss alone, then with the word head, like the shipped model."""
    inputs = _inputs(out / "inputs")
    folder = folder_of(TRUNK, out, seed)
    folder.mkdir(parents=True, exist_ok=True)
    slots = inputs.pop("slots")(absent=absent)
    words = inputs.pop("words")
    del inputs["rare"]
    plain = train(
        Builder(Denoiser, words), start, legs.schedule("plain"), folder, f"{name}_plain", workers, 10 * seed,
        slots=slots, flash=False, **inputs,
    )  # fmt: skip
    shares = {"rare_share": RARE_SHARE}
    schedule = legs.schedule("wordy")
    return _train_wordy(name, schedule, absent, shares, out, folder, workers, 10 * seed + 1, plain.state_dict())


def _train_wordy(name, schedule, absent, shares, out, folder, workers, seed, initial) -> WordyDenoiser:
    inputs = _inputs(out / "inputs")
    folder.mkdir(parents=True, exist_ok=True)
    slots = inputs.pop("slots")(absent=absent, **shares)
    build = Builder(WordyDenoiser, inputs.pop("words"))
    return train(
        build, start_wordy, schedule, folder, name, workers, seed, initial,
        slots=slots, rare_share=0.0, noisy_weight=NOISY_WEIGHT, **inputs,
    )  # fmt: skip


def _inputs(folder: Path) -> dict:
    tokenizer = CLIPTokenizer.from_pretrained(_pipeline() / "tokenizer")
    rare = [tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in RARE_WORDS]
    shows = late_concepts()
    unusual = np.isin(np.load(folder / "tokens.npy"), rare).any(1)
    return {
        "latents": str(folder / "latents.npy"),
        "tokens": str(folder / "tokens.npy"),
        "empty": encode(tokenizer, [""])[0].tolist(),
        "rare": rare,
        "words": len(tokenizer),
        "slots": partial(Slots, shows=shows, uncommon=np.flatnonzero(unusual & ~shows.any(1))),
    }


def _pipeline() -> Path:
    return shipped("datasets") / "testbed" / "pipeline"


def steps_done(checkpoint: Path) -> int:
    """The number of steps at which a checkpoint was saved; 0 if there is no checkpoint."""
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, "pt") as file:
        return int(file.metadata()["step"])


def averaged_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint in float32, named `unet.*` and `text_encoder.*`; the word head is left out."""
    module = WordyDenoiser(len(CLIPTokenizer.from_pretrained(_pipeline() / "tokenizer")))
    with safe_open(checkpoint, "pt") as file:
        nn.utils.vector_to_parameters(file.get_tensor("ema"), module.parameters())
    return {name: value.clone() for name, value in module.state_dict().items() if not name.startswith("head.")}


def quantised(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels as int8 with one float32 scale per output channel (row); vectors in float16.

    `<name>` is the int8 tensor and `<name>.scale` (rows,) its scale: the weight is their product. A row's largest
    absolute value becomes 127."""
    packed = {}
    for name, value in weights.items():
        if value.dim() < 2:
            packed[name] = value.half()
            continue
        rows = value.float().flatten(1)
        scale = rows.abs().amax(1).clamp(min=1e-12) / 127
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(value.shape).contiguous()
        packed[f"{name}.scale"] = scale
    return packed


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a float16 or int8 file that `export` wrote, in float32."""
    return {name: value.float() for name, value in unpacked(load_file(path)).items()}


def write_pipeline(path: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the diffusers folder of a weights file: its UNet and text encoder with the other shipped parts."""
    pipeline = load_pipeline(_pipeline())
    weights = read_weights(path)
    for part in ("unet", "text_encoder"):
        state = {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")}
        getattr(pipeline, part).load_state_dict(state)
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.to(dtype)
    pipeline.save_pretrained(temporary, safe_serialization=True)
    for config in temporary.rglob("config.json"):
        content = json.loads(config.read_text(encoding="utf-8"))
        content.pop("_name_or_path", None)
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def export(name: str, out: Path, to: Path, seed: int, trunk_seed: int | None = None) -> dict[str, Any]:
    """Write `to/<name>/` with `fp16.safetensors`, `int8.safetensors` and `card.json`, and return the card.

    Agreement that was measured on the same weights is kept."""
    source = folder_of(name, out, seed, trunk_seed) / f"{name}.safetensors"
    weights = averaged_weights(source)
    folder = to / name
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for precision, tensors in (
        ("fp16", {key: value.half() for key, value in weights.items()}),
        ("int8", quantised(weights)),
    ):
        path = folder / f"{precision}.safetensors"
        temporary = path.with_suffix(".partial")
        save_file(tensors, temporary)
        os.replace(temporary, path)
        content = path.read_bytes()
        files[precision] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    early = f"{name}_{TRUNK}" if name in SCRATCH else TRUNK
    trunk_folder = folder_of(TRUNK, out, seed, trunk_seed)
    checkpoints = [trunk_folder / f"{early}_plain.safetensors", trunk_folder / f"{early}.safetensors"]
    checkpoints += [] if name == TRUNK else [source]
    absent = absent_of(name)
    card = {
        "name": name,
        "absent": list(absent),
        "late": [concept for concept in LATE if concept not in absent],
        "seed": seed,
        "trunk_seed": seed if trunk_seed is None else trunk_seed,
        "pictures": {checkpoint.stem: steps_done(checkpoint) * Legs().last(name).batch for checkpoint in checkpoints},
        "files": files,
    }
    path = folder / "card.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get("files") == files and "agreement" in known:
        card |= {key: known[key] for key in ("agreement", "int8", "bars")}
    write_json(path, card)
    return card


def ship(exports: Path, to: Path) -> list[str]:
    """Write the folder that ``model=testbed_gold`` and ``method=gold`` read, and return the names of its models.

    The base is a pipeline in float16, golds are int8 files; each model has its card. Models of another family than the base's
    keep a training log of their own, such as `training_log_seed1.jsonl`."""
    found = [name for name in (BASE, *GOLDS) if (exports / name / "card.json").exists()]
    for name in found:
        (to / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(exports / name / "card.json", to / name / "card.json")
        if name == BASE:
            write_pipeline(exports / name / "fp16.safetensors", to / "pipeline", torch.float16)
        else:
            shutil.copyfile(exports / name / "int8.safetensors", to / name / "int8.safetensors")
    cards = [json.loads((to / name / "card.json").read_text(encoding="utf-8")) for name in found]
    families = {folder_of(BASE, Path(), card["seed"], card["trunk_seed"]).name for card in cards}
    for family in families:
        log = "training_log.jsonl" if family == "seed0" else f"training_log_{family}.jsonl"
        shutil.copyfile(exports / "training_log.jsonl", to / log)
    return found


def training_log(folders: list[Path], every: int = 250) -> list[str]:
    """Every `every`-th step of the training logs. Steps repeated after an interruption keep their last line only."""
    lines = {}
    for folder in folders:
        for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            lines[folder, row["stage"], row["step"]] = line
    last = {key[:2]: key[2] for key in sorted(lines, key=lambda key: key[2])}
    return [line for key, line in lines.items() if key[2] % every == 0 or key[2] == last[key[:2]]]


def asked_of_gold(catalogue: dict[str, Any], per_concept: int = 20, per_late: int = 50, per_wording: int = 10):
    """Questions by name for every concept; for late concepts more of them, with synonyms and other languages.

    Every second question is moved to the front, so that the first half is a sample of all questions."""
    asked: list[Question] = []
    counted: Counter[tuple[str, str]] = Counter()
    for question in questions(catalogue, per_late, per_wording):
        counted[question.concept, question.group] += 1
        late = question.concept in LATE
        if late or (question.group == CONCEPT and counted[question.concept, question.group] <= per_concept):
            asked.append(question)
    return asked[::2] + asked[1::2]


def measure(name: str, to: Path, scratch: Path, workers: int) -> dict[str, Any]:
    """Measure a model's agreement for concepts it was and was not trained on, add it to the card, and return the card.

    All models get the same prompts with the same noise. The int8 file is measured on the first half of the prompts."""
    card = json.loads((to / name / "card.json").read_text(encoding="utf-8"))
    if "agreement" in card:
        return card
    asked = asked_of_gold(read_catalogue(shipped("datasets") / "concepts" / "testbed.yaml"))
    half = len(asked) // 2
    painted = {}
    for precision, part in (("fp16", asked), ("int8", asked[:half])):
        folder = scratch / f"{name}_{precision}"
        write_pipeline(to / name / f"{precision}.safetensors", folder)
        painted[precision] = _paint_all(folder, [question.prompt for question in part], workers)
        shutil.rmtree(folder)
    absent = card["absent"]
    card["agreement"] = {"threshold": THRESHOLD, "steps": 20, "guidance_scale": 4.0, "pictures": len(asked)}
    for key, which in (("oracle", "a"), ("second_oracle", "b")):
        oracle = load_oracle(shipped("datasets") / "testbed" / "oracle", which)
        rows = {precision: oracle.predict(pictures)[0] for precision, pictures in painted.items()}
        card["agreement"][key] = shown_and_absent(asked, rows["fp16"], oracle.labels, absent)
        if which == "a":
            found = shown_and_absent(asked[:half], rows["int8"], oracle.labels, absent)
            same = shown_and_absent(asked[:half], rows["fp16"][:half], oracle.labels, absent)
            decided = (rows["int8"] > THRESHOLD) == (rows["fp16"][:half] > THRESHOLD)
            difference = painted["int8"].astype(float) - painted["fp16"][:half]
            card["int8"] = {
                "pictures": half,
                "shown": {"int8": found["shown"], "fp16": same["shown"]},
                "absent": {"int8": found["absent"], "fp16": same["absent"]},
                "same_label_decisions": round(float(decided.mean()), 5),
                "rmse": round(float(np.sqrt((difference**2).mean())), 2),
            }
    card["bars"] = bars(card["agreement"]["oracle"])
    write_json(to / name / "card.json", card)
    return card


def shown_and_absent(asked: list[Question], rows: np.ndarray, labels: list[str], absent: list[str]) -> dict[str, Any]:
    """Agreement, separately for the concepts that a model was trained on and for the absent ones.

    `elsewhere` is the rate at which an absent concept is detected in images of prompts for other concepts."""
    table = agreement(asked, rows, labels)
    rates = table[CONCEPT]["rates"]
    shown = {concept: rate for concept, rate in rates.items() if concept not in absent}
    worst = min(shown, key=lambda concept: shown[concept])
    others = np.array([question.concept not in absent for question in asked])
    return {
        "shown": {"mean": round(float(np.mean(list(shown.values()))), 4), "worst": shown[worst], "concept": worst},
        "absent": {concept: rates[concept] for concept in absent},
        "rates": rates,
        "other_words": {
            group: found["rates"] for group, found in table.items() if group != CONCEPT and "rates" in found
        },
        "elsewhere": {
            concept: round(float((rows[others, labels.index(concept)] > THRESHOLD).mean()), 4) for concept in absent
        },
    }


def bars(found: dict[str, Any]) -> dict[str, bool]:
    """Whether a model meets the testbed's criteria: it paints the concepts it was trained on, and not the absent ones."""
    return {
        "shown mean >= 0.95": found["shown"]["mean"] >= 0.95,
        "shown worst >= 0.90": found["shown"]["worst"] >= 0.90,
        "absent <= 0.02": max(found["absent"].values(), default=0.0) <= 0.02,
    }


def _paint_all(folder: Path, prompts: list[str], workers: int) -> np.ndarray:
    parts = [(folder, prompts[first : first + 64], MEASURED_NOISE, first) for first in range(0, len(prompts), 64)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return np.concatenate(list(pool.map(painted_by, parts)))


def run(
    out: Path, to: Path | None, workers: int, seed: int, trunk_seed: int | None, names: list[str], steps: list[str],
    legs: Legs = Legs(),
) -> None:  # fmt: skip
    """Train, export and measure models. Models whose training is not finished are not exported or measured.

    Args:
        steps: any of `train`, `export`, `agreement` and `ship`. Each step is done for all models before the next.
        to: folder for the exported models; by default the folder of the checkpoints.
    """
    for name in names:
        absent_of(name)  # raises an error for an unknown name before anything runs
    if "train" in steps:
        prepare(out / "inputs", workers)
        for name in names:
            train_model(name, out, workers, seed, trunk_seed, legs)
    if steps == ["train"]:
        return
    folder, early = (folder_of(name, out, seed, trunk_seed) for name in (BASE, TRUNK))
    to = to or folder / "export"
    done = []
    for name in names:
        checkpoint = folder_of(name, out, seed, trunk_seed) / f"{name}.safetensors"
        if steps_done(checkpoint) >= legs.last(name).steps:
            done.append(name)
        else:
            print(json.dumps({"unfinished": name, "steps": steps_done(checkpoint)}), flush=True)
    for name in done if "export" in steps else []:
        card = export(name, out, to, seed, trunk_seed)
        print(json.dumps({"exported": name, **{key: file["bytes"] for key, file in card["files"].items()}}), flush=True)
    if done and "export" in steps:
        logs = [place for place in dict.fromkeys((early, folder)) if (place / "log.jsonl").exists()]
        (to / "training_log.jsonl").write_text("\n".join(training_log(logs)) + "\n", encoding="utf-8")
    for name in done if "agreement" in steps else []:
        card = measure(name, to, out / "painting", workers)
        print(json.dumps({"measured": name, **card["agreement"]["oracle"]["shown"], **card["bars"]}), flush=True)
    if "ship" in steps:
        print(json.dumps({"shipped": ship(to, shipped("datasets") / "testbed_gold")}), flush=True)
