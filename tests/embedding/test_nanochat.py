"""nanochat's embedding and trunk beside its code, with equal weights."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.models.gpt import GPT
from tests.oracle import assert_same
from tests.support import component, composed_settings, jitter, option, tiny_gpt, tokens

D, H, K = 32, 2, 16
TRUNK = {"n_embd": D, "positions": "rope", "rope_base": 100000.0, "qk_norm": "rms", "qk_gain": 1.2}
TRUNK |= {"zero_init_outputs": True, "logit_softcap": 15.0, "window_pattern": "SSSL", "window_size": 3}


def norm(x: Tensor, gain: Tensor | None = None) -> Tensor:
    eps = torch.finfo(x.dtype).eps if gain is None else 1e-5
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return y if gain is None else y * gain


def turn(x: Tensor) -> Tensor:
    """Turn pairs by -theta, as `apply_rotary_emb` of the source; x is [B, T, H, K]."""
    angle = torch.outer(torch.arange(x.shape[1]).double(), 1 / 100000 ** (torch.arange(0, K, 2).double() / K))
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x1, x2 = x[..., : K // 2], x[..., K // 2 :]
    return torch.cat([x1 * cos + x2 * sin, x1 * -sin + x2 * cos], 3)


def attend(gpt: GPT, layer: int, h: Tensor, idx: Tensor, window: int) -> Tensor:
    B, T, _ = h.shape
    attn, e = gpt.h[layer].attn, gpt.embedding  # type: ignore[union-attr]
    q, k, v = (part.view(B, T, H, K) for part in (h @ attn.c_attn.weight.T).chunk(3, -1))  # type: ignore[union-attr, operator]
    # This project turns by +theta: the same with the halves of every head exchanged.
    q, k = (x.roll(K // 2, -1) for x in (q, k))
    n_layer, V = gpt.config.n_layer, gpt.config.vocab_size
    if layer % 2 == (n_layer - 1) % 2:
        ve = e.table_RD[layer // 2 * V : (layer // 2 + 1) * V][idx].view(B, T, H, K)  # type: ignore[index, operator]
        v = v + 3 * torch.sigmoid(h[..., :12] @ e.gate_JHC[layer // 2].T).unsqueeze(-1) * ve  # type: ignore[index, union-attr]
    q, k = norm(turn(q)) * 1.2, norm(turn(k)) * 1.2
    distance = torch.arange(T)[:, None] - torch.arange(T)
    seen = (distance >= 0) & (distance <= window)
    scores = torch.einsum("bqhk,bshk->bhqs", q, k) / K**0.5
    y = torch.einsum("bhqs,bshk->bqhk", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
    return y.reshape(B, T, D) @ attn.c_proj.weight.T  # type: ignore[union-attr, operator, no-any-return]


def oracle(gpt: GPT, idx: Tensor) -> Tensor:
    """karpathy/nanochat @ 92d63d4, nanochat/gpt.py, `GPT.forward` without backout; norms have gains here."""
    e, w = gpt.embedding, dict(gpt.named_parameters())
    x = norm(w["embedding.wte.weight"][idx])
    gate = w["embedding.smear"] * torch.sigmoid(x[:, 1:, :24] @ e.smear_gate_C.unsqueeze(-1))  # type: ignore[operator]
    x = x0 = torch.cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]], dim=1)
    for i in range(gpt.config.n_layer):
        window = 3 if "SSSL"[i % 4] == "S" and i < gpt.config.n_layer - 1 else 99
        x = w["residual.keep_L"][i] * x + w["residual.blend_L"][i] * x0
        x = x + attend(gpt, i, norm(x, w[f"h.{i}.ln_1.weight"]), idx, window)
        hidden = norm(x, w[f"h.{i}.ln_2.weight"]) @ w[f"h.{i}.mlp.c_fc.weight"].T
        x = x + F.relu(hidden).square() @ w[f"h.{i}.mlp.c_proj.weight"].T
    logits = norm(x, w["ln_f.weight"]) @ w["embedding.lm_head.weight"].T
    return 15 * torch.tanh(logits / 15)


@pytest.mark.parametrize("n_layer", [3, 5])
def test_it_equals_its_source(n_layer: int) -> None:
    """karpathy/nanochat @ 92d63d4, nanochat/gpt.py: trunk, stream and embedding."""
    parts = {"norm": "rmsnorm", "mlp": "relu2", "embedding": "nanochat"}
    gpt = jitter(tiny_gpt("x0_blend_nanochat", **parts, n_layer=n_layer, **TRUNK)).double()  # type: ignore[arg-type]
    found, wanted = gpt(tokens()), oracle(gpt, tokens())
    assert wanted.abs().max() > 1
    assert_same(found, wanted, list(gpt.parameters()), 1e-10)


def test_the_shipped_sizes_are_the_sources() -> None:
    settings = composed_settings("model=nanochat_d12")
    own = option("model", "nanochat_d12")
    shipped = {key: own[key] for key in TRUNK if key not in ("n_embd", "window_size")}
    assert shipped == {key: TRUNK[key] for key in shipped}
    model = settings.model
    assert (model.n_layer, model.n_head, model.head_size, model.n_kv) == (12, 6, 128, 6)
    assert [512 if window else None for window in model.windows] == list(model.windows)
    names = [getattr(part, "func", part).__name__ for part in (settings.norm, settings.embedding, settings.mlp)]
    assert names == ["RMSNorm", "UntiedEmbedding", "ReLU2"]


def test_initial_values_are_the_sources() -> None:
    gpt = tiny_gpt(embedding="nanochat", n_embd=64, vocab_size=512)
    e = gpt.embedding
    assert e.get_lm_head_weight().std().item() == pytest.approx(0.001, rel=0.02)
    assert e.get_parameter("table_RD").std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert e.get_parameter("table_RD").abs().max().item() <= (3 / 64) ** 0.5
    for name in ("gate_JHC", "smear_gate_C"):
        assert 0 <= e.get_parameter(name).min() <= e.get_parameter(name).max() <= 0.02
    assert e.get_parameter("smear").item() == 0
    assert component("embedding", "nanochat").func.__name__ == "NanochatEmbedding"
