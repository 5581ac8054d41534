"""Contract of an MLP sublayer: y = W_proj h(x), with hidden units h that a method defines from projections of x.

A method is one file in this folder and one YAML in `conf/mlp`. Its constructor takes `(spec, *, <the keys of the YAML>)`,
builds its projections with `spec.linear`, and defines `hidden`. Projections into the hidden units are `c_fc` and, where
there is a gate, `c_gate`; the one back to the stream is `c_proj`, whose initial values are those of an output.

All visits to a layer share the weights, or each has its own (`spec.n_copy`).

Shape letters: B batch, T tokens, D n_embd, F hidden units.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from src.source import Source


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


@dataclass(frozen=True)
class MLPSpec:
    """Description of the trunk that an MLP is built for.

    Args:
        n_embd, bias, dropout, gelu_approximate: keys of `GPTConfig`.
        n_copy: number of copies of the weights, one per visit (1: one for all visits).
    """

    n_embd: int
    bias: bool
    dropout: float
    gelu_approximate: str
    n_copy: int = 1

    def linear(self, n_in: int, n_out: int) -> nn.Module:
        """Build one projection, with a copy for each visit if there are several."""
        if self.n_copy == 1:
            return nn.Linear(n_in, n_out, bias=self.bias)
        return CopiedLinear(self.n_copy, n_in, n_out, bias=self.bias)


class MLP(nn.Module, ABC):
    """Base class of MLP sublayers; the module docstring explains the contract.

    Args:
        spec: the trunk.
        n_hidden: hidden units F.
    """

    #: Publication and code of the method, and deviations.
    source: ClassVar[Source]

    def __init__(self, spec: MLPSpec, n_hidden: int) -> None:
        super().__init__()
        self.n_copy = spec.n_copy
        self.c_fc = spec.linear(spec.n_embd, n_hidden)
        self.c_proj = spec.linear(n_hidden, spec.n_embd)
        self.resid_dropout = nn.Dropout(spec.dropout)

    @abstractmethod
    def hidden(self, x_BTD: Tensor, visit: int) -> Tensor:
        """Return the hidden units [B, T, F] of the input [B, T, D]."""

    def project(self, linear: nn.Module, x: Tensor, visit: int) -> Tensor:
        """Apply a projection of this MLP, with the copy of `visit` if it has several."""
        y: Tensor = linear(x) if self.n_copy == 1 else linear(x, visit)
        return y

    def forward(self, x_BTD: Tensor, visit: int = 0) -> Tensor:
        """Map [B, T, D] -> [B, T, D] with the weights of `visit`."""
        y_BTD: Tensor = self.resid_dropout(self.project(self.c_proj, self.hidden(x_BTD, visit), visit))
        return y_BTD
