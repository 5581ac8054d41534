"""Attention over streams: every few layers the stream becomes a mixture of its own earlier states.

    S_0 = x0,  S_j = the stream after the j-th group of layers
    x <- sum_j softmax_j( q_g . RMS(S_j) ) S_j    before every group but the first, and at the end
    x <- x + y                                    after every sublayer

These are not the attention residuals of the paper (`attnres`, `attnres_block`): the sources are streams, which already
contain each other, not the outputs between them. RMS has no gain.

Source: MLS-Bench llm-pretrain-residual, baseline `full_attnres`; Imbernoulli/innovation_proior @ 9e202f7,
trajectories/llm-pretrain-residual/04-full_attnres-answer.md.
At init (q = 0): the uniform mean of the streams; not vanilla.
Shape letters: Q queries (groups after the first, and the end).
"""

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.residual.base import StreamSpec
from src.residual.families.groups import describe_groups
from src.residual.families.stream_attention import StreamAndSources, StreamAttention, open_streams
from src.source import Source


class StreamBlockAttention(StreamAttention):
    """Attention over streams: D parameters a query, ceil(n_layer / group_layers) queries; no weight decay.

    Args:
        group_layers: number of layers between two mixtures (4 in the source).
        eps: added to the mean square in the key norm (that of float32 in the source, 1.2e-7).

    Raises:
        ValueError: `group_layers` is below 1.
    """

    source = Source(
        "MLS-Bench llm-pretrain-residual, baseline full_attnres",
        "Imbernoulli/innovation_proior",
        "9e202f78df21",
        deviations=(
            "Queries have the schedule's rate: the source sets a tenth of it, which its training loop overwrites.",
            "Layers that fill no whole group are a smaller last group, where the source leaves them out of the model.",
        ),
    )
    width_readers = ("query_QD",)

    def __init__(self, spec: StreamSpec, *, group_layers: int, eps: PositiveFloat) -> None:
        super().__init__()
        if group_layers < 1:
            raise ValueError(f"residual.group_layers must be >= 1, got {group_layers}; the source uses 4")
        self.n_layers, self.group_layers = spec.n_block, group_layers
        opening = [site.index for site in spec.sites if site.opens_block]
        self.mixes_before = frozenset(opening[group_layers::group_layers])
        self.eps = eps
        self.query_QD = nn.Parameter(torch.zeros(len(self.mixes_before) + 1, spec.n_embd))

    def describe(self) -> str:
        return describe_groups(self.n_layers, self.group_layers, "layer")

    def begin(self, x0_BTD: Tensor) -> StreamAndSources:
        return open_streams(x0_BTD, self.query_QD, self.eps)
