"""TDAR: every layer reads a mixture of all earlier layers' streams, biased towards the newest.

    H_0 = x0;   x = sum_j softmax_j( q_i . RMS(H_j) + b_ij ) H_j over j = 0..i,   H_{i+1} = Block_i(x)
    out = the same over all H with q_out, b_out

The block keeps its own residual; the H_j are therefore streams. RMS has no gain.

Source: a submission to MLS-Bench llm-pretrain-residual, of which there is a description but no public code.
At init: near vanilla (the newest stream's bias is 5, so it weighs 0.87 to 0.99), not equal to it.
Shape letters: Q queries (layers after the first, and the end), J sources, P pairs of query and source.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.bounds import NonNegativeFloat, PositiveFloat
from src.residual.base import ParamGroup, StreamSpec
from src.residual.families.stream_attention import StreamAndSources, StreamAttention, open_streams
from src.source import Source


class TDAR(StreamAttention):
    """Attention over streams with biases: n_layer * D + n_layer * (n_layer + 3) / 2 parameters, no weight decay.

    Args:
        spec: the trunk. The first layer has one source and therefore no query.
        query_std: standard deviation of the initial queries (0.02 in the source).
        newest_bias: initial bias of the newest stream; the others start at 0 (5.0 in the source).
        eps: added to the mean square in the key norm (1e-5 in the source).
        lr_scale: learning rate over the schedule's (the source names 0.1, which its loop overwrote).
    """

    source = Source("MLS-Bench llm-pretrain-residual, a submission")
    init_equivalent = "near vanilla"
    width_readers = ("query_QD",)

    def __init__(
        self,
        spec: StreamSpec,
        *,
        query_std: NonNegativeFloat,
        newest_bias: float,
        eps: PositiveFloat,
        lr_scale: NonNegativeFloat,
    ) -> None:
        super().__init__()
        self.mixes_before = frozenset(site.index for site in spec.sites[1:] if site.opens_block)
        n_query = len(self.mixes_before) + 1
        self.query_std, self.eps, self.lr_scale = query_std, eps, lr_scale
        self.query_QD = nn.Parameter(torch.zeros(n_query, spec.n_embd))
        n_sources = [query + 2 for query in range(n_query)]
        self.bias_P = nn.Parameter(torch.zeros(sum(n_sources)))
        with torch.no_grad():
            for bias_J in torch.split(self.bias_P, n_sources):
                bias_J[-1] = newest_bias
        pair_QJ = torch.zeros(n_query, n_query + 1, dtype=torch.long)  # where a query meets a source
        met_QJ = pair_QJ.new_ones(pair_QJ.shape, dtype=torch.bool).tril(1)
        pair_QJ[met_QJ] = torch.arange(sum(n_sources))
        self.register_buffer("pair_QJ", pair_QJ, persistent=False)

    pair_QJ: Tensor

    def reset(self) -> None:
        nn.init.normal_(self.query_QD, std=self.query_std)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.query_QD, self.bias_P), self.lr_scale)

    def begin(self, x0_BTD: Tensor) -> StreamAndSources:
        return open_streams(x0_BTD, self.query_QD, self.eps, self.bias_P[self.pair_QJ])
