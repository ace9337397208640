"""Values as text for people."""

import pytest

from overpaint.grid.labels import bytes_said


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_700, "1 MB"), (-2.5e6, "-2.5 MB"), (999.4e6, "999 MB"),
        (1.234e9, "1.23 GB"), (999.9e9, "1.0 TB"), (1.23e12, "1.2 TB"), (4.2e15, "4200.0 TB"),
    ],
)  # fmt: skip
def test_bytes_have_the_largest_unit_that_leaves_no_exponent(size, said):
    assert bytes_said(size) == said
