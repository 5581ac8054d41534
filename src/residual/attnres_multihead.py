"""Multi-head attention residuals: attention residuals with one softmax over depth per group of channels.

    v_0 = x0,  v_i = y of the i-th sublayer;   [h] selects the h-th of H contiguous groups of channels
    h_k[h] = sum_i softmax_i( w_k[h] . RMSNorm_k(v_i)[h] ) v_i[h]    for site k over v_0..v_k, and at the end over all

The norm runs over all channels before they are split. RMSNorm_k has a learned gain, which folds into the query. One
head is `attnres`; more heads have as many parameters.

Source: Luo et al., "Multi-Head Attention Residuals" (arXiv 2607.27230), section 2, equations 2 and 3; code:
wdlctc/hyper-connection-factory @ c1562d7, connections/depth_attention.py, `MHAR`.
At init (w = 0): the uniform mean of all sources; not vanilla.
Shape letters: Q queries (sites 1..S-1, and the end).
"""

from torch import Tensor

from src.bounds import PositiveFloat
from src.kernels import depth_attention
from src.kernels.depth_attention import Sources
from src.residual.attnres import AttentionResiduals
from src.residual.base import StreamSpec
from src.source import Source


class MultiHeadAttentionResiduals(AttentionResiduals):
    """Attention over all earlier outputs by groups of channels: 2 * D parameters a query; no weight decay.

    Args:
        spec: the trunk. The first site has one source and therefore no query.
        n_depth_head: number of heads H (4 in the code; the paper finds 4 to 8 best).
        eps: added to the mean square in the key norm (1e-6 in the source).

    Raises:
        ValueError: `n_depth_head` is below 1 or does not divide n_embd.
    """

    source = Source("arXiv 2607.27230, section 2", "wdlctc/hyper-connection-factory", "c1562d7e6675")

    def __init__(self, spec: StreamSpec, *, n_depth_head: int, eps: PositiveFloat) -> None:
        super().__init__(spec, eps=eps)
        if n_depth_head < 1 or spec.n_embd % n_depth_head:
            raise ValueError(f"residual.n_depth_head must divide n_embd={spec.n_embd}, got {n_depth_head}")
        self.n_depth_head = n_depth_head

    def begin(self, x0_BTD: Tensor) -> Sources:
        key_QD = self.query_QD * self.key_gain_QD
        return depth_attention.open(x0_BTD, key_QD, self.eps, n_head=self.n_depth_head)
