"""Learned stream scaling (LSS): every stream starts as the embedding times a gain of its own.

    H_s = x0 * gain[s]    elementwise, before the first site

With equal starts, streams of hyper-connections tend to remain alike; different gains break the symmetry. A branch
strategy, made for those of several streams: `residual=[stream_scaling,mhc_lite]`, or `mhc`, `hyperconn`, ... On a
single stream it is one gain on the embedding.

Source: Alimaskina et al., "Analyzing Stream Collapse in Hyper-Connections" (arXiv 2606.03483);
brain-lab-research/hc-stream-collapse, hyper_conn/mhc_lite.py.
At init (gains 0.6 and noise): not vanilla.
Shape letters: N streams of the strategy that it composes with.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.residual.base import ParamGroup, StreamSpec
from src.residual.families.branch import BranchStrategy
from src.source import Source


class StreamScaling(BranchStrategy):
    """One gain per stream and channel: N * D parameters, lr x 1, with weight decay.

    Args:
        gain_init: initial gain, to which uniform noise is added (0.6 in the source).
    """

    source = Source(
        "arXiv 2606.03483",
        "brain-lab-research/hc-stream-collapse",
        "15d96c475135",
        deviations=(
            "Alone, on one stream, it is a gain on the embedding, the same equation for N = 1; the source then has none.",
        ),
    )

    def __init__(self, spec: StreamSpec, *, gain_init: float) -> None:
        super().__init__()
        self.gain_init = gain_init
        self.gain_ND = nn.Parameter(torch.full((spec.n_stream, spec.n_embd), gain_init))

    def reset(self) -> None:
        with torch.no_grad():
            nn.init.xavier_uniform_(self.gain_ND).add_(self.gain_init)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.gain_ND,), decay=True)

    def start(self, x0_BTD: Tensor) -> Tensor:
        if len(self.gain_ND) == 1:
            return x0_BTD * self.gain_ND[0]
        return x0_BTD.unsqueeze(2) * self.gain_ND
