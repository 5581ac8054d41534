"""ProRes per layer against the benchmark's code."""

import pytest
import torch
from torch import Tensor

from src.residual.prores_block import ProResBlock
from tests.oracle import compare_flow
from tests.residual.plain import Sublayers, embedding_like, flow, stream_spec, sublayers
from tests.support import tiny_gpt


@pytest.mark.parametrize("step", [0, 150, 399])
def test_it_equals_its_source(step: int) -> None:
    """Imbernoulli/innovation_proior @ 9e202f7, 02-prores-answer.md: a change times min(t / (T l), 1), T = W / L."""
    spec = stream_spec()
    strategy = ProResBlock(spec, schedule="linear", warmup_fraction=None, warmup_steps=400).double()
    strategy.on_step(step, 1000)

    def oracle(x: Tensor, branches: Sublayers) -> Tensor:
        for layer in range(3):
            block = x + branches[2 * layer](x)
            block = block + branches[2 * layer + 1](block)
            alpha = min(step * 3 / (400 * (layer + 1)), 1.0)
            x = x + alpha * (block - x)
        return x

    compare_flow(strategy, spec, oracle)


def test_in_evaluation_a_layer_is_whole() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = ProResBlock(spec, schedule="linear", warmup_fraction=None, warmup_steps=400).double()
    whole = flow(strategy, spec, x0, branches)
    strategy.on_step(150, 1000)
    assert torch.equal(flow(strategy.eval(), spec, x0, branches), whole)


def test_the_warm_up_is_that_of_its_source() -> None:
    """T = 1,000 forward passes of 8 a step, 24 layers: 3,000 of 13,535 steps; no parameters, so no groups of its own."""
    gpt = tiny_gpt("prores_block")
    gpt.follow(1_500, 13_535)
    assert gpt.residual.alpha_L.tolist() == pytest.approx([1, 3 / 4, 1 / 2], abs=1e-4)
    assert not list(gpt.residual.parameters())


def test_at_step_zero_it_equals_the_identity() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = ProResBlock(spec, schedule="linear", warmup_fraction=0.2, warmup_steps=None).double()
    strategy.on_step(0, 1000)
    assert torch.equal(flow(strategy, spec, x0, branches), x0)
