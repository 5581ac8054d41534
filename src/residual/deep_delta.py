"""Deep Delta Learning with a scalar target: a sublayer's output is a direction along which the stream is rewritten.

    c = N_k(x);   y = F_k(c)
    beta = 2 sigmoid(a_k . c + b_k);   v = 4 sigmoid(w_k . x + v_k)
    d = y / sqrt(|y|^2 + eps^2);   x <- x + beta (v - d . x) d

Source: Zhang et al., "Deep Delta Learning" (arXiv 2601.00417), section 3.1; yifanzhang-pro/deep-delta-learning
(`DDL-vdim1-gpt-mha-rope.py`).
At init (beta about 1, v about 2): not vanilla.
"""

from typing import ClassVar

from torch import Tensor

from src.bounds import PositiveFloat
from src.residual.base import Site, StreamSpec
from src.residual.families.delta_rule import RATES, Delta, DeltaRule
from src.source import QK_NORM, Source


class DeepDelta(DeltaRule):
    """Rewritten stream; 2 * (D + 1) parameters per site, weight decay on matrices; norms instead of the trunk's.

    Args:
        beta_init: initial step beta, > 0 and < 2 (1 in the source).
        value_scale: bound of the target v (4 in the source).
        eps: length of an output below which its direction is shorter than 1 (1e-5 in the source).
    """

    source: ClassVar[Source] = Source(
        "arXiv 2601.00417, section 3.1",
        "yifanzhang-pro/deep-delta-learning",
        "2b55f2511502",
        deviations=(RATES, QK_NORM),
    )

    def __init__(self, spec: StreamSpec, *, beta_init: float, value_scale: PositiveFloat, eps: PositiveFloat) -> None:
        super().__init__(spec, 1, beta_init, value_scale, eps)

    def begin(self, x0_BTD: Tensor) -> Delta:
        return Delta(x0_BTD.unsqueeze(2), ())

    def compress(self, x_BTND: Tensor, site: Site | None) -> Tensor:
        return x_BTND.squeeze(2)
