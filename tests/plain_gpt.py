"""Reference forward of a GPT with the vanilla strategy and LayerNorm, from its weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from src.models.gpt import GPT


def plain_logits(
    gpt: GPT,
    idx: Tensor,
    *,
    stream: Mapping[int, Tensor] | None = None,
    values: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Return logits [B, T, V]; `stream` and `values` map layers to additions to the stream and to attention values."""
    w, config = dict(gpt.named_parameters()), gpt.config
    x = w["embedding.wte.weight"][idx]
    if config.positions == "learned":
        x = x + w["embedding.wpe.weight"][: idx.shape[1]]
    for layer in range(config.n_layer):
        if stream and layer in stream:
            x = x + stream[layer]
        value = values.get(layer) if values else None
        x = x + branch(w, f"h.{layer}.ln_1", x, lambda h, v=value, n=layer: attention(gpt, w, f"h.{n}.attn", h, v))  # type: ignore[misc]
        x = x + branch(w, f"h.{layer}.ln_2", x, lambda h, n=layer: mlp(w, f"h.{n}.mlp", h))  # type: ignore[misc]
    return norm(w, "ln_f", x) @ gpt.embedding.get_lm_head_weight().T


def branch(w, ln, x, f):  # type: ignore[no-untyped-def]
    """Apply a sublayer with the norms whose weights exist."""
    y = f(norm(w, ln, x) if f"{ln}.weight" in w else x)
    return norm(w, f"{ln}_out", y) if f"{ln}_out.weight" in w else y


def norm(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]


def mlp(w: Mapping[str, Tensor], name: str, h: Tensor) -> Tensor:
    return F.gelu(h @ w[f"{name}.c_fc.weight"].T) @ w[f"{name}.c_proj.weight"].T


def attention(gpt: GPT, w: Mapping[str, Tensor], name: str, h: Tensor, value: Tensor | None) -> Tensor:
    """Compute attention head by head, query by query."""
    q, k, v = (h @ part.T for part in w[f"{name}.c_attn.weight"].chunk(3))
    if value is not None:
        v = v + value
    heads = []
    for qh, kh, vh in zip(*(part.chunk(gpt.config.n_head, -1) for part in (q, k, v)), strict=True):
        if gpt.config.positions == "rope":
            qh, kh = rotate_complex(qh), rotate_complex(kh)
        rows = []
        for t in range(h.shape[1]):
            score = (kh[:, : t + 1] * qh[:, t : t + 1]).sum(-1) / math.sqrt(qh.shape[-1])
            rows.append((score.softmax(-1)[..., None] * vh[:, : t + 1]).sum(1))
        heads.append(torch.stack(rows, 1))
    return torch.cat(heads, -1) @ w[f"{name}.c_proj.weight"].T


def rotate_complex(x: Tensor) -> Tensor:
    """Multiply channels i and i + K/2, as a complex number, by exp(i t 10000^(-2 i / K))."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half], x[..., half:])
    angle = [[t * 10000 ** (-2 * i / x.shape[-1]) for i in range(half)] for t in range(x.shape[1])]
    pairs = pairs * torch.exp(1j * torch.tensor(angle, dtype=torch.float64))
    return torch.cat((pairs.real, pairs.imag), -1)
