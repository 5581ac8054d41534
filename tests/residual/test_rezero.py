"""ReZero against its source."""

import pytest
import torch
from torch import Tensor

from src.residual.rezero import ReZero
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """majumderb/rezero @ e2c94a8, rezero/transformer/rztx.py: both sublayers of a layer share `resweight`."""
    spec = stream_spec()
    strategy = jittered(ReZero(spec, gate_init=0.0, lr_scale=1.0))
    (resweights,) = strategy.parameters()
    assert resweights.shape == (3,)

    def oracle(src: Tensor, branches: Sublayers) -> Tensor:
        for resweight, self_attn, feed_forward in zip(resweights, branches[::2], branches[1::2], strict=True):
            src = src + self_attn(src) * resweight
            src = src + feed_forward(src) * resweight
        return src

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_those_of_its_source() -> None:
    """The same file: `resweight` starts at 0; the repository sets no rate of its own and no weight decay."""
    gpt = tiny_gpt("rezero")
    assert not gpt.residual.gate_L.any()
    assert groups_by_name(gpt)["residual.gate_L"] == (LR, 0.0)
    slower = groups_by_name(tiny_gpt("rezero", strategy={"lr_scale": 0.1}))
    assert slower["residual.gate_L"] == (pytest.approx(LR / 10), 0.0)


def test_at_init_it_equals_the_identity_and_only_gates_have_gradients() -> None:
    spec, x0 = stream_spec(), embedding_like()
    strategy = ReZero(spec, gate_init=0.0, lr_scale=0.1).double()
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()
    out = flow(strategy, spec, x0, [lambda x: x @ weight] * 6)
    assert torch.equal(out, x0)
    out.square().sum().backward()
    assert not weight.grad.any()
    assert strategy.gate_L.grad.all()
