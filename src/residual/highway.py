"""Highway: a gate for every token and channel carries the stream or lets the branch through.

    g = sigmoid(x A_k B_k + b_k);   x <- (1 - g) * x + g * F_k(N_k(x))    element by element

The source's D x D gate matrix would be a seventh of the model; here it has rank R.

Source: Srivastava et al., "Highway Networks" (arXiv 1505.00387), section 2.
At init (B = 0, b = -2): every branch weighs 0.12 and the stream 0.88; not vanilla.
Shape letters: R rank of the gate's matrix.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.residual.base import ParamGroup, Site, StreamSpec
from src.residual.families.single_stream import OneStream


class Highway(OneStream):
    """(2 * R + 1) * D parameters a site; weight decay on the matrices only.

    Args:
        spec: the trunk.
        rank: of the gate's matrix, between 1 and n_embd.
        bias_init: initial bias of the gate (-2 in the source, between -1 and -4).

    Raises:
        ValueError: a rank out of its bounds.
    """

    def __init__(self, spec: StreamSpec, *, rank: int, bias_init: float) -> None:
        super().__init__()
        if not 1 <= rank <= spec.n_embd:
            raise ValueError(f"residual.rank must be between 1 and n_embd={spec.n_embd}, got {rank}")
        self.down_SDR = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd, rank))
        self.up_SRD = nn.Parameter(torch.zeros(spec.n_site, rank, spec.n_embd))
        self.bias_SD = nn.Parameter(torch.full((spec.n_site, spec.n_embd), bias_init))

    def reset(self) -> None:
        nn.init.normal_(self.down_SDR, std=self.down_SDR.shape[1] ** -0.5)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.down_SDR, self.up_SRD), decay=True)
        yield ParamGroup((self.bias_SD,))

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        k = site.index
        gate_BTD = (state @ self.down_SDR[k] @ self.up_SRD[k] + self.bias_SD[k]).sigmoid()
        return torch.lerp(state, y_BTD.to(state.dtype), gate_BTD)
