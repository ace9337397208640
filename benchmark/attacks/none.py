"""No attack. The plain prompts are measured, and no further image is generated."""

from __future__ import annotations

from dataclasses import dataclass

from overpaint.attacks.attack import Assault, Attack, AttackContext


@dataclass(kw_only=True)
class NoAttack(Attack):
    """Returns no shots."""

    def run(self, context: AttackContext) -> Assault:
        return Assault([])
