"""RMSNorm beside its paper's equation."""

from torch import Tensor

from src.norm.base import NormSpec
from tests.norm.test_contract import EPS, built, inputs
from tests.oracle import compare_module
from tests.support import component


def test_it_equals_its_source() -> None:
    """Equation 4 of arXiv 1910.07467, with the benchmark's eps under the root."""
    norm = built("rmsnorm").double()

    def oracle(x: Tensor) -> Tensor:
        rms = ((x**2).sum(-1, keepdim=True) / x.shape[-1] + EPS).sqrt()
        return x / rms * norm.weight

    compare_module(norm, inputs(), oracle)


def test_its_gain_starts_at_one_and_it_never_has_a_bias() -> None:
    norm = component("norm", "rmsnorm")(NormSpec(8, bias=True))
    assert {name: p.tolist() for name, p in norm.named_parameters()} == {"weight": [1.0] * 8}
