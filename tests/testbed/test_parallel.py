"""Training is a function of its seed: a resumed run gives the same bytes as an uninterrupted run."""

from dataclasses import replace

import torch

from overpaint.testbed.parallel import Schedule, train
from small_training import build, start

WHOLE = Schedule(images=48, batch=4, peak=1e-2, ema=0.9, warm_up_steps=2, save_every=4)


def test_a_run_that_stopped_goes_on_to_the_same_bytes(tmp_path):
    folders = [tmp_path / name for name in ("whole", "halves")]
    for folder in folders:
        folder.mkdir()
    whole = train(build, start, WHOLE, folders[0], "it", seed=3)
    train(build, start, replace(WHOLE, stop=20), folders[1], "it", seed=3)
    halves = train(build, start, WHOLE, folders[1], "it", seed=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))
    saved = [(folder / "it.safetensors").read_bytes() for folder in folders]
    assert saved[0] == saved[1]
    torch.manual_seed(3)
    assert not torch.equal(whole.weight, build().weight)  # and it learned something
