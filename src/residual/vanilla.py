"""Vanilla: the Pre-LN residual stream of GPT-2.

    x <- x + F_k(N_k(x))

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), section 2.3;
karpathy/nanoGPT, model.py.
At init: vanilla, the baseline of the other strategies.
"""

from torch import Tensor

from src.residual.base import Site
from src.residual.families.single_stream import SingleStream
from src.source import Source


class Vanilla(SingleStream):
    """One stream to which every sublayer adds; no parameters."""

    source = Source("GPT-2 (Radford et al. 2019), section 2.3", "karpathy/nanoGPT", "3adf61e154c3")
    init_equivalent = "vanilla"

    def __init__(self, spec: object) -> None:
        super().__init__()

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + y_BTD
