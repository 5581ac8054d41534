"""Attention residuals (block): sublayers attend over sums of finished groups and the running sum of their own.

    b_0 = x0,  b_n = the sum of the outputs y of the n-th group of P sublayers,  p = the running sum
    h_k = sum_i softmax_i( w_k . RMSNorm_k(s_i) ) s_i
        over s = b_0..b_{n-1}      for the first sublayer of group n
        over s = b_0..b_{n-1}, p   for its others; at the end over all groups, the unfinished one too

The paper calls a group of P consecutive sublayers a block; its size is fixed and the last may be smaller, so that there
may be fewer than `n_block` (12 sublayers in 8 groups are 6 of 2; the log states it). An empty sum is not a source. The
paper's figure 2 is the same where its list of blocks starts empty: there the running sum of a finished group takes part
before it is moved to that list.

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), section 3.2, equations 5-6, figure 2.
At init (w = 0): the uniform mean of the sources; not vanilla.
Shape letters: Q queries (sites 1..S-1, and the end); of `mixing`, K readers and J sources.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.kernels import depth_attention
from src.kernels.depth_attention import Sources
from src.residual.base import ResidualStrategy, Site, StreamSpec
from src.residual.families.groups import describe_groups, group_size
from src.source import Source


class GroupSources(NamedTuple):
    """Sums of the finished groups; the running sum of the current one, and an output still to be added to it."""

    groups: Sources
    partial_BTD: tuple[Tensor, ...]


class BlockAttentionResiduals(ResidualStrategy[GroupSources]):
    """Attention over groups of outputs: 2 * D parameters a query (query, key gain), S queries; no weight decay.

    Args:
        n_block: largest number of groups, of ceil(S / n_block) sublayers each (about 8 in the paper).
        eps: added to the mean square in the key norm.

    Raises:
        ValueError: `n_block` is below 1.
    """

    source = Source("arXiv 2603.15031, section 3.2, equations 5-6")
    width_readers = ("query_QD",)

    def __init__(self, spec: StreamSpec, *, n_block: int, eps: PositiveFloat) -> None:
        super().__init__()
        if n_block < 1:
            raise ValueError(f"residual.n_block must be >= 1, got {n_block}; the paper uses 8")
        self.group_sites = group_size(spec.n_site, n_block)
        self.eps = eps
        self.query_QD = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd))
        self.key_gain_QD = nn.Parameter(torch.ones(spec.n_site, spec.n_embd))

    def describe(self) -> str:
        return describe_groups(len(self.query_QD), self.group_sites, "sublayer")

    def begin(self, x0_BTD: Tensor) -> GroupSources:
        key_QD, between = self.query_QD * self.key_gain_QD, self.group_sites
        return GroupSources(depth_attention.open(x0_BTD, key_QD, self.eps, queries_per_source=between), ())

    def read(self, state: GroupSources, site: Site) -> tuple[Tensor, GroupSources]:
        return self._attend(state, site.index - 1)

    def write(self, state: GroupSources, site: Site, y_BTD: Tensor) -> GroupSources:
        groups, partial = state.groups, _add_up(state.partial_BTD)
        partial = (*partial, y_BTD) if partial else (y_BTD.to(groups.key_QD.dtype),)
        if (site.index + 1) % self.group_sites:
            return GroupSources(groups, partial)
        (sum_BTD,) = _add_up(partial)
        return GroupSources(depth_attention.append(groups, sum_BTD, site.index), ())

    def end(self, state: GroupSources) -> Tensor:
        return self._attend(state, len(self.query_QD) - 1)[0]

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor:
        state = self.begin(x0_BTD)
        weight_KJ = x0_BTD.new_zeros(len(y_BTD) + 1, len(y_BTD) + 1)
        weight_KJ[0, 0] = 1.0
        for k, (site, output_BTD) in enumerate(zip(sites, y_BTD, strict=True), start=1):
            state = self.write(state, site, output_BTD)
            weight_J = depth_attention.average_weights(state.groups, k - 1, *_add_up(state.partial_BTD))
            group = torch.arange(k) // self.group_sites
            weight_KJ[k, : k + 1] = torch.cat((weight_J[:1], weight_J[1 + group]))
        return weight_KJ

    def _attend(self, state: GroupSources, query: int) -> tuple[Tensor, GroupSources]:
        """Return one query's mixture, and the state with all outputs of the current group added up."""
        if not state.partial_BTD:
            return depth_attention.attend(state.groups, query), state
        x_BTD, p_BTD = depth_attention.attend_with_sum(state.groups, query, *state.partial_BTD)
        return x_BTD, state._replace(partial_BTD=(p_BTD,))


def _add_up(partial_BTD: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the running sum with the output that was still to be added, or nothing if there is none."""
    return (partial_BTD[0] + partial_BTD[1],) if len(partial_BTD) == 2 else partial_BTD
