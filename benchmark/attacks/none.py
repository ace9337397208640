"""No attack. The plain prompts are measured, and no further image is generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from overpaint.attacks.attack import Assault, Attack, AttackContext


@dataclass(kw_only=True)
class NoAttack(Attack):
    """Returns no shots."""

    draws: ClassVar[bool] = False

    def run(self, context: AttackContext) -> Assault:
        return Assault([])
