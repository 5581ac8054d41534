"""Dynamic hyper-connections equal equations 10-13 of the paper, written out, and the published package.

Covers `src/residual/families/hyper_connections.py` too.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.kernels.hyper_streams import settle
from src.residual.hyperconn import HyperConnections
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_it_equals_the_papers_recurrence() -> None:
    spec, branches, x0, n = stream_spec(), sublayers(6), embedding_like(), 3
    strategy = jittered(
        HyperConnections(spec, n_stream=n, scale_init=0.01, output_init_scale=1.0, stream_dtype="float32")
    )
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


def test_only_the_projection_has_weight_decay_and_the_parameter_count_is_the_papers() -> None:
    strategy = HyperConnections(
        stream_spec(24, 1024), n_stream=4, scale_init=0.01, output_init_scale=1.0, stream_dtype="float32"
    )
    assert [g.decay for g in strategy.param_groups()] == [True, False]
    assert next(strategy.param_groups()).params == (strategy.w_SDC,)
    assert sum(p.numel() for p in strategy.parameters()) == 394_464


def test_streams_separate_in_training() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = HyperConnections(
        spec, n_stream=4, scale_init=0.01, output_init_scale=1.0, stream_dtype="float32"
    ).double()
    optimizer = torch.optim.AdamW(strategy.parameters(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        flow(strategy, spec, x0, branches).square().mean().backward()
        optimizer.step()
    state = strategy.begin(x0)
    for site, branch in zip(spec.sites, branches, strict=True):
        u, state = strategy.read(state, site)
        state = strategy.write(state, site, branch(u))
    h = settle(state)
    spread = (h - h.mean(2, keepdim=True)).norm() / h.norm()
    assert spread > 1e-3


def test_it_equals_the_published_package_with_the_same_weights() -> None:
    package = pytest.importorskip("hyper_connections", reason="optional: pip install hyper-connections")
    spec, branches, x0, n, d = stream_spec(), sublayers(6), embedding_like(), 4, 6
    ours = jittered(HyperConnections(spec, n_stream=n, scale_init=0.01, output_init_scale=1.0, stream_dtype="float32"))
    expand, reduce = package.get_expand_reduce_stream_functions(n)
    x = expand(x0)
    for k, branch in enumerate(branches):
        theirs = package.HyperConnections(n, dim=d, layer_index=k).double()
        theirs.norm = nn.LayerNorm(d).double()  # the paper's; the package has RMSNorm
        theirs.norm.load_state_dict({"weight": ours.norm_weight_SD[k], "bias": ours.norm_bias_SD[k]})
        weights = {
            "static_alpha": ours.a_SNM[k],
            "static_beta": ours.b_SN[k],
            "dynamic_alpha_fn": ours.w_SDC[k, :, : n + 1],
            "dynamic_beta_fn": ours.w_SDC[k, :, n + 1],
            "dynamic_alpha_scale": ours.scale_S2[k, 0],
            "dynamic_beta_scale": ours.scale_S2[k, 1],
        }
        assert theirs.load_state_dict(weights, strict=False).unexpected_keys == []
        u, add = theirs(x)
        x = add(branch(u))
    assert torch.allclose(flow(ours, spec, x0, branches), reduce(x) / n, rtol=0, atol=1e-11)


def test_at_init_it_equals_the_published_package_at_init() -> None:
    package = pytest.importorskip("hyper_connections", reason="optional: pip install hyper-connections")
    ours = HyperConnections(stream_spec(), n_stream=4, scale_init=0.01, output_init_scale=1.0, stream_dtype="float32")
    for k in range(6):
        theirs = package.HyperConnections(4, dim=6, layer_index=k)
        assert torch.equal(ours.a_SNM[k], theirs.static_alpha)
        assert torch.equal(ours.b_SN[k], theirs.static_beta)
        assert torch.equal(ours.scale_S2[k, 0], theirs.dynamic_alpha_scale)
        assert not ours.w_SDC[k].any()
        assert not theirs.dynamic_alpha_fn.any()
