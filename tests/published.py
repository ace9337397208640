"""Files in the formats in which erasures are published, made for a small model."""

import torch
from safetensors.torch import save_file

from overpaint.models.parameters import Parameter  # noqa: F401


def cross_attention(model, *roles):
    """Names of the denoiser's cross-attention weights of these roles (``to_k``, ``to_v``, …)."""
    return [name for name in model.named_parameters() if name.endswith(tuple(f"attn2.{role}.weight" for role in roles))]


def factors(model, names, rank=2, seed=0, scale=0.3):
    """``{weight: (up (out, rank), down (rank, in))}``, random."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name in names:
        rows, columns = model.named_parameters()[name].shape[:2]
        up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
        found[name] = (scale * up, scale * down / columns**0.5)
    return found


def write_kohya(pairs, path, alpha=None, metadata=None):
    """A LoRA with kohya's names: ``lora_unet_a_b.lora_down.weight`` and ``.alpha``."""
    tensors = {}
    for name, (up, down) in pairs.items():
        layer = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        tensors |= {f"{layer}.lora_up.weight": up.contiguous(), f"{layer}.lora_down.weight": down.contiguous()}
        tensors[f"{layer}.alpha"] = torch.tensor(float(len(down.flatten(1)) if alpha is None else alpha))
    save_file(tensors, path, metadata)
    return path


def write_peft(pairs, path):
    """A LoRA with the names that diffusers writes: ``unet.a.b.lora_A.weight``."""
    tensors = {}
    for name, (up, down) in pairs.items():
        layer = "unet." + name.removesuffix(".weight")
        tensors |= {f"{layer}.lora_B.weight": up.contiguous(), f"{layer}.lora_A.weight": down.contiguous()}
    save_file(tensors, path)
    return path
