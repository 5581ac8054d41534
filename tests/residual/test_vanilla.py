"""Vanilla against nanoGPT."""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.models.gpt import GPT
from tests.oracle import LR, WEIGHT_DECAY, compare_model, groups_by_name
from tests.support import jitter, tiny_gpt


def nanogpt_hidden(gpt: GPT, idx: Tensor) -> Tensor:
    w = dict(gpt.named_parameters())

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    x = w["embedding.wte.weight"][idx] + w["embedding.wpe.weight"][torch.arange(idx.shape[1])]
    for i in range(gpt.config.n_layer):
        qkv = linear(f"h.{i}.attn.c_attn", norm(f"h.{i}.ln_1", x)).split(gpt.config.n_embd, dim=2)
        q, k, v = (part.unflatten(2, (gpt.config.n_head, -1)).transpose(1, 2) for part in qkv)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(f"h.{i}.attn.c_proj", y.transpose(1, 2).flatten(2))
        x = x + linear(f"h.{i}.mlp.c_proj", F.gelu(linear(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x))))
    return norm("ln_f", x)


def test_it_equals_its_source() -> None:
    """karpathy/nanoGPT @ 3adf61e, model.py, GPT.forward."""
    compare_model(jitter(tiny_gpt(bias=True)).double(), nanogpt_hidden)


def test_groups_are_the_sources() -> None:
    """karpathy/nanoGPT @ 3adf61e, model.py, configure_optimizers: tensors of two dimensions decay."""
    gpt = tiny_gpt(bias=True)
    expected = {name: (LR, WEIGHT_DECAY if p.dim() >= 2 else 0.0) for name, p in gpt.named_parameters()}
    assert groups_by_name(gpt) == expected
