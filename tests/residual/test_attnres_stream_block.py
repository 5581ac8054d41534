"""Attention over streams equals the benchmark's loop written out.

Covers `src/residual/families/stream_attention.py` too.
"""

import pytest
import torch
from torch import Tensor

from src.residual.attnres_stream_block import StreamBlockAttention
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def mix(query: Tensor, streams: list[Tensor]) -> Tensor:
    s = torch.stack(streams)
    rms = (s.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return (torch.softmax((s / rms) @ query, dim=0).unsqueeze(-1) * s).sum(0)


@pytest.mark.parametrize(("n_layer", "group_layers"), [(4, 2), (5, 2), (3, 4), (3, 1)])
def test_it_equals_the_benchmarks_loop(n_layer: int, group_layers: int) -> None:
    spec, branches, x0 = stream_spec(n_layer), sublayers(2 * n_layer), embedding_like()
    strategy = jittered(StreamBlockAttention(spec, group_layers=group_layers, eps=1e-5))
    x, streams, queries = x0, [x0], iter(strategy.query_QD)
    for i in range(n_layer):
        if i > 0 and i % group_layers == 0:
            streams.append(x)
            x = mix(next(queries), streams)
        x = x + branches[2 * i](x)
        x = x + branches[2 * i + 1](x)
    x = mix(next(queries), [*streams, x])
    assert next(queries, None) is None
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-12)


def test_it_has_the_benchmarks_six_queries() -> None:
    strategy = StreamBlockAttention(stream_spec(24, 1024), group_layers=4, eps=1e-5)
    assert sum(p.numel() for p in strategy.parameters()) == 6_144
    assert strategy.mixes_before == {8, 16, 24, 32, 40}


def test_group_layers_below_one_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"group_layers must be >= 1, got 0"):
        StreamBlockAttention(stream_spec(), group_layers=0, eps=1e-5)
