"""Identity hyper-connections equal the source's equations, written out."""

from typing import Any

import torch

from src.kernels.hyper_streams import settle
from src.residual.ihc import IdentityHyperConnections
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt, tokens

KEYS: dict[str, Any] = {"n_stream": 4, "scale_init": 0.01, "phi_std": 0.02, "eps": 1e-6}


def test_it_equals_the_sources_recurrence() -> None:
    spec, branches, x0, n = stream_spec(), sublayers(6), embedding_like(), 4
    strategy = jittered(IdentityHyperConnections(spec, **KEYS))
    h = x0.unsqueeze(2).repeat(1, 1, n, 1)

    def projected(phi: torch.Tensor) -> torch.Tensor:
        v = h.flatten(2)
        return (v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt()) @ phi.T

    for k, branch in enumerate(branches):
        z, (s_pre, s_post), b = projected(strategy.phi_SCV[k]), strategy.scale_S2[k], strategy.bias_SC[k]
        pre = torch.sigmoid(s_pre * z[..., :n] + b[:n]) + 1e-6
        post = 2 * torch.sigmoid(s_post * z[..., n:] + b[n:])
        h = h + post.unsqueeze(-1) * branch((pre.unsqueeze(-1) * h).sum(2)).unsqueeze(2)
    head = torch.sigmoid(strategy.head_scale * projected(strategy.head_phi_NV) + strategy.head_bias_N) + 1e-6
    out = (head.unsqueeze(-1) * h).sum(2)
    assert torch.allclose(flow(strategy, spec, x0, branches), out, rtol=0, atol=1e-10)


def test_at_init_it_is_close_to_vanilla_and_its_streams_differ() -> None:
    ours, plain = tiny_gpt("ihc").double(), tiny_gpt().double()
    difference = (ours(tokens()) - plain(tokens())).abs().max()
    assert 0 < difference < 1e-2
    spec, x0 = stream_spec(), embedding_like()
    strategy = IdentityHyperConnections(spec, **KEYS).double()
    strategy.reset()
    _, state = strategy.read(strategy.begin(x0), spec.sites[0])
    h = settle(strategy.write(state, spec.sites[0], x0))
    assert (h - h.mean(2, keepdim=True)).abs().max() > 1e-6
