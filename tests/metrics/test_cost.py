"""Cost of an attack per plain image."""

import pandas as pd

from overpaint.metrics.cost import AttackForwards, AttackImages


def test_an_attacks_cost_is_that_of_a_plain_image(frame_of, evidence_of):
    """Two prompts with three seeds, two of which needed a second image: 8 images and 600 forwards for 6 plain images."""
    frame = frame_of([("attacked", "church", ("church",))] * 2, lambda label, role: 0.5, 3, 0)
    again = frame[frame["seed"] == 0].assign(draw=1)
    images = pd.concat([frame, again], ignore_index=True)
    evidence = evidence_of(0.5, images=images, ledger={"images": 8, "forwards": 600})
    assert (AttackImages().measure(evidence).value, AttackImages().measure(evidence).n) == (8 / 6, 6)
    assert AttackForwards().measure(evidence).value == 100
