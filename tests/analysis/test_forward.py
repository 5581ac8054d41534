"""Recorded tensors against those of the trunk, by hand."""

import pytest
import torch
from torch.nn import functional as F

from src.analysis.forward import record_forward
from tests.support import jitter, tiny_gpt, tokens


def test_states_and_reads_of_vanilla_are_the_stream() -> None:
    gpt = jitter(tiny_gpt(n_layer=2)).double().eval()
    idx = tokens()
    forward = record_forward(gpt, idx)
    x, stream = gpt.embedding(idx), []
    for block in gpt.h:
        stream.append(x)
        x = x + block.attn(block.ln_1(x))
        stream.append(x)
        x = x + block.mlp(block.ln_2(x))
    stream.append(x)
    assert len(forward.read_BTD) == len(forward.state_BTD) == 5
    for kept in (forward.read_BTD, forward.state_BTD):
        assert all(torch.allclose(a, b) for a, b in zip(kept, stream, strict=True))
    assert torch.allclose(forward.hidden_BTD, gpt.hidden(idx))


def test_queries_and_keys_are_those_of_the_scores_after_norm_and_rotation() -> None:
    gpt = jitter(tiny_gpt(n_layer=2, positions="rope", qk_norm="rms")).eval()
    forward = record_forward(gpt, tokens())
    attention = gpt.h[0].attn
    q, *_ = attention._project(gpt.h[0].ln_1(forward.read_BTD[0]), None)
    weights = []
    attention.attend.register_forward_pre_hook(lambda _m, args: weights.append(args))
    attention(gpt.h[0].ln_1(forward.read_BTD[0]))
    assert torch.equal(forward.query_BHTK[0], weights[0][0])
    assert torch.equal(forward.key_BHTK[0], weights[0][1])
    assert forward.query_BHTK[0].square().mean(-1).allclose(torch.ones(3, 2, 12), atol=1e-5)  # qk_norm=rms
    assert not torch.allclose(forward.query_BHTK[0], F.rms_norm(q, q.shape[-1:]))  # rotated


def test_hooks_are_removed_and_a_repeated_layer_is_recorded_at_each_visit() -> None:
    visits = {"layers": [1], "repeats": 2, "start_fraction": None, "start_step": 0}
    gpt = tiny_gpt(recurrence="delayed_repeat", visits=visits).eval()
    forward = record_forward(gpt, tokens())
    assert [site.layer for site in forward.sites if site.kind == "attn"] == [0, 1, 1, 1, 2]
    assert len(forward.query_BHTK) == 5
    assert not any(module._forward_pre_hooks for module in gpt.modules())


def test_streams_and_maps_advance_the_streams_of_hyper_connections() -> None:
    gpt = jitter(tiny_gpt("hyperconn", n_layer=2)).double().eval()
    forward = record_forward(gpt, tokens())
    h = forward.streams_BTND
    for k, r_BTNN in enumerate(forward.map_BTNN):
        # What is left of H' - R H is B y: of rank one over the streams.
        written = h[k + 1] - r_BTNN @ h[k]
        assert torch.linalg.matrix_rank(written, rtol=1e-6).max() == 1
    assert torch.allclose(forward.state_BTD[-1], h[-1].mean(2))


@pytest.mark.parametrize("name", ["frac_connections", "generalized_hyperconn"])
def test_maps_of_parts_of_a_stream_advance_them(name: str) -> None:
    gpt = jitter(tiny_gpt(name, n_layer=2)).double().eval()
    idx = tokens()
    state = gpt.residual.begin(gpt.embedding(idx))
    site = gpt.sites[0]
    r_BTNN = gpt.residual.stream_map(state, site)
    after = gpt.residual.read(state, site)[1]
    assert torch.allclose(r_BTNN @ state[0], after[0])


def test_deep_cross_attention_has_no_state_before_its_end() -> None:
    forward = record_forward(tiny_gpt("deep_cross_attention").eval(), tokens())
    assert forward.state_BTD == "the strategy defines its end after the last site only"
    assert len(forward.read_BTD) == 7
