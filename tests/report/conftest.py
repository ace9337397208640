"""Records that several tests of tables share, and the published figures."""

import numpy as np
import pytest
from table_records import frame, outcomes_of, record

from overpaint.report.ledger import agreement
from overpaint.report.ledger.published import published


@pytest.fixture
def records():
    return frame(
        record("uce", "church", "target_proportion", 0.2, 0.1, 0.4),
        record("uce", "car", "target_proportion", 0.4, 0.2, 0.6),
        record("uce", "sketch", "target_proportion", 0.5, 0.3, 0.7, kind="style"),
        record("esd", "church", "target_proportion", 0.0, 0.0, 0.3),
        record("esd", "car", "target_proportion", None),
    )


@pytest.fixture
def three():
    """Three methods on 40 prompts: 0, 8 and 32 of them show the concept."""
    rows = frame(*(record(m, "church", "target_proportion", v) for m, v in (("uce", 0.0), ("esd", 0.2), ("mace", 0.8))))
    hits = np.array([np.zeros(40), np.arange(40) < 8, np.arange(40) < 32], float)
    return outcomes_of(rows, hits, np.ones((3, 40)))


@pytest.fixture(scope="session")
def found():
    """All published figures."""
    return published()


@pytest.fixture(scope="session")
def compared(found):
    """All pairs of published figures of the same quantity, with their verdicts."""
    return agreement.pairs(found)
