"""MLP sublayer: y = W_proj GELU(W_fc x) with 4 * D hidden units; one for all visits, or one per visit.

Source: GPT-2 (Radford et al. 2019); names as in nanoGPT.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from src.models.config import GPTConfig


class MLP(nn.Module):
    """MLP shared by all visits; 8 * D^2 parameters (and 5 * D biases if the model has biases)."""

    def __init__(self, config: GPTConfig, linear: Callable[..., nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.c_fc = linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate=config.gelu_approximate)
        self.c_proj = linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, visit: int = 0) -> Tensor:
        """Map [B, T, D] -> [B, T, D], independent of `visit`."""
        y_BTD: Tensor = self.resid_dropout(self.c_proj(self.gelu(self.c_fc(x_BTD))))
        return y_BTD


class CopiedLinear(nn.Module):
    """One linear map per visit in one packed tensor: weight [copies, out, in], bias [copies, out].

    A packed tensor has a gradient in every step, zero for copies that are not visited, as DDP requires.
    """

    def __init__(self, n_copy: int, n_in: int, n_out: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_copy, n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_copy, n_out)) if bias else None

    def forward(self, x: Tensor, copy: int) -> Tensor:
        """Map [..., in] -> [..., out] with one copy."""
        return nn.functional.linear(x, self.weight[copy], None if self.bias is None else self.bias[copy])


class CopiedMLP(MLP):
    """MLP with its own weights for each visit; `n_copy` times the parameters of `MLP`."""

    def __init__(self, config: GPTConfig, n_copy: int) -> None:
        super().__init__(config, partial(CopiedLinear, n_copy))
        self.n_copy = n_copy

    def forward(self, x_BTD: Tensor, visit: int = 0) -> Tensor:
        """Map [B, T, D] -> [B, T, D] with the weights of `visit`."""
        y_BTD: Tensor = self.resid_dropout(self.c_proj(self.gelu(self.c_fc(x_BTD, visit)), visit))
        return y_BTD
