"""Serial-parallel hybrid against its equation."""

import math

import torch

from src.residual.serial_parallel import SerialParallel
from tests.residual.plain import embedding_like, flow, stream_spec, sublayers


def test_only_the_mlps_output_is_scaled() -> None:
    spec, branches, x = stream_spec(), sublayers(6), embedding_like()
    out = flow(SerialParallel(spec), spec, x, branches)
    for i in range(3):
        x = x + branches[2 * i](x)
        x = x + branches[2 * i + 1](x) / math.sqrt(2)
    assert torch.allclose(out, x, rtol=0, atol=1e-13)
