"""Logit lens against the head by hand; after the last block it is the model."""

import torch
from torch.nn import functional as F

from src.analysis.forward import record_forward
from src.analysis.lens import measure_lens, predict
from tests.support import jitter, tiny_gpt, tokens


def test_the_lens_is_the_final_norm_and_the_head_on_the_stream_after_each_block() -> None:
    gpt = jitter(tiny_gpt(n_layer=2)).double().eval()
    idx, targets = tokens(), tokens(seed=1)
    found = measure_lens(gpt, record_forward(gpt, idx), targets)
    x = gpt.embedding(idx)
    logits = [gpt.ln_f(x) @ gpt.embedding.get_lm_head_weight().T]
    for block in gpt.h:
        x = x + block.attn(block.ln_1(x))
        x = x + block.mlp(block.ln_2(x))
        logits.append(gpt.ln_f(x) @ gpt.embedding.get_lm_head_weight().T)
    for b, logits_BTV in enumerate(logits):
        loss = F.cross_entropy(logits_BTV.transpose(1, 2), targets, reduction="none").mean(1)
        assert torch.allclose(found["loss"][:, b].double(), loss, atol=1e-5)
        same = (logits_BTV.argmax(-1) == logits[-1].argmax(-1)).double().mean(1)
        assert torch.equal(found["agreement"][:, b], same)
    assert torch.equal(found["agreement"][:, -1], torch.ones(3))


def test_attention_residuals_read_their_end_query_after_each_block() -> None:
    gpt = jitter(tiny_gpt("attnres", n_layer=2)).eval()
    idx, targets = tokens(), tokens(seed=1)
    found = measure_lens(gpt, record_forward(gpt, idx), targets)
    assert torch.allclose(found["loss"][:, -1], gpt.token_losses(idx, targets).mean(1), atol=1e-5)
    trace = gpt.trace(idx)[1]
    sources = torch.stack((trace.x0_BTD, *trace.y_BTD[:2]))
    key = gpt.residual.query_QD[-1] * gpt.residual.key_gain_QD[-1]
    share = (F.rms_norm(sources, (16,), eps=gpt.residual.eps) @ key).softmax(0)
    x = gpt.ln_f((share.unsqueeze(-1) * sources).sum(0))
    assert torch.allclose(found["loss"][:, 1], predict(gpt, x, targets)[0].mean(1), atol=1e-5)


def test_without_states_there_is_no_lens() -> None:
    gpt = tiny_gpt("deep_cross_attention").eval()
    found = measure_lens(gpt, record_forward(gpt, tokens()), tokens(seed=1))
    assert found["loss"] == found["agreement"] == "the strategy defines its end after the last site only"
