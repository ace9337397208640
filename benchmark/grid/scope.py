"""Whether an attack meets the defence at all: a way round a defence is no defeat of it.

A prompt becomes a picture in `PROMPT_PATH`, one after the other. A defence stands at one of them; an attack that comes in behind
it goes round it, whatever it finds: pictures that are inverted say nothing of an edited text encoder.
"""

from __future__ import annotations

#: What a prompt passes through: the text encoder; keys, values and guidance that text brings; the network itself.
PROMPT_PATH = ("text_encoder", "conditioning", "denoiser")
#: Where an attack comes in -> the first stage that it passes through. Trained weights may be those of any stage.
ENTRIES = {"prompt": "text_encoder", "embedding": "conditioning", "image": "denoiser", "weights": "text_encoder"}

OUTSIDE = "outside the defence's scope"


def scope(acts_on: str, enters_by: str) -> str:
    """`OUTSIDE` where an attack that enters so comes in behind a defence that acts there, else an empty string."""
    return OUTSIDE if PROMPT_PATH.index(acts_on) < PROMPT_PATH.index(ENTRIES[enters_by]) else ""
