"""Vanilla: the Pre-LN residual stream of GPT-2.

    x <- x + F_k(N_k(x))

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), section 2.3.
At init: vanilla, the baseline of the other strategies.
"""

from torch import Tensor

from src.residual.base import Site
from src.residual.families.single_stream import SingleStream


class Vanilla(SingleStream):
    """One stream to which every sublayer adds; no parameters."""

    init_equivalent = "vanilla"

    def __init__(self, spec: object) -> None:
        super().__init__()

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + y_BTD
