"""No attack: no further image. What there is to see is on the plain prompts."""

from __future__ import annotations

from dataclasses import dataclass

from overpaint.attacks.attack import Assault, Attack, Scene


@dataclass(kw_only=True)
class NoAttack(Attack):
    """Leaves nothing to be made."""

    def run(self, scene: Scene) -> Assault:
        return Assault([])
