"""Attention residuals equal the paper's stacked equations."""

import torch

from src.residual.attnres import AttentionResiduals
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_it_equals_the_papers_softmax_over_all_sources() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(AttentionResiduals(spec, eps=1e-5))
    sources = [x0]
    for k in range(7):
        v = torch.stack(sources)
        if k == 0:
            h = x0
        else:
            key = v * (v.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * strategy.key_gain_QD[k - 1]
            weight = torch.softmax((key * strategy.query_QD[k - 1]).sum(-1, keepdim=True), dim=0)
            h = (weight * v).sum(0)
        if k < 6:
            sources.append(branches[k](h))
    assert torch.allclose(flow(strategy, spec, x0, branches), h, rtol=0, atol=1e-12)


def test_it_starts_as_the_uniform_mean() -> None:
    spec, x0 = stream_spec(), embedding_like()
    strategy = AttentionResiduals(spec, eps=1e-5).double()
    constant = [lambda x, i=i: torch.full_like(x, float(i)) for i in range(6)]
    expected = (x0 + sum(range(6))) / 7
    assert torch.allclose(flow(strategy, spec, x0, constant), expected, atol=1e-12)


def test_the_first_site_has_no_query() -> None:
    strategy = AttentionResiduals(stream_spec(24, 1024), eps=1e-5)
    assert sum(p.numel() for p in strategy.parameters()) == 98_304
