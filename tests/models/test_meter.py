"""The meter of seconds and of peak memory on the CPU."""

import time

import numpy as np

from overpaint.models.meter import Meter

MEGABYTE = 10**6


def test_a_block_of_memory_that_is_gone_at_the_end_counts():
    with Meter() as meter:
        before = meter.peak_bytes
        block = np.ones(200 * MEGABYTE, np.uint8)  # writes every page
        time.sleep(0.1)
        del block
    assert meter.peak_bytes - before >= 150 * MEGABYTE
    assert 0.1 <= meter.seconds < 60
