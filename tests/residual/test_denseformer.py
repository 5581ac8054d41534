"""DenseFormer equals its recurrence written out, and has the published counts."""

import pytest
import torch

from src.residual.denseformer import DenseFormer
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


@pytest.mark.parametrize(("dilation", "period"), [(1, 1), (2, 1), (1, 2), (2, 3), (4, 5)])
def test_it_equals_the_papers_recurrence(dilation: int, period: int) -> None:
    spec, branches, x0 = stream_spec(5), sublayers(10), embedding_like()
    strategy = jittered(DenseFormer(spec, dilation=dilation, period=period))
    a = iter(strategy.a_P)
    x, history = x0, [x0]
    for i in range(5):
        x = x + branches[2 * i](x)
        x = x + branches[2 * i + 1](x)
        history.append(x)
        if (i + 1) % period == 0:
            x = sum(next(a) * history[j] for j in range(i + 2) if (i + 1 - j) % dilation == 0)
    assert next(a, None) is None
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("dilation", "period", "count"), [(1, 1, 324), (4, 5, 15)])
def test_it_has_the_published_counts(dilation: int, period: int, count: int) -> None:
    strategy = DenseFormer(stream_spec(24), dilation=dilation, period=period)
    assert strategy.a_P.numel() == count


@pytest.mark.parametrize("key", ["dilation", "period"])
def test_a_stride_above_the_depth_is_rejected(key: str) -> None:
    with pytest.raises(ValueError, match=rf"residual.{key} must be between 1 and n_layer=3, got 4"):
        DenseFormer(stream_spec(3), **{"dilation": 1, "period": 1, key: 4})
