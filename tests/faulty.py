"""Strategy with a configurable fault, for tests of runs that fail inside the model.

With `fault=none` it is vanilla with one factor on the sublayers' outputs, 1 at init.
"""

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream


class Faulty(SingleStream):
    """Vanilla that triggers `fault` at step `at` (0-based) in rank `rank` (-1: all), `times` times."""

    def __init__(
        self, spec: StreamSpec, *, fault: str, at: int, rank: int, times: int, lasts: int, folder: str
    ) -> None:
        super().__init__()
        self.fault, self.at, self.rank, self.times, self.lasts = fault, at, rank, times, lasts
        self.count = Path(folder) / f"done.{os.environ.get('RANK', '0')}"
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("factor", torch.ones(1), persistent=False)
        self.factor: Tensor

    def on_step(self, step: int, max_steps: int) -> None:
        self.factor.fill_(1.0)
        if not self.at <= step < self.at + self.lasts or self.rank not in (
            -1,
            int(os.environ.get("RANK", "0")),
        ):
            return
        done = len(self.count.read_text()) if self.count.exists() else 0
        if done >= self.times * self.lasts:
            return
        self.count.write_text("x" * (done + 1))
        if self.fault == "poison":
            self.factor.fill_(float("nan"))
        elif self.fault == "spike":
            self.factor.fill_(-500.0)
        elif self.fault == "raise":
            raise RuntimeError("planted error")
        elif self.fault == "slow" and (self.count.parent / "slow").exists():
            time.sleep(0.5)
        elif self.fault == "hang":
            time.sleep(600)
        elif self.fault == "drift":
            with torch.no_grad():
                self.gain += 0.001

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + self.gain * self.factor * y_BTD


def faulty(fault: str, at: int, folder: Path, *, rank: int = -1, times: int = 1, lasts: int = 1) -> list[str]:
    """Return the overrides that configure the fault."""
    keys = {"fault": fault, "at": at, "rank": rank, "times": times, "lasts": lasts, "folder": folder}
    return [
        "residual._target_=tests.faulty.Faulty",
        "trusted_targets=[tests]",
        "check=off",
        *(f"+residual.{key}={value}" for key, value in keys.items()),
    ]
