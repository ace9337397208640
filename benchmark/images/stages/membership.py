"""Stage *membership*: scores by which an attacker tells training images of the erased concepts from images never trained on.

``membership.parquet`` has one row per image: ``member``, and those scores of `overpaint.blocks.membership` under the victim that
the metrics read, each smaller for a member. Predictions are conditional on the image's caption, without guidance.
"""

from __future__ import annotations

import pandas as pd

from overpaint.blocks.draws import Draws
from overpaint.blocks.membership import Noise, denoising_losses, pia, secmi, step_errors
from overpaint.errors import changed
from overpaint.metrics.membership import SCORES
from overpaint.models.lazily import torch
from overpaint.run.progress import announce

#: Timesteps of the loss out of 1000, spread over the noise levels; each image has its own fixed noise at each of them.
LOSS_TIMESTEPS = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
#: PIA's timestep out of 1000, as in its experiments.
PIA_TIMESTEP = 200


def run(task, inputs, folder, bench) -> dict:
    """Write ``membership.parquet``. Raises a `UserError` if the source changed after planning."""
    config, runtime = task.config, task.runtime
    source = bench.pictures(runtime["pictures"])
    labels, count = config["concepts"], config["count"]
    if source.training_identity(labels, count) != config["training"]:
        raise changed(f"model.reference={runtime['pictures']}")
    examples = source.training(labels, count)
    size, rows = runtime["batch_size"], []
    with bench.victim(config, runtime, inputs.get("erasure")) as victim, torch.no_grad():
        alphas, scale = victim.alphas_cumprod.to(victim.device), victim.train_timesteps / 1000
        times = [int(t * scale) for t in LOSS_TIMESTEPS]
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            x0 = victim.to_latents([image for image, _, _ in part])
            embeds = victim.encode([caption for _, caption, _ in part], truncate=True)

            def noise_of(latents, t, embeds=embeds):
                return victim.noise_of(victim.predict(latents, t, embeds), latents, t)

            drawn = [
                torch.stack([torch.randn(x0.shape[1:], generator=Draws.of(0, start + n, t).generator) for t in times])
                for n in range(len(part))
            ]
            noise = torch.stack(drawn, dim=1).to(x0)
            table = pd.DataFrame(
                {"image": range(start, start + len(part)), "member": [member for _, _, member in part]}
            )
            for name in config.get("scores", SCORES):
                table[name] = score(name, noise_of, x0, alphas, noise, scale).cpu().numpy()
            rows.append(table)
            announce(start + len(part), len(examples), "images")
    pd.concat(rows, ignore_index=True).to_parquet(folder / "membership.parquet", index=False)
    return {"images": len(examples)}


def score(
    name: str, noise_of: Noise, x0: torch.Tensor, alphas: torch.Tensor, noise: torch.Tensor, scale: float
) -> torch.Tensor:
    """One of the `SCORES` (n,) of latents (n, c, h, w); timesteps out of 1000 are multiplied by ``scale``."""
    match name:
        case "loss":
            return denoising_losses(noise_of, x0, alphas, noise, [int(t * scale) for t in LOSS_TIMESTEPS])
        case "secmi":
            return secmi(noise_of, x0, alphas, int(100 * scale), int(10 * scale))
        case "step":
            return step_errors(noise_of, x0, alphas, 10, int(10 * scale))[-1]
    return pia(noise_of, x0, alphas, [int(PIA_TIMESTEP * scale)], normalised=name == "pian")[0]
