"""Block attention residuals: sublayers are summed in blocks, and attention is over the blocks.

    b_0 = x0,  b_n = sum of the outputs of block n,  p = running sum of the block being written
    h_k = sum_i softmax_i( w_k . RMSNorm_k(s_i) ) s_i     s = [b_0 .. b_{n-1}] and, unless it is empty, p

The end attends over all blocks, an unfinished one included. With a block of one sublayer this is `attnres`.

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), equations 5-6; about 8 blocks (GPT-2 Medium: 6
sublayers each).
At init (w = 0): the uniform mean of the blocks; not vanilla.
Shape letters: Q queries (sites 1..S-1, and the end), J sources.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.residual.attnres import Sources, attend, emitted
from src.residual.base import ResidualStrategy, Site, StreamSpec


class Blocks(NamedTuple):
    """Finished blocks with their logits, the running sum, and how many outputs it holds."""

    done: Sources
    partial_BTD: Tensor | None
    n_in_block: int


class BlockAttentionResiduals(ResidualStrategy[Blocks]):
    """2 * D parameters a query, S queries; lr x 1, no weight decay.

    Args:
        spec: the trunk.
        sublayers_per_block: outputs summed into a source.
        eps: of the key norm.
    """

    def __init__(self, spec: StreamSpec, *, sublayers_per_block: int, eps: float) -> None:
        super().__init__()
        if sublayers_per_block < 1:
            raise ValueError(f"residual.sublayers_per_block must be at least 1, got {sublayers_per_block}")
        self.sublayers_per_block, self.eps = sublayers_per_block, eps
        self.query_QD = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd))
        self.key_gain_QD = nn.Parameter(torch.ones(spec.n_site, spec.n_embd))

    def begin(self, x0_BTD: Tensor) -> Blocks:
        return Blocks(self._emit(Sources((), ()), x0_BTD), None, 0)

    def read(self, state: Blocks, site: Site) -> tuple[Tensor, Blocks]:
        if site.index == 0:
            return state.done.v_BTD[0], state
        return self._attend(state, site.index - 1), state

    def write(self, state: Blocks, site: Site, y_BTD: Tensor) -> Blocks:
        wide_BTD = y_BTD.to(self.query_QD.dtype)
        partial_BTD = wide_BTD if state.partial_BTD is None else state.partial_BTD + wide_BTD
        if state.n_in_block + 1 == self.sublayers_per_block:
            return Blocks(self._emit(state.done, partial_BTD), None, 0)
        return Blocks(state.done, partial_BTD, state.n_in_block + 1)

    def end(self, state: Blocks) -> Tensor:
        return self._attend(state, len(self.query_QD) - 1)

    def _attend(self, state: Blocks, query: int) -> Tensor:
        sources = state.done
        if state.partial_BTD is not None:
            rows = slice(query, query + 1)
            one = emitted(state.partial_BTD, self.query_QD[rows], self.key_gain_QD[rows], self.eps)
            logits = (*(logits[..., rows] for logits in sources.logits_BTQ), one)
            return attend(Sources((*sources.v_BTD, state.partial_BTD), logits), 0)
        return attend(sources, query)

    def _emit(self, sources: Sources, v_BTD: Tensor) -> Sources:
        logits_BTQ = emitted(v_BTD, self.query_QD, self.key_gain_QD, self.eps)
        return Sources((*sources.v_BTD, v_BTD), (*sources.logits_BTQ, logits_BTQ))
