"""Whether an attack tests a defence: an attack that bypasses the defence does not defeat it.

A prompt becomes an image in the stages of `PROMPT_PATH`. A defence acts at one stage. An attack that enters at a later stage
bypasses it, so its success says nothing about the defence: inverting an image does not test an edited text encoder.
"""

from __future__ import annotations

#: The stages of a prompt, in order: the text encoder; the keys, values and guidance that depend on text; the denoiser itself.
PROMPT_PATH = ("text_encoder", "conditioning", "denoiser")
#: Where an attack enters -> the first stage that it passes through. Trained weights can belong to any stage.
ENTRIES = {"prompt": "text_encoder", "embedding": "conditioning", "image": "denoiser", "weights": "text_encoder"}

OUTSIDE = "outside the defence's scope"


def scope(acts_on: str, enters_by: str) -> str:
    """`OUTSIDE` if the attack enters after the stage at which the defence acts, else an empty string.

    Args:
        acts_on: stage of `PROMPT_PATH` at which the defence acts.
        enters_by: key of `ENTRIES` by which the attack enters.
    """
    return OUTSIDE if PROMPT_PATH.index(acts_on) < PROMPT_PATH.index(ENTRIES[enters_by]) else ""
