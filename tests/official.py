"""Functions that tests share: comparison with recordings of official code, and access to results of attacks."""

from collections import defaultdict
from contextlib import contextmanager

import torch
from safetensors.torch import load_file

import overpaint
from overpaint.blocks.draws import replayed, traced
from overpaint.models.erasure import Erasure, Replacement


def distance(ours, theirs, start=None):
    """‖ours − theirs‖ / ‖theirs‖ in double precision. With ``start``, the denominator is ‖theirs − start‖."""
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / (theirs if start is None else theirs - start.double()).norm())


def flat(tensors, names):
    """All these tensors as one vector."""
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
    """The parameters that an erasure changes, after the change, by name."""
    erasure = overpaint.erase(model, method, **arguments)
    with erasure.attached(model):
        return parameters(model, erasure.changes)


def victim(path):
    """Edited matrices from a file, as an erasure."""
    return Erasure("uce", changes={name: Replacement(tensor) for name, tensor in load_file(path).items()})


@contextmanager
def watched(records=None):
    """Context: a list of all values traced in the block, in order, copied at that time. Recorded draws are replayed."""
    seen = []

    def keep(**values):
        seen.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()})

    with replayed(records or {}), traced(keep):
        yield seen


def by_name(seen):
    """The traced values as lists by name; an empty list for an unknown name."""
    found = defaultdict(list)
    for values in seen:
        for name, value in values.items():
            found[name].append(value)
    return found


def by_variant(assault):
    """The bytes of an attack's images, one list per variant."""
    found = defaultdict(list)
    for painted in assault.painted:
        found[painted.shot.prompt.variant].append(painted.image.tobytes())
    return dict(found)
