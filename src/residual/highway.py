"""Highway: a gate per token and channel interpolates between stream and branch.

    g = sigmoid(x A_k B_k + b_k);   x <- (1 - g) * x + g * F_k(N_k(x))    elementwise

The gate's matrix has rank R here; D x D, as in the source, would be a seventh of the model.

Source: Srivastava et al., "Highway Networks" (arXiv 1505.00387), equation 3 and section 2.2.
At init (B = 0, b = -2): not vanilla; the branch has weight 0.12, the stream 0.88.
Shape letters: R rank of the gate's matrix.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from src.residual.base import ParamGroup, Site, StreamSpec
from src.residual.families.single_stream import SingleStream
from src.source import Source


class Highway(SingleStream):
    """Gated stream; (2 * R + 1) * D parameters per site, weight decay on the matrices only.

    Args:
        rank: rank R of the gate's matrix, in [1, n_embd].
        bias_init: initial bias of the gate (the source suggests -1, -2, -3 for 10, 20, 30 layers).
    """

    source: ClassVar[Source] = Source(
        "arXiv 1505.00387, equation 3 and section 2.2",
        deviations=(
            "The gate's matrix has rank R, since D x D would be a seventh of the model, and starts at zero, where the "
            "paper names no initial values.",
            "The branch reads the normed stream, since it is a sublayer of the trunk; the gate reads the stream.",
        ),
    )
    width_readers = ("down_SDR",)

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
