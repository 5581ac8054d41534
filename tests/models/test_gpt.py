"""Initial weights, counts and loss of the trunk."""

import math
from functools import partial

import pytest
import torch

from src.embedding.tied import TiedEmbedding
from src.models.config import GPTConfig
from src.models.flops import count_flops_per_token
from src.models.gpt import GPT
from src.norm.layernorm import LayerNorm
from src.residual.vanilla import Vanilla
from tests.support import tiny_gpt, tokens


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
