"""KromHC: hyper-connections whose mixing is a Kronecker product of 2 x 2 doubly stochastic matrices.

    v = gain * vec(H) / rms(vec(H));   [pre | post | res] = scale * (phi v) + bias
    p_k = softmax(res_k)_0;   R = U_1 x ... x U_K,  U_k = [[p_k, 1 - p_k], [1 - p_k, p_k]]
    u = sigmoid(pre) . H;   H <- R^T H + 2 sigmoid(post)^T y;   out = sum_i norm(H_i)

R is a blend of N permutations, those that swap the halves of some of K = log2 N binary digits of the streams' numbers:
P_r sends stream i to i XOR r, with weight prod_k (p_k or 1 - p_k, by digit k of r).

Source: Zhou et al., "KromHC" (arXiv 2601.21579); wz1119/KromHC, `hyper_conn/Kromhc.py`.
At init: not vanilla (a site reads and writes mostly one stream, drawn at random; the mixing is close to the identity).
Shape letters: N streams, K = log2 N factors, L = 2 * K logits.
"""

from torch import Tensor

from src.bounds import PositiveFloat, StreamCount
from src.residual.base import StreamSpec
from src.residual.families.permutation_streams import PermutationStreams
from src.source import Source


class KroneckerHyperConnections(PermutationStreams):
    """KromHC: (C + 1) * V + C + 3 parameters a site with C = 2 * N + 2 * K, V = N * D; only phi has weight decay.

    Args:
        n_stream: N, a power of 2 (4 in the source).
        scale_init: initial factor of the dynamic part (0.01 in the source).
        gate_logit: initial logit of one stream in a site's read and write, its negative for the others (1).
        res_logit: initial logit of the swap in every factor, 0 for the identity (-8 in the source).
        eps: added to the mean square of vec(H) (the source bounds the norm of vec(H) from below by as much).
    """

    source = Source(
        "arXiv 2601.21579",
        "wz1119/KromHC",
        "7b15834f9073",
        deviations=(
            "The repository has no model: the norm of each stream before their sum and the weight decay of phi are those "
            "of FFTYYY/mhc-lite, which it builds on.",
        ),
    )

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
        n_factor = n_stream.bit_length() - 1
        if n_stream != 2**n_factor:
            raise ValueError(
                f"residual.n_stream must be a power of 2 for kromhc, got {n_stream}; "
                "for any other number of streams use residual=mhc"
            )
        orders = [tuple(i ^ r for i in range(n_stream)) for r in range(n_stream)]
        logits = [0.0, res_logit] * n_factor
        super().__init__(spec, orders, logits, scale_init=scale_init, gate_logit=gate_logit, eps=eps)
        self.n_factor = n_factor

    def weigh(self, logit_BTL: Tensor) -> Tensor:
        factors_BTK2 = logit_BTL.reshape(*logit_BTL.shape[:2], self.n_factor, 2).softmax(-1)
        weight_BTR = factors_BTK2[:, :, 0]
        for k in range(1, self.n_factor):
            weight_BTR = (weight_BTR.unsqueeze(-1) * factors_BTK2[:, :, k].unsqueeze(-2)).flatten(-2)
        return weight_BTR
