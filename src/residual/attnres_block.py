"""Attention residuals (block): sublayers attend over sums of finished blocks and the running sum of their own.

    b_0 = x0,  b_n = the sum of the outputs y of the n-th block of P sublayers,  p = the running sum
    h_k = sum_i softmax_i( w_k . RMSNorm_k(s_i) ) s_i
        over s = b_0..b_{n-1}      for the first sublayer of block n
        over s = b_0..b_{n-1}, p   for its others; at the end over all blocks, the unfinished one too

Block here means P consecutive sublayers, not a layer of the trunk. An empty sum is no source.

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), equations 5-6, figure 2.
At init (w = 0): the uniform mean of the sources; not vanilla.
Shape letters: Q queries (sites 1..S-1, and the end); of `mixing`, K readers and J sources.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.kernels.depth_attention.reference import (
    Sources,
    append,
    attend,
    attend_and_add,
    logits,
    open_native,
    scores,
)
from src.residual.base import ResidualStrategy, Site, StreamSpec


class BlockSources(NamedTuple):
    """The finished blocks; of the one under way, the running sum and an output that is still to be added to it."""

    blocks: Sources
    partial_BTD: tuple[Tensor, ...]


class BlockAttentionResiduals(ResidualStrategy[BlockSources]):
    """2 * D parameters a query (the query and its key norm's gain), S queries; lr x 1, no weight decay.

    Args:
        spec: the trunk.
        n_block: blocks, of ceil(S / n_block) sublayers (about 8 in the paper).
        eps: of the key norm.
    """

    def __init__(self, spec: StreamSpec, *, n_block: int, eps: float) -> None:
        super().__init__()
        if n_block < 1:
            raise ValueError(f"residual.n_block must be at least 1, got {n_block}; the paper uses 8")
        self.block_sites = -(-spec.n_site // n_block)
        self.eps = eps
        self.query_QD = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd))
        self.key_gain_QD = nn.Parameter(torch.ones(spec.n_site, spec.n_embd))

    def begin(self, x0_BTD: Tensor) -> BlockSources:
        return BlockSources(open_native(x0_BTD, self.query_QD * self.key_gain_QD, self.eps), ())

    def read(self, state: BlockSources, site: Site) -> tuple[Tensor, BlockSources]:
        return self._attend(state, site.index - 1)

    def write(self, state: BlockSources, site: Site, y_BTD: Tensor) -> BlockSources:
        blocks, partial = state.blocks, _summed(state.partial_BTD)
        partial = (*partial, y_BTD) if partial else (y_BTD.to(blocks.key_QD.dtype),)
        if (site.index + 1) % self.block_sites:
            return BlockSources(blocks, partial)
        (sum_BTD,) = _summed(partial)
        return BlockSources(append(blocks, sum_BTD, site.index, self.eps, self.block_sites), ())

    def end(self, state: BlockSources) -> Tensor:
        return self._attend(state, len(self.query_QD) - 1)[0]

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor:
        state = self.begin(x0_BTD)
        weight_KJ = x0_BTD.new_zeros(len(y_BTD) + 1, len(y_BTD) + 1)
        weight_KJ[0, 0] = 1.0
        for k, (site, output_BTD) in enumerate(zip(sites, y_BTD, strict=True), start=1):
            state = self.write(state, site, output_BTD)
            logit_BTJ = logits(state.blocks, k - 1)
            for p_BTD in _summed(state.partial_BTD):
                own_BT1 = scores(p_BTD, state.blocks.key_QD[k - 1 : k], self.eps)
                logit_BTJ = torch.cat((logit_BTJ, own_BT1), dim=-1)
            share_J = logit_BTJ.softmax(-1).mean((0, 1))
            block = torch.arange(k) // self.block_sites
            weight_KJ[k, : k + 1] = torch.cat((share_J[:1], share_J[1 + block]))
        return weight_KJ

    def _attend(self, state: BlockSources, query: int) -> tuple[Tensor, BlockSources]:
        if not state.partial_BTD:
            return attend(state.blocks, query), state
        x_BTD, p_BTD = attend_and_add(state.blocks, query, self.eps, *state.partial_BTD)
        return x_BTD, state._replace(partial_BTD=(p_BTD,))


def _summed(partial_BTD: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (partial_BTD[0] + partial_BTD[1],) if len(partial_BTD) == 2 else partial_BTD
