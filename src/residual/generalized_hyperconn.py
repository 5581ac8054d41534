"""Generalized hyper-connections (dynamic GHC, of Virtual Width Networks): a stream that is wider than the sublayers.

    H = W_expand x0, cut into N segments of width F = D / M
    [A_m | A_r | B^T] = static + scale * tanh(RMSNorm(H) W / sqrt(F))
    u = concat(A_m^T H);   H <- A_r^T H + B^T (y cut into M segments);   out = W_reduce G(H)

N / M is the virtual width. G normalizes every D channels if N / M is an integer; the paper leaves it out at 1.5. With
M = 1 the segments are hyper-connections' streams, with N = M they are frac-connections' fractions.

Source: ByteDance Seed, "Virtual Width Networks" (arXiv 2511.11238), equations 1-12, algorithms 1-3.
At init: vanilla without G (N / M not an integer, as shipped); with G near vanilla.
Shape letters: N segments, M of them as wide as a sublayer, F = D / M, X = N * F, C = N + 2 * M columns of W.
"""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import PositiveFloat, PositiveInt
from src.kernels import hyper_streams
from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec
from src.residual.families.hyper_connections import DYNAMIC_DECAY
from src.source import Source

GROUP_EPS = 1e-5  # of G; the paper does not state it


class Segments(NamedTuple):
    """Segments [B, T, N, F], and the weights [B, T, N, M] with which the output of the visited site is written."""

    h_BTNF: Tensor
    b_BTNM: Tensor


class GeneralizedHyperConnections(ResidualStrategy[Segments]):
    """GHC: 2 * N * C + F * (C + 1) parameters a site, 2 * D * X around; W, W_expand and W_reduce have weight decay.

    Args:
        n_segment: N, at least `n_frac` (3 in the paper's 1.5-fold models, 64 at most).
        n_frac: M, a divisor of n_embd (2 in the paper's 1.5-fold models, 8 at most).
        eps: added to the mean square of a segment.
    """

    source = Source(
        "arXiv 2511.11238, equations 1-12, algorithms 1-3",
        deviations=(
            "The embedding table stays as wide as the trunk and a linear map widens it, which the paper offers for large "
            "widths: the strategy does not own the table.",
            "The paper gives no initial values for the two linear maps: W_expand copies segments in the order in which "
            "outputs are written, and W_reduce averages the copies, so that the model starts as vanilla.",
            DYNAMIC_DECAY,
            "Multi-token prediction, with which the paper combines the method, is left out.",
        ),
    )
    may_skip: ClassVar[bool] = True
    init_equivalent = "vanilla"
    width_readers = ("w_SFC", "expand_XD", "reduce_DX")

    def __init__(self, spec: StreamSpec, *, n_segment: PositiveInt, n_frac: PositiveInt, eps: PositiveFloat) -> None:
        super().__init__()
        if n_frac > n_segment or spec.n_embd % n_frac:
            raise ValueError(
                f"residual.n_frac must be <= residual.n_segment={n_segment} and divide model.n_embd={spec.n_embd}, "
                f"got {n_frac}"
            )
        self.n_segment, self.n_frac, self.eps = n_segment, n_frac, eps
        width, n_column = spec.n_embd // n_frac, n_segment + 2 * n_frac
        # Which of a sublayer's segments each segment of the stream is a copy of, at first.
        copies_NM = F.one_hot(torch.arange(n_segment) % n_frac, n_frac).float()
        read_NM, carry_NN = torch.eye(n_segment, n_frac), torch.eye(n_segment)
        static_NC = torch.cat((read_NM, carry_NN, copies_NM), dim=1)
        self.static_SNC = nn.Parameter(static_NC.repeat(spec.n_site, 1, 1))
        self.scale_SNC = nn.Parameter(torch.ones_like(self.static_SNC))
        self.w_SFC = nn.Parameter(torch.zeros(spec.n_site, width, n_column))
        self.gain_SF = nn.Parameter(torch.ones(spec.n_site, width))
        self.expand_XD = nn.Parameter(torch.kron(copies_NM, torch.eye(width)))
        average_MN = (copies_NM / copies_NM.sum(0)).t().contiguous()
        self.reduce_DX = nn.Parameter(torch.kron(average_MN, torch.eye(width)))
        self.group_norm = n_segment > n_frac and n_segment % n_frac == 0
        if self.group_norm:
            self.group_gain_X = nn.Parameter(torch.ones(n_segment * width))
            self.group_bias_X = nn.Parameter(torch.zeros(n_segment * width))

    def param_groups(self) -> Iterator[ParamGroup]:
        decayed = (self.w_SFC, self.expand_XD, self.reduce_DX)
        yield ParamGroup(decayed, decay=True)
        yield ParamGroup(tuple(p for p in self.parameters() if all(p is not other for other in decayed)))

    def begin(self, x0_BTD: Tensor) -> Segments:
        B, T, _ = x0_BTD.shape
        h_BTNF = F.linear(x0_BTD, self.expand_XD).view(B, T, self.n_segment, -1)
        return Segments(h_BTNF, self.static_SNC[0, :, -self.n_frac :].expand(B, T, -1, -1))

    def read(self, state: Segments, site: Site) -> tuple[Tensor, Segments]:
        m = self.n_frac
        weight_BTNC = self._weigh(state, site)
        mixed_BTNF = hyper_streams.blend(weight_BTNC[..., :-m], state.h_BTNF)
        return mixed_BTNF[:, :, :m].flatten(2), Segments(mixed_BTNF[:, :, m:], weight_BTNC[..., -m:])

    def stream_map(self, state: Segments, site: Site) -> Tensor:
        return self._weigh(state, site)[..., self.n_frac : -self.n_frac].transpose(-1, -2)

    def _weigh(self, state: Segments, site: Site) -> Tensor:
        """Return the weights [A_m | A_r | B^T] of a site for every token, [B, T, N, C]."""
        k, h_BTNF = site.index, state.h_BTNF
        normed_BTNF = F.rms_norm(h_BTNF, self.gain_SF[k].shape, self.gain_SF[k], self.eps)
        dynamic_BTNC = (normed_BTNF @ self.w_SFC[k] * h_BTNF.shape[-1] ** -0.5).tanh()
        return torch.addcmul(self.static_SNC[k], self.scale_SNC[k], dynamic_BTNC)

    def write(self, state: Segments, site: Site, y_BTD: Tensor) -> Segments:
        y_BTMF = y_BTD.to(state.h_BTNF.dtype).view(*y_BTD.shape[:2], self.n_frac, -1)
        return state._replace(h_BTNF=state.h_BTNF + hyper_streams.blend(state.b_BTNM.transpose(-1, -2), y_BTMF))

    def end(self, state: Segments) -> Tensor:
        h_BTX = state.h_BTNF.flatten(2)
        if self.group_norm:
            groups_BTGD = h_BTX.view(*h_BTX.shape[:2], -1, len(self.reduce_DX))
            normed_BTGD = F.layer_norm(groups_BTGD, groups_BTGD.shape[-1:], eps=GROUP_EPS)
            h_BTX = torch.addcmul(self.group_bias_X, normed_BTGD.flatten(2), self.group_gain_X)
        return F.linear(h_BTX, self.reduce_DX)
