"""Seconds of a step and of its parts: CPU time on a CPU; on a GPU the wall's and, between parts, the device's own.

A part on a GPU is what lies between two events in its queue, so nothing waits for it.
"""

import itertools
import time
from collections.abc import Callable

import torch

Lap = Callable[[str], None]


def no_lap(part: str) -> None:
    """Where nobody asks for parts."""


class Stopwatch:
    """`start`, a call at the end of each part with its name, `stop`; parts of one name add up."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self._clock = time.perf_counter if self.on_gpu else time.process_time

    def start(self) -> None:
        """Once all earlier work is done."""
        if self.on_gpu:
            torch.cuda.synchronize()
        self._names: list[str] = []
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self._began = self._clock()
        self._mark()

    def __call__(self, part: str) -> None:
        self._names.append(part)
        self._mark()

    def stop(self) -> tuple[float, dict[str, float]]:
        """Seconds in all, and of each part."""
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds = self._clock() - self._began
        if self.on_gpu:
            spans = [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(self._events)]
        else:
            spans = [b - a for a, b in itertools.pairwise(self._times)]
        parts = dict.fromkeys(self._names, 0.0)
        for name, span in zip(self._names, spans, strict=True):
            parts[name] += span
        return seconds, parts

    def _mark(self) -> None:
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch
            event.record()
            self._events.append(event)
        else:
            self._times.append(self._clock())
