"""torch is imported at its first use, and is torch itself from then on."""

import subprocess
import sys

import pytest
import torch

from overpaint.models import lazily

CODE = """
import sys
import overpaint.methods.uce, overpaint.attacks.mma
from overpaint.models.lazily import functional, torch
assert "torch" not in sys.modules
ones = torch.ones(2)
assert type(ones) is sys.modules["torch"].Tensor and functional.relu(-ones).sum() == 0
"""


def test_it_is_imported_at_its_first_use():
    subprocess.run([sys.executable, "-c", CODE], check=True)


def test_what_it_offers_is_torchs_own(monkeypatch):
    assert lazily.torch.Tensor is torch.Tensor and lazily.functional.mse_loss is torch.nn.functional.mse_loss
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert lazily.torch.get_num_threads() == 7
    with pytest.raises(AttributeError, match="module 'torch' has no attribute 'tensors'"):
        lazily.torch.tensors  # noqa: B018
