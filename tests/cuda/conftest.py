"""The cards of this machine, and a pretended one."""

import pytest
import torch

from pretended_device import pretended_cuda


@pytest.fixture
def cuda():
    """The first card."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda:0"


@pytest.fixture
def two_cards():
    found = torch.cuda.device_count()
    if found < 2:
        pytest.skip(f"needs two CUDA devices, found {found}")
    return ["cuda:0", "cuda:1"]


@pytest.fixture
def pretended():
    """The card of a process that computes on the CPU and refuses what a card refuses."""
    with pretended_cuda():
        yield "cuda:0"
