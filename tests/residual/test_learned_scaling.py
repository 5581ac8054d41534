"""Learned scaling against the benchmark's baseline."""

from torch import Tensor

from src.residual.learned_scaling import LearnedScaling
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """Imbernoulli/innovation_proior @ 9e202f7, trajectories/llm-pretrain-residual/03-learned_scaling-answer.md."""
    spec = stream_spec()
    strategy = jittered(LearnedScaling(spec, carry_init=1.0, blend_init=0.0))

    def baseline(x: Tensor, branches: Sublayers) -> Tensor:
        x0 = x
        for i in range(3):
            h = x + branches[2 * i](x)
            block_out = h + branches[2 * i + 1](h)
            delta = block_out - x
            x = strategy.carry_L[i] * x + delta + strategy.blend_L[i] * x0
        return x

    compare_flow(strategy, spec, baseline)


def test_initial_values_and_groups_are_the_sources() -> None:
    """Imbernoulli/innovation_proior @ 9e202f7, the same file: ones and zeros, the base rate, no weight decay."""
    gpt = tiny_gpt("learned_scaling")
    assert gpt.residual.carry_L.tolist() == [1.0] * 3
    assert gpt.residual.blend_L.tolist() == [0.0] * 3
    groups = groups_by_name(gpt)
    assert groups["residual.carry_L"] == groups["residual.blend_L"] == (LR, 0.0)
