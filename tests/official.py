"""What tests share: to hold ours to what official code wrote, and to look at what attacks made."""

from collections import defaultdict
from contextlib import contextmanager

import torch
from safetensors.torch import load_file

import overpaint
from overpaint.blocks.draws import replayed, traced
from overpaint.models.erasure import Erasure, Replacement


def distance(ours, theirs, start=None):
    """‖ours − theirs‖ / ‖theirs‖ in double precision; of a change, beside what it started from, / ‖theirs − start‖."""
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / (theirs if start is None else theirs - start.double()).norm())


def flat(tensors, names):
    """All of these tensors as one vector."""
    return torch.cat([tensors[name].flatten() for name in names])


def parameters(model, names):
    """Copies of the model's parameters, by name."""
    return {name: model.named_parameters()[name].data.clone() for name in names}


def recorded(extra, *names):
    """The recorded draws of these names: ``x_T.0``, ``x_T.1``, … for ``"x_T"``."""
    return {key: value for key, value in extra.items() if key.split(".")[0] in names}


def rollout_settings(meta):
    """The settings that ESD and the methods built on its code record under the same names."""
    return {
        "negative_guidance": meta["eta"],
        "start_guidance": meta["start_guidance"],
        "rollout_steps": meta["steps"],
        "iterations": meta["iterations"],
        "learning_rate": meta["lr"],
    }


def changed(model, method, **arguments):
    """What an erasure makes of the parameters that it changes, by name."""
    erasure = overpaint.erase(model, method, **arguments)
    with erasure.attached(model):
        return parameters(model, erasure.changes)


def victim(path):
    """Edited matrices from a file, as an erasure."""
    return Erasure("uce", changes={name: Replacement(tensor) for name, tensor in load_file(path).items()})


@contextmanager
def watched(records=None):
    """Everything that is shown in the block, in order, as it is then; recorded draws are replayed."""
    seen = []

    def keep(**values):
        seen.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()})

    with replayed(records or {}), traced(keep):
        yield seen


def by_name(seen):
    """What was shown, a list a name; none of a name that never was."""
    found = defaultdict(list)
    for values in seen:
        for name, value in values.items():
            found[name].append(value)
    return found


def by_variant(assault):
    """The bytes of an attack's pictures, a list a variant."""
    found = defaultdict(list)
    for painted in assault.painted:
        found[painted.shot.prompt.variant].append(painted.image.tobytes())
    return dict(found)
