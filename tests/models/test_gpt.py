"""Initial weights, counts and loss of the trunk."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from src.analysis.forward import record_forward
from src.analysis.leave_out import measure_leave_out
from src.analysis.lens import measure_lens
from src.embedding.tied import TiedEmbedding
from src.evaluation.generation import predict_next
from src.models.config import GPTConfig
from src.models.flops import count_flops_per_token
from src.models.gpt import GPT
from src.norm.layernorm import LayerNorm
from src.residual.vanilla import Vanilla
from tests.support import jitter, tiny_gpt, tokens


def test_initial_weights_are_gpt2s() -> None:
    gpt = tiny_gpt(n_layer=8, n_embd=128, vocab_size=2000, bias=True)
    for name, param in gpt.named_parameters():
        if "ln_" in name or name.endswith("bias"):
            assert torch.equal(param, torch.full_like(param, float("ln_" in name and "weight" in name))), name
        else:
            std = 0.02 / math.sqrt(16) if "c_proj" in name else 0.02
            assert param.std().item() == pytest.approx(std, rel=0.06), name
            assert abs(param.mean().item()) < 3 * std / math.sqrt(param.numel()) * 1.5, name


def test_an_untied_head_starts_at_zero_and_the_first_loss_is_ln_v() -> None:
    gpt = tiny_gpt(embedding="untied")
    assert gpt.embedding.get_lm_head_weight().abs().max() == 0
    assert gpt.loss(tokens(), tokens(seed=1)).item() == pytest.approx(math.log(64), abs=1e-6)


def test_a_soft_cap_bounds_logits_losses_and_what_each_sublayer_is_worth() -> None:
    capped, plain = (jitter(tiny_gpt(logit_softcap=cap)).double().eval() for cap in (0.5, None))
    logits = 0.5 * torch.tanh(plain(tokens()) / 0.5)
    losses = F.cross_entropy(logits.transpose(1, 2), tokens(seed=1), reduction="none")
    assert plain(tokens()).abs().max() > 1
    assert torch.allclose(capped(tokens()), logits, rtol=0, atol=1e-12)
    assert torch.allclose(capped.token_losses(tokens(), tokens(seed=1)), losses, rtol=0, atol=1e-12)
    assert capped.loss(tokens(), tokens(seed=1)).item() == pytest.approx(losses.mean().item(), abs=1e-12)
    assert predict_next(capped, tokens().tolist(), 64) == logits[:, -1].argmax(-1).tolist()
    lens = measure_lens(capped, record_forward(capped, tokens()), tokens(seed=1))["loss"]
    assert torch.allclose(lens[:, -1].double(), losses.mean(1), atol=1e-5)  # type: ignore[index, union-attr]
    left_out = measure_leave_out(capped, tokens(), tokens(seed=1))["loss"]
    assert torch.allclose(left_out, losses.mean(1), rtol=0, atol=1e-12)  # type: ignore[arg-type]


def test_a_tied_heads_first_loss_is_near_ln_v() -> None:
    gpt = tiny_gpt(n_embd=64, vocab_size=512)
    idx = tokens(8, vocab_size=512)
    assert gpt.loss(idx, tokens(8, vocab_size=512, seed=1)).item() == pytest.approx(math.log(512), rel=0.01)


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    gpt = tiny_gpt()
    assert torch.rand(1) == expected
    assert torch.equal(gpt(tokens()), tiny_gpt()(tokens()))
    assert not torch.equal(gpt(tokens()), tiny_gpt(seed=1)(tokens()))


def test_gpt2_medium_has_its_published_size_and_flops() -> None:
    sizes = GPTConfig(24, 16, 1024, 1024, 50304, False, 0.0, "none", "pre", "learned")
    with torch.device("meta"):
        gpt = GPT(sizes, residual=Vanilla, norm=partial(LayerNorm, eps=1e-5), embedding=TiedEmbedding, seed=0)
    body = 24 * 12 * 1024**2 + 49 * 1024 + 50304 * 1024
    assert gpt.n_params(positions=False) == body == 353_551_360
    assert gpt.n_params(positions=True) == body + 1024 * 1024
    assert count_flops_per_token(gpt) == pytest.approx(2.423e9, rel=1e-3)


def test_sites_are_attention_then_mlp_of_each_layer() -> None:
    sites = tiny_gpt(n_layer=2).sites
    assert [(s.index, s.layer, s.kind, s.opens_block, s.closes_block) for s in sites] == [
        (0, 0, "attn", True, False),
        (1, 0, "mlp", False, True),
        (2, 1, "attn", True, False),
        (3, 1, "mlp", False, True),
    ]
