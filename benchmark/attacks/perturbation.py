"""Perturbation: the victim's weights are rounded to few bits or pruned, and the concept is looked for again.

Nobody has to attack: weights are quantised and pruned to make a model small. An erasure that lives in small changes of weights
may be lost on the way ("Catastrophic Failure of LLM Unlearning via Quantization", arXiv 2410.16454, for language models). For a
weight W (out, …), with one step s_o for each output channel (symmetric, round to nearest, no calibration),

    quantise to b bits      W'_o = s_o clamp(round(W_o / s_o), ±(2^(b−1) − 1)),    s_o = max |W_o| / (2^(b−1) − 1)
    prune a share p         W'   = W where |W| is not among the p smallest entries of its own tensor, else 0

Both set: first pruned, then quantised. Weights of linear layers and convolutions are perturbed, in the denoiser, in the text
encoders, and in an adapter's own tensors (`ADAPTERS`). Biases, norms, embedding tables, the autoencoder, activations, and the
vectors, settings and networks of a guard stay as they are.

The comparison is the same perturbation of the unedited model: where it loses the concept too, its absence shows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger
from overpaint.attacks.probes import repainted
from overpaint.blocks.training import parameter_group, swapped
from overpaint.errors import UserError
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import torch
from overpaint.models.parameters import Parameter

#: How the weights among an adapter's tensors are called, as opposed to its biases and tables.
ADAPTERS = ("weight", "down", "up")


def quantised(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The weight (out, …) with each output channel rounded to the 2^bits − 1 levels of its own symmetric grid."""
    levels = 2 ** (bits - 1) - 1
    values = weight.to(torch.promote_types(weight.dtype, torch.float32))
    step = values.abs().flatten(1).amax(dim=1).view(-1, *(1,) * (values.ndim - 1)) / levels
    rounded = (values / torch.where(step > 0, step, 1.0)).round().clamp(-levels, levels) * step
    return rounded.to(weight.dtype)


def pruned(weight: torch.Tensor, share: float) -> torch.Tensor:
    """The weight with this share of its entries, those of smallest magnitude, set to 0."""
    from torch.nn.utils.prune import L1Unstructured

    plain = weight.contiguous()  # L1Unstructured reads no other memory layout; the result keeps the weight's own
    mask = L1Unstructured(share).compute_mask(plain, torch.ones_like(plain))
    return torch.empty_like(weight).copy_(plain * mask)


def is_layer_weight(p: Parameter) -> bool:
    """Whether a parameter is the weight of a linear layer or a convolution."""
    return p.is_weight and isinstance(p.module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d)


@dataclass(kw_only=True)
class Perturbation(Attack):
    """Hyper-parameters; ``conf/attack/perturb.yaml`` says what each means."""

    bits: int | None
    prune: float

    needs: ClassVar[str] = "victim"
    paints: ClassVar[bool] = True
    worded: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    enters_by: ClassVar[str] = "weights"

    def __post_init__(self):
        if self.bits is not None and not 2 <= self.bits <= 16:
            raise UserError(f"bits takes 2 to 16, or null for weights that are not quantised, got {self.bits}")
        if not 0 <= self.prune < 1:
            raise UserError(f"prune takes a share from 0 up to, but not including, 1, got {self.prune}")
        if self.bits is None and not self.prune:
            raise UserError("perturb changes nothing with bits=null and prune=0: set one of them")

    @property
    def shown(self) -> bool:
        return False

    def perturbed(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight (out, …) after pruning and quantising."""
        kept = pruned(weight, self.prune) if self.prune else weight
        return kept if self.bits is None else quantised(kept, self.bits)

    def of_adapter(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of an adapter, perturbed if it is a weight."""
        return self.perturbed(tensor) if tensor.ndim > 1 and name.endswith(ADAPTERS) else tensor

    def weights(self, model: DiffusionModel) -> dict[str, torch.Tensor]:
        """The perturbed weights by name."""
        names = parameter_group(model, is_layer_weight, [*model.denoiser_names, *model.text_encoder_names])
        parameters = model.named_parameters()
        return {name: self.perturbed(parameters[name].detach()) for name in names}

    def run(self, context: AttackContext) -> Assault:
        ledger = Ledger()
        said = " and ".join([f"{self.prune:.0%} pruned"] * bool(self.prune) + [f"{self.bits} bits"] * bool(self.bits))
        with context.adapted(self.of_adapter) as victim, ledger.counting(victim), torch.no_grad():
            weights, places = self.weights(victim), victim.parameter_owners()
            with swapped({name: places[name] for name in weights}, weights.__getitem__):
                painted = repainted(context, said)
        ledger.images = len(painted)
        return Assault([p.shot for p in painted], ledger=ledger, painted=painted)
