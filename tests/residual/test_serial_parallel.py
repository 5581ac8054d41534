"""Serial-parallel hybrid against the published formula."""

import math

from torch import Tensor

from src.residual.serial_parallel import SerialParallel
from tests.oracle import compare_flow
from tests.residual.plain import Sublayers, stream_spec


def published(x: Tensor, branches: Sublayers) -> Tensor:
    for attn, mlp in zip(branches[::2], branches[1::2], strict=True):
        x = x + attn(x)
        x = x + 1 / math.sqrt(2) * mlp(x)
    return x


def test_it_equals_its_source() -> None:
    """Imbernoulli/mls-bench-website @ b574219, public/data/annotations/llm-pretrain-normalization.json, gpt-5.4."""
    spec = stream_spec()
    compare_flow(SerialParallel(spec), spec, published)
