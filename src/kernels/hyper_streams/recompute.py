"""From what a backward makes a site's streams again, where kernels serve: a segment's first streams, and what came since.

    H_i = sum_r share_ri start_r + sum_j share_ji y_j        the shares of site k + 1: those of k, with B, times A_r

A site that kept its streams would keep N times what its sublayer does. So only one in `SEGMENT` of them is kept
(the embedding, which is the first, is kept anyway). The others are sums of these and of the outputs y since, which
the sublayers' gradients need as well; what is kept of a token are its N shares in each. They differ from the streams
of the forward by rounding.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174), section 4; that streams are
weighted sums is this repository's use of it.
Shape letters: N streams, R rows of shares: those of the start, then one of each output.
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: Sites of a segment at most, by the streams' type. A site's backward reads half as many outputs, 2 bytes an element,
#: on top of the start; a start is N streams kept. With these, 48 sites keep 2 starts of float32, or 4 of bfloat16.
SEGMENT = {torch.float32: 16, torch.float64: 16, torch.bfloat16: 10}


class Replay(NamedTuple):
    """The streams a segment starts with, [B, T, N, D] or the one [B, T, D] they are copies of, and what came since.

    `outputs` [B, T, D] of the sites since, and the shares [B, T, R, N] of the streams in start and outputs, as the
    last of those sites mixed them; None: no site has.
    """

    start: Tensor
    outputs: tuple[Tensor, ...] = ()
    shares: Tensor | None = None

    @property
    def n_row(self) -> int:
        """R."""
        if self.shares is not None:
            return self.shares.shape[2]
        return 1 if self.start.dim() == 3 else self.start.shape[2]


def replay_of(h_BTND: Tensor, y_BTD: Tensor, replay: Replay | None, most: int) -> Replay:
    """What makes streams `h` with `y` written to them; it opens a segment where `most` is full, or of another type."""
    y_BTD = y_BTD.detach()
    if replay is None or len(replay.outputs) == most or _other_type(replay, y_BTD):
        return Replay(h_BTND.detach(), (y_BTD,))
    return replay._replace(outputs=(*replay.outputs, y_BTD))


def _other_type(replay: Replay, y_BTD: Tensor) -> bool:
    return len(replay.outputs) > 0 and replay.outputs[0].dtype != y_BTD.dtype
