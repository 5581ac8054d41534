"""ReZero against its equation."""

import torch

from src.residual.rezero import ReZero
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_each_output_is_scaled_by_its_gate() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(ReZero(spec, gate_init=0.0, lr_scale=1.0))
    x = x0
    for k in range(6):
        x = x + strategy.gate_S[k] * branches[k](x)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-13)


def test_at_init_it_equals_the_identity_and_only_gates_have_gradients() -> None:
    spec, x0 = stream_spec(), embedding_like()
    strategy = ReZero(spec, gate_init=0.0, lr_scale=0.1).double()
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()
    out = flow(strategy, spec, x0, [lambda x: x @ weight] * 6)
    assert torch.equal(out, x0)
    out.square().sum().backward()
    assert not weight.grad.any()
    assert strategy.gate_S.grad.all()
    assert [g.lr_scale for g in strategy.param_groups()] == [0.1]
