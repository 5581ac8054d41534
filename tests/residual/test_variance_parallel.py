"""Variance-controlled parallel attention and MLP against its equation."""

import math

import torch
from torch.nn import functional as F

from src.residual.variance_parallel import VarianceParallel
from tests.residual.plain import embedding_like, flow, stream_spec, sublayers


def test_the_sum_of_both_outputs_is_divided_by_the_root_of_two() -> None:
    spec, branches, x = stream_spec(), sublayers(6), embedding_like()
    out = flow(VarianceParallel(spec).double(), spec, x, branches)
    for i in range(3):
        h = F.layer_norm(x, (6,))
        x = x + (branches[2 * i](h) + branches[2 * i + 1](h)) / math.sqrt(2)
    assert torch.allclose(out, x, rtol=0, atol=1e-13)


def test_two_independent_outputs_keep_the_variance_of_one() -> None:
    spec = stream_spec(1, 1000)
    generator = torch.Generator().manual_seed(0)
    noise = [lambda x: torch.randn(x.shape, generator=generator)] * 2
    out = flow(VarianceParallel(spec), spec, torch.zeros(4, 5, 1000), noise)
    assert abs(out.var().item() - 1) < 0.03
