"""What flows through a trunk: its record, and a strategy's part inside attention."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.residual.base import QKV, ResidualStrategy, Site


class Addition(NamedTuple):
    """What an embedding gave the stream before a site; a site whose stream did not take it got it, and wrote it."""

    before: int  # site
    taken: bool
    e_BTD: Tensor


class Trace(NamedTuple):
    """What flowed through one forward: the embedding, each site's input and output, the strategy's end."""

    x0_BTD: Tensor
    additions: tuple[Addition, ...]
    read: tuple[Tensor | QKV, ...]
    y_BTD: tuple[Tensor, ...]
    end_BTD: Tensor


class Seen:
    """What a forward writes down on its way."""

    x0_BTD: Tensor

    def __init__(self) -> None:
        self.e_BTD: Tensor | None = None  # the addition before the coming site
        self._additions: list[Addition] = []
        self._read: list[Tensor | QKV] = []
        self._y_BTD: list[Tensor] = []

    def site(self, x: Tensor | QKV, y_BTD: Tensor, *, taken: bool) -> None:
        """A site's input and output, and whether the stream took the addition before it."""
        if self.e_BTD is not None:
            self._additions.append(Addition(len(self._read), taken, self.e_BTD))
            self.e_BTD = None
        self._read.append(x)
        self._y_BTD.append(y_BTD)

    def trace(self, end_BTD: Tensor) -> Trace:
        """All of it."""
        return Trace(self.x0_BTD, tuple(self._additions), tuple(self._read), tuple(self._y_BTD), end_BTD)


class Tap:
    """Carries the state through attention for a strategy that taps queries, keys and values."""

    def __init__(self, residual: ResidualStrategy[Any], site: Site, state: object) -> None:
        self.residual, self.site, self.state = residual, site, state

    def __call__(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(q_BHTK.device.type, enabled=False):
            *qkv, self.state = self.residual.tap_qkv(self.state, self.site, q_BHTK, k_BHTK, v_BHTK)
        q_BHTK, k_BHTK, v_BHTK = qkv
        return q_BHTK, k_BHTK, v_BHTK
