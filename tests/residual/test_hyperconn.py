"""Dynamic hyper-connections equal algorithms 2 and 3 of the paper, and the published package.

Covers `src/residual/families/hyper_connections.py` too.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.kernels.hyper_streams import settle
from src.residual.hyperconn import HyperConnections
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt

KEYS: dict[str, Any] = {"n_stream": 3, "scale_init": 0.01, "output_init_scale": 1.0, "stream_dtype": "float32"}


def test_it_equals_its_source() -> None:
    """Compare with arXiv 2409.19606, algorithms 2 and 3; the streams are averaged where the paper sums them."""
    spec, n = stream_spec(), 3
    strategy = jittered(HyperConnections(spec, **KEYS))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        h = torch.stack([x0] * n, dim=2)
        for k, branch in enumerate(branches):
            norm_h = F.layer_norm(h, (6,), strategy.norm_weight_SD[k], strategy.norm_bias_SD[k])
            dynamic_alpha_fn, dynamic_beta_fn = strategy.w_SDC[k, :, : n + 1], strategy.w_SDC[k, :, n + 1]
            alpha = torch.tanh(norm_h @ dynamic_alpha_fn) * strategy.scale_S2[k, 0] + strategy.a_SNM[k]
            beta = torch.tanh(norm_h @ dynamic_beta_fn) * strategy.scale_S2[k, 1] + strategy.b_SN[k]
            mix_h = alpha.transpose(-1, -2) @ h
            h = torch.einsum("blh,bln->blnh", branch(mix_h[..., 0, :]), beta) + mix_h[..., 1:, :]
        return h.sum(-2) / n

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """arXiv 2409.19606, equation 14 and algorithm 2; section 4: the static part has no weight decay, the dynamic has.

    That norm and scale of the dynamic part have none is a stated deviation.
    """
    gpt = tiny_gpt("hyperconn")
    strategy = gpt.residual
    for k in range(6):
        assert strategy.a_SNM[k, :, 0].tolist() == [float(i == k % 4) for i in range(4)]
        assert torch.equal(strategy.a_SNM[k, :, 1:], torch.eye(4))
    assert strategy.b_SN.eq(1).all()
    assert strategy.w_SDC.eq(0).all()
    assert torch.equal(strategy.scale_S2, torch.full((6, 2), 0.01))
    groups = {name: group for name, group in groups_by_name(gpt).items() if name.startswith("residual.")}
    others = ("a_SNM", "b_SN", "norm_weight_SD", "norm_bias_SD", "scale_S2")
    assert groups == {
        "residual.w_SDC": (LR, WEIGHT_DECAY),
        **{f"residual.{name}": (LR, 0.0) for name in others},
    }


def test_the_parameter_count_is_the_papers() -> None:
    strategy = HyperConnections(stream_spec(24, 1024), **{**KEYS, "n_stream": 4})
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
