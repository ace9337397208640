"""A network and its loss for tests of parallel training. Worker processes import this module by its name."""

import torch
from torch import nn


def build():
    return nn.Linear(8, 8)


def start(module):
    def loss(generator, count):
        given = torch.randn(count, 8, generator=generator)
        return (module(given.bfloat16()).float() - given.flip(1)).square().mean()

    return loss
