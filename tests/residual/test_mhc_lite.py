"""mHC-lite against its equations written out."""

from itertools import permutations
from typing import Any

import pytest
import torch

from src.residual.mhc_lite import ManifoldHyperConnectionsLite
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers

KEYS: dict[str, Any] = {"n_stream": 3, "scale_init": 0.01, "gate_logit": 1.0, "res_logit": -8.0, "eps": 1e-6}


def test_it_equals_the_papers_recurrence() -> None:
    spec, branches, x0, n = stream_spec(), sublayers(6), embedding_like(), 3
    strategy = jittered(ManifoldHyperConnectionsLite(spec, **KEYS))
    orders = list(permutations(range(n)))
    h = x0.unsqueeze(2).repeat(1, 1, n, 1)
    for k, branch in enumerate(branches):
        v = h.flatten(2)
        normed = v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() * strategy.gain_SV[k]
        z = normed @ strategy.phi_SCV[k].T
        (s_pre, s_post, s_res), b = strategy.scale_S3[k], strategy.bias_SC[k]
        pre = torch.sigmoid(s_pre * z[..., :n] + b[:n])
        post = 2 * torch.sigmoid(s_post * z[..., n : 2 * n] + b[n : 2 * n])
        share = (s_res * z[..., 2 * n :] + b[2 * n :]).softmax(-1)
        mixed = sum(share[..., r, None, None] * h[:, :, list(order)] for r, order in enumerate(orders))
        u = torch.einsum("btn,btnd->btd", pre, h)
        h = mixed + post.unsqueeze(-1) * branch(u).unsqueeze(2)
    assert torch.allclose(flow(strategy, spec, x0, branches), h.sum(2), rtol=0, atol=1e-10)


def test_the_first_permutation_is_the_identity_and_has_the_largest_initial_weight() -> None:
    strategy = ManifoldHyperConnectionsLite(stream_spec(), **KEYS)
    assert torch.equal(strategy.perm_RNN[0], torch.eye(3))
    assert strategy.bias_SC[:, 6:].argmax(1).eq(0).all()
    assert strategy.state_dict().keys() == dict(strategy.named_parameters()).keys()


def test_each_site_reads_mostly_a_stream_of_its_own_at_init() -> None:
    strategy = ManifoldHyperConnectionsLite(stream_spec(), **KEYS)
    assert strategy.bias_SC[:, :3].argmax(1).tolist() == [0, 1, 2, 0, 1, 2]
    assert strategy.bias_SC[:, 3:6].argmax(1).tolist() == [0, 1, 2, 0, 1, 2]


def test_too_many_streams_raise_an_error() -> None:
    with pytest.raises(ValueError, match=r"n_stream must be <= 5 .* got 6; for more streams use residual=mhc"):
        ManifoldHyperConnectionsLite(stream_spec(), **{**KEYS, "n_stream": 6})
