"""Base class of Deep Delta Learning: a sublayer's output is a direction along which the stream is rewritten.

    c = N_k(u);   y = F_k(c)                        u [D] read from the state X [N, D]
    beta = 2 sigmoid(a_k . c + b_k)                 step of the rewrite, between 0 and 2
    v = scale * sigmoid(W_k u + w_k)                target [N]
    d = y / sqrt(|y|^2 + eps^2);   X <- X + beta (v - X d) d^T

beta = 1 replaces what X has along d by v; beta = 2 reflects it.

Source: Zhang et al., "Deep Delta Learning" (arXiv 2601.00417), equation 2.2; yifanzhang-pro/deep-delta-learning.
Its code has the bounded target above, the text of the paper v = W_k c.
Shape letters: N value channels (d_v in the source).
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec

#: Deviation of all forms of the method.
RATES = (
    "All parameters learn at the schedule's rate and decay by nanoGPT's rule, since the muP-style rates of the paper "
    "are not in its code."
)


class Delta(NamedTuple):
    """Expanded state, and step and target of the site that read it: (), or [B, T, 1, 1] and [B, T, N]."""

    x_BTND: Tensor
    gates: tuple[Tensor, ...]


class DeltaRule(ResidualStrategy[Delta]):
    """Rewritten state; (N + 1) * (D + 1) parameters per site, weight decay on matrices; norms instead of the trunk's.

    Args:
        n_value: number N of value channels.
        beta_init: initial step beta, > 0 and < 2.
        value_scale: bound of the target.
        eps: length of an output below which its direction is shorter than 1.
    """

    may_skip: ClassVar[bool] = True
    width_readers = ("beta_SD", "value_SND")

    def __init__(self, spec: StreamSpec, n_value: int, beta_init: float, value_scale: float, eps: float) -> None:
        super().__init__()
        if not 0 < beta_init < 2:
            raise ValueError(f"residual.beta_init must be > 0 and < 2, got {beta_init}; 1 is the source's")
        self.value_scale, self.eps = value_scale, eps
        self.rows = spec.rows
        self.norms = nn.ModuleList(spec.norm() for _ in spec.rows)
        self.beta_SD = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd))
        self.beta_bias_S = nn.Parameter(torch.full((spec.n_site,), math.log(beta_init / (2 - beta_init))))
        self.value_SND = nn.Parameter(torch.zeros(spec.n_site, n_value, spec.n_embd))
        self.value_bias_SN = nn.Parameter(torch.zeros(spec.n_site, n_value))

    @abstractmethod
    def compress(self, x_BTND: Tensor, site: Site | None) -> Tensor:
        """Return what `site` (None: the final norm) reads from the state, [B, T, D]."""

    def owns_norm(self, site: Site | None) -> bool:
        return site is not None

    def reset(self) -> None:
        bound = self.beta_SD.shape[1] ** -0.5
        for weight in (self.beta_SD, self.value_SND):
            nn.init.normal_(weight, std=0.5 * bound)
        nn.init.uniform_(self.value_bias_SN, -bound, bound)

    def matrices(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters with weight decay."""
        return self.beta_SD, self.value_SND

    def param_groups(self) -> Iterator[ParamGroup]:
        matrices = self.matrices()
        yield ParamGroup(matrices, decay=True)
        yield ParamGroup(tuple(p for p in self.parameters() if all(p is not matrix for matrix in matrices)))

    def inject(self, state: Delta, site: Site, e_BTD: Tensor) -> tuple[Delta, None]:
        return state._replace(x_BTND=state.x_BTND + e_BTD.unsqueeze(2)), None

    def read(self, state: Delta, site: Site) -> tuple[Tensor, Delta]:
        k = site.index
        u_BTD = self.compress(state.x_BTND, site)
        c_BTD: Tensor = self.norms[self.rows[site.sublayer]](u_BTD)
        beta_BT = 2 * (c_BTD @ self.beta_SD[k] + self.beta_bias_S[k]).sigmoid()
        value_BTN = self.value_scale * F.linear(u_BTD, self.value_SND[k], self.value_bias_SN[k]).sigmoid()
        return c_BTD, state._replace(gates=(beta_BT[..., None, None], value_BTN))

    def write(self, state: Delta, site: Site, y_BTD: Tensor) -> Delta:
        beta_BT11, value_BTN = state.gates
        # sqrt(D) d: RMSNorm whose epsilon is eps^2 / D
        width = y_BTD.shape[-1]
        unit_BT1D = F.rms_norm(y_BTD.to(state.x_BTND.dtype), (width,), eps=self.eps**2 / width).unsqueeze(2)
        along_BTN = (state.x_BTND * unit_BT1D).sum(-1) * width**-0.5
        step_BTN1 = beta_BT11 * (value_BTN - along_BTN).unsqueeze(-1) * width**-0.5
        return Delta(torch.addcmul(state.x_BTND, step_BTN1, unit_BT1D), ())

    def end(self, state: Delta) -> Tensor:
        return self.compress(state.x_BTND, None)
