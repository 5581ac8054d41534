"""QK-norm beside the record code and the paper, and its place between a strategy's tap and the rotation."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.models.config import QK_NORMS
from src.models.formats.huggingface import write_gpt2
from src.models.gpt import GPT
from src.norm.layernorm import LayerNorm
from src.residual.base import Site
from src.residual.vanilla import Vanilla
from tests.oracle import LR, compare_model, groups_by_name
from tests.support import component, composed_settings, jitter, tiny_gpt, tokens


def modded_nanogpt(x: Tensor) -> Tensor:
    """`norm` of KellerJordan/modded-nanogpt @ f411b3d, train_gpt.py, written out."""
    return x / ((x**2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def attention(gpt: GPT, layer: int, h: Tensor) -> Tensor:
    """Attention of one layer with queries and keys [B, T, H, K], as the record code lays them out."""
    attn = gpt.h[layer].attn
    q, k, v = (part.unflatten(-1, (2, 8)) for part in (h @ attn.c_attn.weight.T).chunk(3, -1))
    if gpt.config.qk_norm == "rms":
        q, k = modded_nanogpt(q), modded_nanogpt(k)
    else:  # arXiv 2302.05442, section 2: LayerNorm of queries and keys, without biases
        gains = attn.qk_norm.q_gain_K, attn.qk_norm.k_gain_K
        q, k = (
            ((x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt() * g)
            for x, g in zip((q, k), gains, strict=True)
        )
    if gpt.config.positions == "rope":
        half, T = 4, h.shape[1]
        angle = torch.outer(torch.arange(T).double(), 10000.0 ** (-torch.arange(half).double() / half))[None, :, None]
        q, k = (
            torch.cat(
                (
                    x[..., :half] * angle.cos() - x[..., half:] * angle.sin(),
                    x[..., half:] * angle.cos() + x[..., :half] * angle.sin(),
                ),
                -1,
            )
            for x in (q, k)
        )
    score = torch.einsum("bthk,bshk->bhts", q, k) / 8**0.5
    score = score.masked_fill(~torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).tril(), -torch.inf)
    y = torch.einsum("bhts,bshk->bthk", score.softmax(-1), v)
    return y.flatten(-2) @ attn.c_proj.weight.T


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_it_equals_its_source(kind: str, positions: str) -> None:
    """KellerJordan/modded-nanogpt @ f411b3d, train_gpt.py (rms); arXiv 2302.05442, section 2 (layer)."""

    def oracle(gpt: GPT, idx: Tensor) -> Tensor:
        x: Tensor = gpt.embedding(idx)
        for layer, block in enumerate(gpt.h):
            x = x + attention(gpt, layer, block.ln_1(x))
            u = block.ln_2(x)
            x = x + F.gelu(u @ block.mlp.c_fc.weight.T) @ block.mlp.c_proj.weight.T
        return gpt.ln_f(x)

    compare_model(jitter(tiny_gpt(qk_norm=kind, positions=positions)).double(), oracle)


def test_none_has_no_parameters_and_changes_no_bit() -> None:
    one, two = tiny_gpt(), tiny_gpt(qk_norm="none")
    assert list(one.state_dict()) == list(two.state_dict())
    assert torch.equal(one(tokens()), two(tokens()))
    assert not torch.allclose(one(tokens()), tiny_gpt(qk_norm="rms")(tokens()))


def test_gains_start_at_one_and_do_not_decay() -> None:
    gpt = tiny_gpt(qk_norm="layer")
    gains = {name: p for name, p in gpt.named_parameters() if "qk_norm" in name}
    assert len(gains) == 6
    assert all(torch.equal(p, torch.ones(8)) for p in gains.values())
    assert {groups_by_name(gpt)[name] for name in gains} == {(LR, 0.0)}
    assert not [name for name, _ in tiny_gpt(qk_norm="rms").named_parameters() if "qk_norm" in name]


class Large(Vanilla):
    """Strategy that multiplies queries and keys in its tap."""

    taps_qkv = True

    def tap_qkv(
        self, state: Tensor, site: Site, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return 1e3 * q, 1e2 * k, v, state


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_it_follows_the_tap_of_a_strategy(kind: str) -> None:
    plain = jitter(tiny_gpt(qk_norm=kind)).double()
    parts = {"norm": partial(LayerNorm, eps=1e-5), "embedding": component("embedding", "tied")}
    tapped = GPT(plain.config, residual=Large, seed=0, **parts).double()
    tapped.load_state_dict(plain.state_dict())
    assert torch.allclose(tapped(tokens()), plain(tokens()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_under_bf16_it_is_computed_in_float32(kind: str) -> None:
    gpt = jitter(tiny_gpt(qk_norm=kind))
    q, k = (1e3 * torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        normed = gpt.h[0].attn.qk_norm(q.bfloat16(), k.bfloat16())
    exact = gpt.h[0].attn.qk_norm(q.bfloat16().float(), k.bfloat16().float())
    for a, b in zip(normed, exact, strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.bfloat16())


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_equal_queries_and_keys_of_zero_give_finite_gradients(kind: str) -> None:
    gpt = tiny_gpt(qk_norm=kind)
    torch.nn.init.zeros_(gpt.h[0].attn.c_attn.weight)
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gpt.parameters())


def test_it_is_not_gpt2(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"this model differs in model\.qk_norm=rms"):
        write_gpt2(tiny_gpt(qk_norm="rms"), tmp_path)


def test_a_run_stores_it_only_where_it_changes_something() -> None:
    assert "qk_norm" not in composed_settings().config["model"]  # so a run of an earlier version is equal
    assert composed_settings("model.qk_norm=rms").config["model"]["qk_norm"] == "rms"
    assert composed_settings("model.qk_norm=layer").model.qk_norm in QK_NORMS
