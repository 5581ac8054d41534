"""Attention probabilities, entropy and sink mass against softmax by hand."""

import math

import torch
from torch.nn import functional as F

from src.analysis.attention import attention_weights, entropies, measure_attention, sink_masses
from src.analysis.forward import record_forward
from src.models.documents import number_documents
from tests.support import jitter, tiny_gpt, tokens


def test_uniform_attention_has_entropy_1_and_the_sink_mass_of_harmonic_numbers() -> None:
    zeros = torch.zeros(2, 6, 4)
    weights = attention_weights(zeros, zeros)
    assert torch.allclose(entropies(weights), torch.ones(2))
    harmonic = sum(1 / t for t in range(1, 7)) / 6
    assert torch.allclose(sink_masses(weights), torch.full((2,), harmonic))


def test_attention_on_the_first_token_alone_has_entropy_0_and_sink_mass_1() -> None:
    key = torch.zeros(1, 6, 4)
    key[0, 0] = 1000.0
    weights = attention_weights(torch.ones(1, 6, 4), key)
    assert torch.equal(sink_masses(weights), torch.ones(1))
    assert torch.equal(entropies(weights), torch.zeros(1))


def test_the_weights_are_those_with_which_the_model_mixes_values() -> None:
    gpt = jitter(tiny_gpt(n_layer=2, qk_norm="rms", positions="rope")).double().eval()
    forward = record_forward(gpt, tokens())
    seen = []
    hook = gpt.h[1].attn.attend.register_forward_hook(lambda _m, args, out: seen.append((args[2], out)))
    gpt.hidden(tokens())
    hook.remove()
    value_BHTK, mixed_BHTK = seen[0]
    for i in range(3):
        weights = attention_weights(forward.query_BHTK[1][i], forward.key_BHTK[1][i])
        assert torch.allclose(weights @ value_BHTK[i], mixed_BHTK[i])


def test_a_models_measures_equal_a_loop_over_queries() -> None:
    gpt = jitter(tiny_gpt(n_layer=2)).double().eval()
    forward = record_forward(gpt, tokens(1))
    found = measure_attention(forward)
    assert found["entropy"].shape == found["sink_mass"].shape == (1, 2, 2)
    q, k = forward.query_BHTK[1][0, 1], forward.key_BHTK[1][0, 1]
    entropy, mass = [], []
    for t in range(12):
        p = F.softmax(k[: t + 1] @ q[t] / math.sqrt(8), dim=0)
        mass.append(p[0].item())
        if t:
            entropy.append(-(p * p.log()).sum().item() / math.log(t + 1))
    assert math.isclose(found["entropy"][0, 1, 1].item(), sum(entropy) / 11, rel_tol=1e-9)
    assert math.isclose(found["sink_mass"][0, 1, 1].item(), sum(mass) / 12, rel_tol=1e-9)
    rate = (found["sink_mass"] > 0.3).double().mean(-1)
    assert torch.equal(found["sink_rate"], rate)


def test_sequences_of_one_token_have_no_entropy() -> None:
    found = measure_attention(record_forward(tiny_gpt(n_layer=1).eval(), tokens(2, 1)))
    assert found["entropy"] == "sequences of one token have one key"


def test_a_window_counts_the_tokens_that_it_has() -> None:
    gpt = tiny_gpt(n_layer=2, window_pattern="S", window_size=3).double().eval()
    torch.nn.init.zeros_(gpt.h[0].attn.c_attn.weight)  # attention is uniform within the window
    found = measure_attention(record_forward(gpt, tokens(1)))
    assert torch.allclose(found["entropy"][0, 0], torch.ones(2, dtype=torch.float64))
    assert torch.allclose(found["sink_mass"][0, 0], torch.full((2,), (1 + 1 / 2 + 1 / 3 + 1 / 4) / 12).double())


def test_documents_have_a_first_token_each_and_a_token_alone_has_no_entropy() -> None:
    gpt = jitter(tiny_gpt(n_layer=2, window_pattern="SL", window_size=3)).double().eval()
    idx = tokens(2)
    idx[idx == 7] = 8
    idx[0, [4, 5]] = 7  # documents of 4, 1 and 7 tokens; the other sequence is one document
    forward = record_forward(gpt, idx, number_documents(idx, 7))
    found = measure_attention(forward)
    starts = [0, 0, 0, 0, 4, *[5] * 7]
    for site, window in ((0, 3), (1, 12)):
        q, k = forward.query_BHTK[site][0, 1], forward.key_BHTK[site][0, 1]
        entropy, mass = [], []
        for t, start in enumerate(starts):
            first = max(start, t - window)
            p = F.softmax(k[first : t + 1] @ q[t] / math.sqrt(8), dim=0)
            mass.append(p[0].item() if first == start else 0.0)
            if len(p) > 1:
                entropy.append(-(p * p.log()).sum().item() / math.log(len(p)))
        assert len(entropy) == 9
        assert math.isclose(found["entropy"][0, site, 1].item(), sum(entropy) / 9, rel_tol=1e-9)
        assert math.isclose(found["sink_mass"][0, site, 1].item(), sum(mass) / 12, rel_tol=1e-9)
    alone = measure_attention(record_forward(gpt, idx[1:]))
    assert torch.equal(found["sink_mass"][1], alone["sink_mass"][0])
    assert torch.allclose(found["entropy"][1], alone["entropy"][0])
