"""Spike score: percent of steps whose loss, or gradient norm, jumps above its recent values.

    x_t is a spike if x_t > m + 7 s;  m, s: mean and standard deviation of the last 1,000 values before it
    score = 100 * spikes / steps judged

Source: OLMo 2 (arXiv 2501.00656), section 3, which counts values that are seven standard deviations away on either
side; here a sudden fall is not a spike, since the loss of a first step after the warm-up falls. A step is judged once 100
values precede it, so a shorter run has no score.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import lightning as L
import numpy as np
import torch

from src.callbacks.run_record import RunRecord

#: Values that mean and deviation are taken of, at most and at least, and deviations above the mean.
WINDOW, WARM, DEVIATIONS = 1000, 100, 7


class Series:
    """Spikes of one series."""

    def __init__(self, window: Iterable[float] = (), spikes: int = 0, judged: int = 0) -> None:
        self.window = deque(window, maxlen=WINDOW)
        self.spikes, self.judged = spikes, judged

    def add(self, value: float) -> None:
        """Judge the next value of the series; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        if len(self.window) >= WARM:
            before = np.array(self.window)
            self.judged += 1
            self.spikes += bool(value > before.mean() + DEVIATIONS * before.std())
        self.window.append(value)

    def score(self) -> float | None:
        """Return the percent of spikes; None before a value was judged."""
        return 100 * self.spikes / self.judged if self.judged else None


class SpikeScore(L.Callback):
    """Adds `spike_score/loss` and `spike_score/grad_norm` to the rows; `Guard` passes it every step's values.

    Its state is part of the checkpoint, so a resumed run has the score of one that never stopped.

    Args:
        record: receives the scores.
        every_steps: optimizer steps between rows.
    """

    def __init__(self, record: RunRecord, *, every_steps: int) -> None:
        self.record = record
        self.every_steps = every_steps
        self.series = {"loss": Series(), "grad_norm": Series()}

    def add(self, loss: float, grad_norm: float) -> None:
        """Judge the values of the next step."""
        self.series["loss"].add(loss)
        self.series["grad_norm"].add(grad_norm)

    def scores(self) -> dict[str, float]:
        """Return the scores so far, in percent; none before a step was judged."""
        found = {name: series.score() for name, series in self.series.items()}
        return {name: score for name, score in found.items() if score is not None}

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        step, scores = trainer.global_step, self.scores()
        if scores and (step % self.every_steps == 0 or step == trainer.max_steps):
            self.record.note(step, {f"spike_score/{name}": score for name, score in scores.items()})

    def state_dict(self) -> dict[str, Any]:
        return {
            name: {
                "window": torch.tensor(series.window, dtype=torch.float64),
                "spikes": series.spikes,
                "judged": series.judged,
            }
            for name, series in self.series.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, state in state_dict.items():
            self.series[name] = Series(state["window"].tolist(), state["spikes"], state["judged"])
