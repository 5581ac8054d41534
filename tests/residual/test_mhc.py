"""mHC equals equations 14-19 of the paper, written out; its initial values."""

from typing import Any

import pytest
import torch

from src.kernels.hyper_streams import settle
from src.residual.mhc import ManifoldHyperConnections
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import jitter, tiny_gpt, tokens

KEYS: dict[str, Any] = {
    "n_stream": 4,
    "n_iteration": 20,
    "scale_init": 0.01,
    "own_share": 0.7,
    "res_logit": 8.0,
    "eps": 1e-6,
    "stream_dtype": "float32",
}


def test_it_equals_the_papers_recurrence() -> None:
    spec, branches, x0, n = stream_spec(), sublayers(6), embedding_like(), 4
    strategy = jittered(ManifoldHyperConnections(spec, **KEYS))
    h = x0.unsqueeze(2).repeat(1, 1, n, 1)
    for k, branch in enumerate(branches):
        v = h.flatten(2)
        z = (v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt()) @ strategy.phi_SCV[k].T
        (s_pre, s_post, s_res), b = strategy.scale_S3[k], strategy.bias_SC[k]
        pre = torch.sigmoid(s_pre * z[..., :n] + b[:n])
        post = 2 * torch.sigmoid(s_post * z[..., n : 2 * n] + b[n : 2 * n])
        m = (s_res * z[..., 2 * n :] + b[2 * n :]).view(2, 4, n, n).exp()
        for _ in range(20):
            m = m / m.sum(-2, keepdim=True)
            m = m / m.sum(-1, keepdim=True)
        u = torch.einsum("btn,btnd->btd", pre, h)
        h = torch.einsum("btij,btjd->btid", m, h) + post.unsqueeze(-1) * branch(u).unsqueeze(2)
    assert torch.allclose(flow(strategy, spec, x0, branches), h.mean(2), rtol=0, atol=1e-10)


def test_at_init_it_equals_vanilla_to_the_rounding_of_its_biases() -> None:
    ours, plain = tiny_gpt("mhc").double(), tiny_gpt().double()
    difference = (ours(tokens()) - plain(tokens())).abs().max()
    assert 0 < difference < 1e-7


def test_streams_separate_in_training() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = ManifoldHyperConnections(spec, **KEYS).double()
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


def test_the_parameter_count_is_the_papers_and_only_phi_decays() -> None:
    strategy = ManifoldHyperConnections(stream_spec(2, 1024), **KEYS)
    assert sum(p.numel() for p in strategy.parameters()) == 4 * (4 * 1024 * 24 + 24 + 3)
    assert [(g.decay, len(g.params)) for g in strategy.param_groups()] == [(True, 1), (False, 2)]


def test_the_streams_stay_float32_under_bf16() -> None:
    gpt = jitter(tiny_gpt("mhc"))
    with torch.autocast("cpu", torch.bfloat16):
        _, trace = gpt.trace(tokens())
    assert trace.end_BTD.dtype == torch.float32


def test_a_share_of_one_raises_an_error() -> None:
    with pytest.raises(ValueError, match=r"residual.own_share must be > 0 and < 1, got 1.0"):
        ManifoldHyperConnections(stream_spec(), **{**KEYS, "own_share": 1.0})
