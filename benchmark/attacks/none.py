"""No attack: no further image. What there is to see is on the plain prompts."""

from __future__ import annotations

from dataclasses import dataclass

from overpaint.attacks.attack import Assault, Attack, AttackContext


@dataclass(kw_only=True)
class NoAttack(Attack):
    """Leaves nothing to be made."""

    def run(self, context: AttackContext) -> Assault:
        return Assault([])
