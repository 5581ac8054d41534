"""Mix-LN against its source."""

import pytest
import torch

from src.models.gpt import GPT
from src.residual.mixln import MixLN
from tests.oracle import LR, compare_model, groups_by_name
from tests.residual.plain import stream_spec
from tests.support import jitter, tiny_gpt


def test_it_equals_its_source() -> None:
    """pixeli99/MixLN @ ff45826, peft_pretraining/modeling_llama.py: `post_pre`, with POST_NUM=1 of 4 layers."""
    gpt = jitter(tiny_gpt("mixln", n_layer=4)).double()

    def oracle(gpt: GPT, idx: torch.Tensor) -> torch.Tensor:
        x = gpt.embedding(idx)
        for layer, block in enumerate(gpt.h):
            if layer < 1:
                after_attention, after_mlp = gpt.residual.norms
                x = after_attention(x + block.attn(x))
                x = after_mlp(x + block.mlp(x))
            else:
                x = x + block.attn(block.ln_1(x))
                x = x + block.mlp(block.ln_2(x))
        return gpt.ln_f(x)

    compare_model(gpt, oracle)


def test_norms_start_at_one_without_decay() -> None:
    """Compare with `LlamaRMSNorm`, and with --weight_decay 0 of the source's scripts."""
    gpt = tiny_gpt("mixln", n_layer=4)
    assert all(torch.equal(norm.weight, torch.ones(16)) for norm in gpt.residual.norms)
    norms = {name: rate for name, rate in groups_by_name(gpt).items() if "norm" in name or "ln_" in name}
    assert len(norms) == 9
    assert set(norms.values()) == {(LR, 0.0)}


@pytest.mark.parametrize(("n_layer", "n_post"), [(12, 3), (3, 1), (2, 1)])
def test_a_quarter_of_the_layers_is_post_ln(n_layer: int, n_post: int) -> None:
    """The README of the source sets POST_NUM=3 for 12 layers."""
    assert MixLN(stream_spec(n_layer), post_fraction=0.25).n_post == n_post


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_a_share_that_is_none_is_an_error(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"residual.post_fraction must be in \(0, 1\], got"):
        MixLN(stream_spec(), post_fraction=fraction)
