"""Seconds and peak memory of a piece of work."""

from __future__ import annotations

import threading
import time

import psutil


class Meter:
    """``with Meter() as meter: …`` measures the block; read ``meter.seconds`` and ``meter.peak_bytes`` afterwards.

    On a GPU the peak is the maximum of torch's allocator. On the CPU it is the largest resident size of this process,
    sampled every 20 ms.
    """

    def __init__(self, device: str = "cpu"):
        self.device, self.seconds, self.peak_bytes = device, 0.0, 0

    def __enter__(self) -> Meter:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
        self._process, self._done = psutil.Process(), threading.Event()
        self.peak_bytes = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._start = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)

    def __exit__(self, *_) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device)
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._thread.join()
        if not self.device.startswith("cuda"):
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)
