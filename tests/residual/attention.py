"""Attention written out, for the oracles of strategies that act inside it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def attend(attn: nn.Module, h_BTD: Tensor, mix: Callable[[Tensor], Tensor] = lambda v: v) -> Tensor:
    """Return the output of an attention for its normed input; `mix` replaces the values [B, T, H, K]."""
    B, T, D = h_BTD.shape
    q, k, v = (part.view(B, T, attn.n_head, -1) for part in attn.c_attn(h_BTD).chunk(3, -1))
    score = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    weight = score.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
    return attn.c_proj(torch.einsum("bhts,bshk->bthk", weight, mix(v)).reshape(B, T, D))
