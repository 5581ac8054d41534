"""GPAS against its source, forward and backward."""

import torch

from src.residual.gpas import GPAS
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """dandingsky/GPAS @ 3198068, peft_pretraining/modeling_llama.py: `GPASBlock` in the branch `pre_gpas`.

    The layer calls its one block after the residual of the attention and after that of the MLP.
    """
    spec = stream_spec()
    strategy = jittered(GPAS(spec, gate_init=0.0))

    def oracle(x: torch.Tensor, branches: Sublayers) -> torch.Tensor:
        for layer, gate in enumerate(strategy.gate_L):
            for branch in branches[2 * layer : 2 * layer + 2]:
                x = x + branch(x)
                x = x - gate * torch.sigmoid(gate) * x.detach()
        return x

    compare_flow(strategy, spec, oracle)


def test_gates_start_at_zero_and_learn_at_the_common_rate_without_decay() -> None:
    """Compare with `gate_init_value = 0.0` of `GPASBlock`, and with --weight_decay 0 of the source's scripts."""
    gpt = tiny_gpt("gpas")
    assert torch.equal(gpt.residual.gate_L, torch.zeros(3))
    assert groups_by_name(gpt)["residual.gate_L"] == (LR, 0.0)


def test_the_gradient_of_the_stream_ignores_the_gates() -> None:
    spec, x0 = stream_spec(), embedding_like().requires_grad_()
    strategy = jittered(GPAS(spec, gate_init=0.7))
    out = flow(strategy, spec, x0, [torch.zeros_like] * 6)
    (gradient,) = torch.autograd.grad(out.sum(), x0)
    assert torch.equal(gradient, torch.ones_like(x0))
    assert not torch.allclose(out, x0)
