"""What flows through a trunk: its record, and a strategy's part inside attention."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.residual.base import QKV, ResidualStrategy, Site


class Trace(NamedTuple):
    """What flowed through one forward: the embedding, each site's input and output, the strategy's end."""

    x0_BTD: Tensor
    read: tuple[Tensor | QKV, ...]
    y_BTD: tuple[Tensor, ...]
    end_BTD: Tensor


class Tap:
    """Carries the state through attention for a strategy that taps queries, keys and values."""

    def __init__(self, residual: ResidualStrategy[Any], site: Site, state: object) -> None:
        self.residual, self.site, self.state = residual, site, state

    def __call__(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(q_BHTK.device.type, enabled=False):
            *qkv, self.state = self.residual.tap_qkv(self.state, self.site, q_BHTK, k_BHTK, v_BHTK)
        q_BHTK, k_BHTK, v_BHTK = qkv
        return q_BHTK, k_BHTK, v_BHTK
