"""From what a backward makes a site's streams again, where kernels serve: a segment's first streams, and what came since.

    H <- the segment's first streams;   for every site since, in order:   H <- A_r^T H + B y

A site that kept its streams would keep N times what its sublayer does. So only one in `SEGMENT` of them is kept
(the embedding, which is the first, is kept anyway), and the others are made again in registers, from weights
that are few and outputs y that the sublayers' gradients need as well.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174), section 4.
Shape letters: N streams, C = N + 2 columns of [A | B].
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: Sites of a segment, by the streams' type. A site's backward reads half as many outputs, 2 bytes an element, on
#: top of the start; a start is N streams kept. With these, 48 sites keep 2 starts of float32, or 4 of bfloat16.
SEGMENT = {torch.float32: 16, torch.float64: 16, torch.bfloat16: 10}


class Replay(NamedTuple):
    """The streams a segment starts with, [B, T, N, D] or the one they are copies of, and the sites since.

    Of every site its weights [A | B], [B, T, N, C], and its output [B, T, D] once it is written. Streams that
    their site has mixed already start with its B alone, [B, T, N].
    """

    start: Tensor
    weights: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()

    def visited(self, weights: Tensor) -> "Replay":
        """With one site more, whose output is still to come."""
        return self._replace(weights=(*self.weights, weights))


def replay_of(h_BTND: Tensor, b_BTN: Tensor, y_BTD: Tensor, replay: Replay | None) -> Replay:
    """What makes the streams h + b y; it opens a segment where one is full, or has outputs of another type."""
    y_BTD = y_BTD.detach()
    if replay is None or len(replay.outputs) == SEGMENT[h_BTND.dtype] or _other_type(replay, y_BTD):
        return Replay(h_BTND.detach(), (b_BTN.detach(),), (y_BTD,))
    return replay._replace(outputs=(*replay.outputs, y_BTD))


def _other_type(replay: Replay, y_BTD: Tensor) -> bool:
    return len(replay.outputs) > 0 and replay.outputs[0].dtype != y_BTD.dtype
