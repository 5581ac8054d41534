"""mHC equals equations 3 and 7-9 of the paper, written out; its initial values."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.hyper_streams import settle
from src.residual.mhc import ManifoldHyperConnections
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec, sublayers
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


def test_it_equals_its_source() -> None:
    """Compare with arXiv 2512.24880, equations 3 and 7-9, on whose readout (the mean) the paper is silent."""
    spec, n = stream_spec(), 4
    strategy = jittered(ManifoldHyperConnections(spec, **KEYS))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        x = torch.stack([x0] * n, dim=2)
        for k, branch in enumerate(branches):
            vec = F.rms_norm(x.flatten(2), (n * 6,), eps=1e-6)
            phi_pre, phi_post, phi_res = strategy.phi_SCV[k].T.split((n, n, n * n), dim=1)
            b_pre, b_post, b_res = strategy.bias_SC[k].split((n, n, n * n))
            alpha_pre, alpha_post, alpha_res = strategy.scale_S3[k]
            h_pre = torch.sigmoid(alpha_pre * (vec @ phi_pre) + b_pre)
            h_post = 2 * torch.sigmoid(alpha_post * (vec @ phi_post) + b_post)
            m = torch.exp((alpha_res * (vec @ phi_res) + b_res).unflatten(-1, (n, n)))
            for _ in range(20):
                m = m / m.sum(-2, keepdim=True)  # T_c, then T_r
                m = m / m.sum(-1, keepdim=True)
            y = branch(torch.einsum("btn,btnd->btd", h_pre, x))
            x = torch.einsum("btij,btjd->btid", m, x) + torch.einsum("btn,btd->btnd", h_post, y)
        return x.sum(2) / n

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_those_stated() -> None:
    """arXiv 2512.24880, table 5: scales of 0.01; everything else is this project's choice."""
    gpt = tiny_gpt("mhc")
    strategy = gpt.residual
    assert torch.equal(strategy.scale_S3, torch.full((6, 3), 0.01))
    assert strategy.phi_SCV.eq(0).all()
    assert strategy.bias_SC[:, :4].sigmoid().amax(1).allclose(torch.tensor(0.7))
    assert strategy.bias_SC[:, :4].argmax(1).tolist() == [0, 1, 2, 3, 0, 1]
    assert strategy.bias_SC[:, 4:8].eq(0).all()
    assert all(torch.equal(b_L.view(4, 4), 8.0 * torch.eye(4)) for b_L in strategy.bias_SC[:, 8:])
    groups = {name: group for name, group in groups_by_name(gpt).items() if name.startswith("residual.")}
    assert groups == {
        "residual.phi_SCV": (LR, WEIGHT_DECAY),
        "residual.scale_S3": (LR, 0.0),
        "residual.bias_SC": (LR, 0.0),
    }


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


def test_the_parameter_count_is_the_papers() -> None:
    strategy = ManifoldHyperConnections(stream_spec(2, 1024), **KEYS)
    assert sum(p.numel() for p in strategy.parameters()) == 4 * (4 * 1024 * 24 + 24 + 3)


def test_the_streams_stay_float32_under_bf16() -> None:
    gpt = jitter(tiny_gpt("mhc"))
    with torch.autocast("cpu", torch.bfloat16):
        _, trace = gpt.trace(tokens())
    assert trace.end_BTD.dtype == torch.float32


def test_a_share_of_one_raises_an_error() -> None:
    with pytest.raises(ValueError, match=r"residual.own_share must be > 0 and < 1, got 1.0"):
        ManifoldHyperConnections(stream_spec(), **{**KEYS, "own_share": 1.0})
