"""Variance-controlled parallel attention and MLP against its equation."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from src.residual.variance_parallel import VarianceParallel
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, flow, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """MLS-Bench llm-pretrain-normalization: h = N(x); x + (attn(h) + mlp(h)) / sqrt(2)."""
    spec = stream_spec()
    strategy = jittered(VarianceParallel(spec))

    def described(x: Tensor, branches: Sublayers) -> Tensor:
        for i in range(3):
            h = F.layer_norm(x, (6,), strategy.norms[i].weight, strategy.norms[i].bias, 1e-5)
            x = x + (branches[2 * i](h) + branches[2 * i + 1](h)) / math.sqrt(2)
        return x

    compare_flow(strategy, spec, described)


def test_its_norms_have_no_weight_decay() -> None:
    groups = groups_by_name(tiny_gpt("variance_parallel"))
    assert {groups[name] for name in groups if name.startswith("residual.")} == {(LR, 0.0)}


def test_two_independent_outputs_keep_the_variance_of_one() -> None:
    spec = stream_spec(1, 1000)
    generator = torch.Generator().manual_seed(0)
    noise = [lambda x: torch.randn(x.shape, generator=generator)] * 2
    out = flow(VarianceParallel(spec), spec, torch.zeros(4, 5, 1000), noise)
    assert abs(out.var().item() - 1) < 0.03
