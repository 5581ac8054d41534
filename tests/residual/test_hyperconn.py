"""Dynamic hyper-connections against equations 10-13 written out, and the published package."""

import pytest
import torch
from torch.nn import functional as F

from src.residual.hyperconn import HyperConnections
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_it_is_the_papers_recurrence() -> None:
    spec, branches, x0, n = stream_spec(), sublayers(6), embedding_like(), 3
    strategy = jittered(HyperConnections(spec, n_stream=n, scale_init=0.01))
    h = x0.unsqueeze(2).repeat(1, 1, n, 1)
    for k, branch in enumerate(branches):
        normed = F.layer_norm(h, (6,), strategy.norm_weight_SD[k], strategy.norm_bias_SD[k], 1e-5)
        dynamic = torch.tanh(normed @ strategy.w_SDC[k])
        a = strategy.a_SNM[k] + strategy.scale_S2[k, 0] * dynamic[..., : n + 1]
        b = strategy.b_SN[k] + strategy.scale_S2[k, 1] * dynamic[..., n + 1]
        u = (a[..., :1] * h).sum(2)
        mixed = torch.stack([(a[..., 1 + j : 2 + j] * h).sum(2) for j in range(n)], dim=2)
        h = mixed + b.unsqueeze(-1) * branch(u).unsqueeze(2)
    assert torch.allclose(flow(strategy, spec, x0, branches), h.mean(2), rtol=0, atol=1e-11)


def test_only_the_projection_has_weight_decay_and_the_count_is_the_papers() -> None:
    strategy = HyperConnections(stream_spec(24, 1024), n_stream=4, scale_init=0.01)
    assert [g.decay for g in strategy.param_groups()] == [True, False]
    assert next(strategy.param_groups()).params == (strategy.w_SDC,)
    assert sum(p.numel() for p in strategy.parameters()) == 394_464


def test_streams_separate_once_trained() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = HyperConnections(spec, n_stream=4, scale_init=0.01).double()
    optimizer = torch.optim.AdamW(strategy.parameters(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        flow(strategy, spec, x0, branches).square().mean().backward()
        optimizer.step()
    state = strategy.begin(x0)
    for site, branch in zip(spec.sites, branches, strict=True):
        u, state = strategy.read(state, site)
        state = strategy.write(state, site, branch(u))
    spread = (state.h_BTND - state.h_BTND.mean(2, keepdim=True)).norm() / state.h_BTND.norm()
    assert spread > 1e-3


def test_the_published_package_gives_the_same_read_and_write() -> None:
    package = pytest.importorskip("hyper_connections", reason="optional: pip install hyper-connections")
    pytest.importorskip("hyper_connections.hyper_connections")
    n, d = 4, 6
    theirs = package.hyper_connections.HyperConnections(n, dim=d, layer_index=1).double()
    spec = stream_spec(1, d)
    ours = HyperConnections(spec, n_stream=n, scale_init=0.01).double()
    state = ours.begin(embedding_like(d))
    _, state = ours.read(state, spec.sites[0])
    u, after = ours.read(state, spec.sites[1])
    flat = state.h_BTND.permute(0, 2, 1, 3).reshape(-1, 4, d)
    branch_input, add = theirs(flat)
    assert torch.allclose(branch_input, u, atol=1e-10)
    y = torch.tanh(u)
    written = ours.write(after, spec.sites[1], y).h_BTND.permute(0, 2, 1, 3).reshape(-1, 4, d)
    assert torch.allclose(add(y), written, atol=1e-10)
