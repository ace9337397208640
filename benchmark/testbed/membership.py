"""The training set as a seeded function from an index to a scene and a caption, so that membership is known exactly."""

from random import Random

from .captions import caption
from .world import Scene, random_scene

SEED = 0
TRAINING_SIZE = 50_000
REPEATED = 20  # number of examples that are repeated, so that the model may memorise them
REPEATS = 150  # number of times that each of them occurs
FIRST_REPEAT = TRAINING_SIZE - REPEATED * REPEATS


def is_member(index: int) -> bool:
    """Whether the example at `index` is in the training set. Indices from TRAINING_SIZE on are held out."""
    return 0 <= index < TRAINING_SIZE


def original(index: int) -> int:
    """The index of the example that this one repeats; `index` itself if it is not a repetition."""
    if index < 0:
        raise ValueError(f"an index of the training function is 0 or more, got {index}")
    return (index - FIRST_REPEAT) % REPEATED if FIRST_REPEAT <= index < TRAINING_SIZE else index


def duplicates() -> dict[int, int]:
    """Repeated examples: first index -> number of times that its caption and image occur in the training set."""
    return {index: REPEATS + 1 for index in range(REPEATED)}


def scene(index: int, seed: int = SEED) -> Scene:
    return random_scene(Random(f"scene/{seed}/{original(index)}"))


def example(index: int, seed: int = SEED) -> tuple[Scene, str]:
    """The scene and the caption at `index`."""
    shown = scene(index, seed)
    return shown, caption(shown, Random(f"caption/{seed}/{original(index)}"))


def held_out_captions(count: int) -> list[str]:
    """Captions of the first examples after the training set; ``datasets/testbed/captions.csv`` holds 500 of them."""
    return [example(TRAINING_SIZE + index)[1] for index in range(count)]
