"""mHC-lite: hyper-connections whose mixing is a blend of permutations, hence exactly doubly stochastic.

    v = gain * vec(H) / rms(vec(H));   [pre | post | res] = scale * (phi v) + bias
    u = sigmoid(pre) . H;   H <- R^T H + 2 sigmoid(post)^T y,  R = sum_r softmax(res)_r P_r;   out = sum_i norm(H_i)

P_r are all N! permutations, the identity first. No Sinkhorn is needed.

Source: "mHC-lite" (arXiv 2601.05732), section 3; FFTYYY/mhc-lite (initial values, readout, weight decay).
At init: not vanilla (a site reads and writes mostly one stream, drawn at random; the mixing is close to the identity).
Shape letters: N streams, R = N! permutations.
"""

from itertools import permutations

from torch import Tensor

from src.bounds import PositiveFloat, StreamCount
from src.residual.base import StreamSpec
from src.residual.families.manifolds import MAX_STREAM
from src.residual.families.permutation_streams import PermutationStreams
from src.source import Source


class ManifoldHyperConnectionsLite(PermutationStreams):
    """mHC-lite: (C + 1) * V + C + 3 parameters a site with C = 2 * N + N!, V = N * D; only phi has weight decay.

    Args:
        n_stream: N, 2 to 5 (4 in the source).
        scale_init: initial factor of the dynamic part (0.01 in the source).
        gate_logit: initial logit of one stream in a site's read and write, its negative for the others (1).
        res_logit: initial logit of all permutations but the identity (-8 in the source).
        eps: added to the mean square of vec(H) (the source bounds the norm of vec(H) from below by as much).
    """

    source = Source("arXiv 2601.05732, section 3", "FFTYYY/mhc-lite", "ea197752957e", changed_in="0.3.0")

    def __init__(
        self,
        spec: StreamSpec,
        *,
        n_stream: StreamCount,
        scale_init: float,
        gate_logit: float,
        res_logit: float,
        eps: PositiveFloat,
    ) -> None:
        if n_stream > MAX_STREAM:
            raise ValueError(
                f"residual.n_stream must be <= {MAX_STREAM} for mhc_lite, which has n_stream! permutations, "
                f"got {n_stream}; for more streams use residual=mhc"
            )
        orders = list(permutations(range(n_stream)))
        logits = [0.0] + [res_logit] * (len(orders) - 1)
        super().__init__(spec, orders, logits, scale_init=scale_init, gate_logit=gate_logit, eps=eps)

    def weigh(self, logit_BTL: Tensor) -> Tensor:
        return logit_BTL.softmax(-1)
