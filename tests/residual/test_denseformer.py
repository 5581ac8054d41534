"""DenseFormer against the code of its authors, and its published counts."""

import pytest
import torch
from torch import Tensor

from src.residual.denseformer import DenseFormer
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


@pytest.mark.parametrize(("dilation", "period"), [(1, 1), (2, 1), (1, 2), (2, 3), (4, 5)])
def test_it_equals_its_source(dilation: int, period: int) -> None:
    """epfml/DenseFormer @ c99a623, denseformer/denseformer.py: DWAModules, with the loop of README.md."""
    strategy = jittered(DenseFormer(stream_spec(5), dilation=dilation, period=period))

    def oracle(x: Tensor, branches: Sublayers) -> Tensor:
        sizes = [(i + 1 + dilation) // dilation if (i + 1) % period == 0 else 0 for i in range(5)]
        alphas = strategy.a_P.split(sizes)
        accumulators: list[list[Tensor]] = [[] for _ in range(dilation)]
        accumulators[0].append(x)
        for i in range(5):
            x = x + branches[2 * i](x)
            x = x + branches[2 * i + 1](x)
            group = accumulators[(i + 1) % dilation]
            group.append(x)
            if (i + 1) % period == 0:
                x = torch.tensordot(alphas[i], torch.stack(group), dims=1)
        return x

    compare_flow(strategy, stream_spec(5), oracle)


@pytest.mark.parametrize(("dilation", "period", "count"), [(1, 1, 324), (4, 5, 15)])
def test_initial_values_are_those_of_its_source(dilation: int, period: int, count: int) -> None:
    """epfml/DenseFormer @ c99a623, DWAModules._init_weights; counts of the paper's 24 layers."""
    strategy = DenseFormer(stream_spec(24), dilation=dilation, period=period)
    assert strategy.a_P.numel() == count
    sizes = [(i + 1 + dilation) // dilation for i in range(24) if (i + 1) % period == 0]
    assert strategy.a_P.tolist() == [w for size in sizes for w in [0.0] * (size - 1) + [1.0]]


def test_groups_are_those_of_its_source() -> None:
    """epfml/DenseFormer @ c99a623, experiments/models/denseformer.py: weights of nn.Linear decay, these among them."""
    assert groups_by_name(tiny_gpt("denseformer"))["residual.a_P"] == (LR, WEIGHT_DECAY)


@pytest.mark.parametrize("key", ["dilation", "period"])
def test_a_stride_above_the_depth_is_rejected(key: str) -> None:
    with pytest.raises(ValueError, match=rf"residual.{key} must be between 1 and n_layer=3, got 4"):
        DenseFormer(stream_spec(3), **{"dilation": 1, "period": 1, key: 4})
