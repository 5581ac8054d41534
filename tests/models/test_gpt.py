"""The trunk: GPT-2's logits, its initial weights, its counts, its loss."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from src.embedding.tied import TiedEmbedding
from src.models import loss as loss_module
from src.models.config import GPTConfig
from src.models.gpt import GPT
from src.models.loss import linear_cross_entropy, token_losses
from src.norm.layernorm import LayerNorm
from src.residual.base import QKV, Site
from src.residual.vanilla import Vanilla
from tests.support import SIZES, jitter, tiny_gpt, tokens


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
    sizes = GPTConfig(24, 16, 1024, 1024, 50304, False, 0.0, "none")
    with torch.device("meta"):
        gpt = GPT(sizes, residual=Vanilla, norm=partial(LayerNorm, eps=1e-5), embedding=TiedEmbedding, seed=0)
    body = 24 * 12 * 1024**2 + 49 * 1024 + 50304 * 1024
    assert gpt.n_params(positions=False) == body == 353_551_360
    assert gpt.n_params(positions=True) == body + 1024 * 1024
    assert gpt.flops_per_token() == pytest.approx(2.423e9, rel=1e-3)


def test_sites_are_attention_then_mlp_of_each_layer() -> None:
    sites = tiny_gpt(n_layer=2).sites
    assert [(s.index, s.layer, s.kind, s.opens_block, s.closes_block) for s in sites] == [
        (0, 0, "attn", True, False),
        (1, 0, "mlp", False, True),
        (2, 1, "attn", True, False),
        (3, 1, "mlp", False, True),
    ]


# ---- the loss


def plain_loss(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(x @ w.T, target)


def inputs(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 8, generator=generator, dtype=dtype, requires_grad=True)
    w = torch.randn(40, 8, generator=generator, dtype=dtype, requires_grad=True)
    return x, w, torch.randint(40, (n,), generator=generator)


@pytest.mark.parametrize("n", [1, 5, 256, 257, 700])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_the_chunked_loss_is_the_plain_one_in_value_and_gradient(
    n: int, dtype: torch.dtype, tolerance: float
) -> None:
    x, w, target = inputs(n, dtype)
    ours, plain = linear_cross_entropy(x, w, target), plain_loss(x, w, target)
    assert torch.allclose(ours, plain, rtol=tolerance, atol=tolerance)
    for a, b in zip(torch.autograd.grad(3 * ours, (x, w)), torch.autograd.grad(3 * plain, (x, w)), strict=True):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def test_its_gradient_is_that_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", 2)
    x, w, target = inputs(5, torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: linear_cross_entropy(a, b, target), (x, w))


def test_extreme_logits_stay_finite() -> None:
    x, w, target = inputs(5, torch.float32)
    ours = linear_cross_entropy(1e4 * x, w, target)
    assert torch.allclose(ours, plain_loss(1e4 * x, w, target), rtol=1e-5)


def test_under_bf16_it_is_close_and_its_gradients_are_float32() -> None:
    x, w, target = inputs(300, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(x, w, target)
    dx, dw = torch.autograd.grad(ours, (x, w))
    assert dx.dtype == dw.dtype == torch.float32
    plain = plain_loss(x, w, target)
    assert ours.item() == pytest.approx(plain.item(), rel=2e-2)
    for a, b in zip((dx, dw), torch.autograd.grad(plain, (x, w)), strict=True):
        assert (a - b).norm() < 2e-2 * b.norm()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_the_logits_of_a_batch_never_exist_at_once() -> None:
    gpt = tiny_gpt(vocab_size=2048, block_size=64)
    idx = tokens(32, 64, 2048)
    with Largest() as largest:
        gpt.loss(idx, idx).backward()
    assert largest.numel <= 256 * 2048 < idx.numel() * 2048 // 4


def test_token_losses_are_the_terms_of_the_loss() -> None:
    gpt, idx, target = jitter(tiny_gpt()), tokens(), tokens(seed=1)
    each = gpt.token_losses(idx, target)
    assert each.shape == (3, 12)
    plain = F.cross_entropy(gpt(idx).flatten(0, 1), target.flatten(), reduction="none")
    assert torch.allclose(each.flatten(), plain, atol=1e-5)
    assert each.mean().item() == pytest.approx(gpt.loss(idx, target).item(), rel=1e-6)
    x, w, t = inputs(300, torch.float64)
    assert torch.allclose(token_losses(x, w, t).mean(), linear_cross_entropy(x, w, t))


# ---- what a strategy may do at a site


class Views(Vanilla):
    def read(self, state: Tensor, site: Site) -> tuple[Any, Tensor]:
        return (QKV(state, state, state) if site.kind == "attn" else state), state


@pytest.mark.parametrize("bias", [True, False])
def test_three_equal_views_are_the_fused_projection(bias: bool) -> None:
    norm = partial(LayerNorm, eps=1e-5)
    sizes = GPTConfig(**{**SIZES, "bias": bias})
    models = [
        jitter(GPT(sizes, residual=r, norm=norm, embedding=TiedEmbedding, seed=0)).double()
        for r in (Vanilla, Views)
    ]
    a, b = (gpt(tokens()) for gpt in models)
    assert torch.allclose(a, b, atol=1e-12)


class Tapped(Vanilla):
    taps_kv = True
    seen: list[tuple[int, torch.Size]]

    def tap_kv(self, state: Tensor, site: Site, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.seen.append((site.index, k.shape))
        return k, torch.zeros_like(v), state


def test_a_tap_sees_keys_and_values_of_each_attention_site_and_may_replace_them() -> None:
    norm = partial(LayerNorm, eps=1e-5)
    gpt = GPT(GPTConfig(**SIZES), residual=Tapped, norm=norm, embedding=TiedEmbedding, seed=0)
    gpt.residual.seen = []
    x = gpt.hidden(tokens())
    assert gpt.residual.seen == [(k, torch.Size((3, 2, 12, 8))) for k in (0, 2, 4)]
    plain = tiny_gpt()
    for block in plain.h:
        nn.init.zeros_(block.attn.c_proj.weight)
    assert torch.allclose(x, plain.hidden(tokens()), atol=1e-6)


def test_nanogpts_weights_are_taken_by_name_and_wrong_shapes_refused() -> None:
    gpt = jitter(tiny_gpt())
    theirs = {
        f"transformer.{key.removeprefix('embedding.')}": value.clone()
        for key, value in gpt.state_dict().items()
    }
    theirs["lm_head.weight"] = theirs["transformer.wte.weight"]
    other = tiny_gpt(seed=3)
    other.load_nanogpt_state_dict(theirs)
    assert torch.equal(other(tokens()), gpt(tokens()))
    with pytest.raises(RuntimeError, match="size mismatch"):
        tiny_gpt(n_embd=32).load_nanogpt_state_dict(theirs)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("n_layer", 0, "model.n_layer must be at least 1, got 0"),
        ("vocab_size", -1, "model.vocab_size must be at least 1, got -1"),
        ("n_embd", 17, "multiple of model.n_head, got 17 and 2; the nearest is model.n_embd=16"),
        ("dropout", 1.0, r"model.dropout must be in \[0, 1\), got 1.0"),
        ("gelu_approximate", "fast", "none .exact. or tanh"),
    ],
)
def test_sizes_that_no_model_can_have_are_refused(key: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GPTConfig(**{**SIZES, key: value})
