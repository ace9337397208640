"""Merging: the victim's weights are averaged with those of a benign fine-tune, and the concept is looked for again.

Nobody has to attack: people merge checkpoints of the community, for instance half of an erased model and half of one that was
fine-tuned on something else ("Model soups", Wortsman et al., ICML 2022, arXiv 2203.05482; "task arithmetic", Ilharco et al.,
ICLR 2023, arXiv 2212.04089). With the unedited model's weights W₀, the victim's W_v and those of the fine-tune W_b,

    W = W₀ + a (W_v − W₀) + b (W_b − W₀)                                        a = ``erasure``, b = ``benign``

so a = b = 1 is the sum of both changes and a = b = ½ the mean of both models. W_b is trained here, from the unedited model and on
its images of ordinary things other than the concept (`overpaint.attacks.fine_tuning`), or it is read from ``checkpoint``.

An adapter stays beside the merged weights, and its output is multiplied by a: its tensors in `LINEAR` are. Methods whose
erasures cannot be scaled (`Eraser.mergeable`) are refused by the planner. A guard, which has no weights, would stay as it is.

Half of an erasure may already be none. The comparison is the same merge without the benign part (b = 0). Where the concept
returns there too, the benign part has brought nothing back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from overpaint.attacks.attack import Assault, AttackContext, Ledger
from overpaint.attacks.fine_tuning import FineTuning
from overpaint.attacks.probes import repainted
from overpaint.blocks.draws import Draws
from overpaint.blocks.merging import Change, delta
from overpaint.blocks.training import swapped
from overpaint.errors import UserError, at_least
from overpaint.grid.assets import referred
from overpaint.models import checkpoints
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Replacement, load_erasure
from overpaint.models.lazily import torch

#: How an adapter's tensors in which its output is linear are called, and its others.
LINEAR, INNER = (".up", ".up.weight", ".up.bias"), (".down", ".down.weight", ".down.bias")


@dataclass(kw_only=True)
class Merging(FineTuning):
    """Hyper-parameters; ``conf/attack/merge.yaml`` says what each means."""

    erasure: float
    benign: float
    steps: int
    checkpoint: str | None

    enters_by: ClassVar[str] = "weights"
    merges: ClassVar[bool] = True
    networks: ClassVar[tuple[str, ...]] = ("checkpoint",)

    def __post_init__(self):
        super().__post_init__()
        at_least(0, erasure=self.erasure, benign=self.benign)
        at_least(1, steps=self.steps)
        if (self.erasure, self.benign) == (1, 0):
            raise UserError("merge changes nothing with erasure=1 and benign=0: set one of them to another value")

    @property
    def trains(self) -> bool:
        """Whether a benign change is needed and is not given."""
        return bool(self.benign) and not self.checkpoint

    @property
    def draws(self) -> bool:  # type: ignore[override]  # depends on hyper-parameters, as an eraser's may
        return self.trains

    @property
    def lengths(self) -> tuple[str, ...]:
        return ("steps", "pictures") if self.trains else ()

    @property
    def shown(self) -> bool:
        return False

    def check(self, judged: bool) -> None:
        if self.checkpoint and not referred(self.checkpoint):  # an asset that is missing is reported by its name
            checkpoints.local_checkpoint(self.checkpoint, f"attack.checkpoint={self.checkpoint}")

    def run(self, context: AttackContext) -> Assault:
        ledger = Ledger()
        changes: Mapping[str, Change] = {}
        with ledger.counting(context.victim):
            lessons = self.unrelated(context) if self.trains else None
            with context.unedited() as model:
                own = {name: parameter.data for name, parameter in model.named_parameters().items()}
                if lessons:
                    changes = self.trained(model, *lessons, Draws.of(self.seed, context.concept.name))
                elif self.benign:
                    changes = self.given(model)
            with context.adapted(self.of_adapter) as victim:
                weights, places = self.merged(victim, own, changes), victim.parameter_owners()
                with swapped({name: places[name] for name in weights}, weights.__getitem__):
                    painted = repainted(context, f"erasure × {self.erasure:g}, benign × {self.benign:g}")
        ledger.images = len(painted)
        return Assault([p.shot for p in painted], ledger=ledger, painted=painted)

    def trained(self, model: DiffusionModel, pictures, captions, draws: Draws) -> Mapping[str, Change]:
        """The change that training on these images makes of the unedited model, by name."""
        with self.student(model, draws) as student:
            self.trainer(model, student, model.to_latents(pictures), captions, draws)(self.steps)
            return student.changes()

    def given(self, model: DiffusionModel) -> Mapping[str, Change]:
        """The change of the unedited model that the checkpoint holds, by name."""
        path = checkpoints.checkpoint_path(str(self.checkpoint), f"attack.checkpoint={self.checkpoint}")
        if "overpaint" not in checkpoints.metadata(path):
            return checkpoints.changes_of(model, path)
        made = load_erasure(path)
        if any(part.kind != "delta" for part in made.sequence):
            raise UserError(
                f"attack.checkpoint={self.checkpoint} holds an erasure of {made.method}, which changes no weights"
            )
        made.attach(model)()  # raises if it was made for other weights
        return {name: Replacement(tensor) for name, tensor in made.tensors.items()}

    def of_adapter(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of an adapter whose output is multiplied by a."""
        if not name.endswith((*LINEAR, *INNER)):
            raise UserError(f"attack=merge cannot scale the victim's adapter, whose output is not linear in {name}")
        return self.erasure * tensor if name.endswith(LINEAR) else tensor

    def merged(
        self, victim: DiffusionModel, own: Mapping[str, torch.Tensor], benign: Mapping[str, Change]
    ) -> dict[str, torch.Tensor]:
        """W of each weight that the victim or the benign change has changed; ``own`` are the unedited model's."""
        found = {}
        for name, parameter in victim.named_parameters().items():
            W_0, W_v = own[name], parameter.data
            if name in benign or not torch.equal(W_0, W_v):
                W = W_0.double() + self.erasure * (W_v.double() - W_0.double())
                if name in benign:
                    W += self.benign * delta(benign[name], W_0)
                found[name] = torch.empty_like(W_v).copy_(W)
        return found
