"""Rotary positions: rotations, and scores that depend on differences of positions only."""

import pytest
import torch

from src.models.rotary import Rope, rotate
from tests.plain_gpt import rotate_complex
from tests.support import jitter, tiny_gpt, tokens


def heads(T: int = 7) -> torch.Tensor:
    return torch.randn(2, 3, T, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_pairs_are_rotated_by_their_angle() -> None:
    x = heads()
    assert torch.allclose(rotate(x, Rope()).flatten(0, 1), rotate_complex(x.flatten(0, 1)))
    assert torch.equal(rotate(x, Rope())[:, :, 0], x[:, :, 0])


def test_lengths_are_kept_and_scores_depend_on_the_distance_only() -> None:
    q, k = heads(), heads().roll(1, 0)
    assert torch.allclose(rotate(q, Rope()).norm(dim=-1), q.norm(dim=-1))
    same_q, same_k = (x[:, :, :1].expand(-1, -1, 7, -1) for x in (q, k))
    score = rotate(same_q, Rope()) @ rotate(same_k, Rope()).transpose(-1, -2)
    for distance in range(-6, 7):
        diagonal = score.diagonal(distance, -2, -1)
        assert torch.allclose(diagonal, diagonal[..., :1].expand_as(diagonal))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_is_kept_and_angles_are_float32(dtype: torch.dtype) -> None:
    x = heads(1000).to(dtype)
    assert rotate(x, Rope()).dtype == dtype
    assert (rotate(x, Rope()).double() - rotate(x.double(), Rope())).abs().max() < (
        2e-2 if dtype == torch.bfloat16 else 1e-3
    )


def test_without_positions_only_the_causal_mask_distinguishes_orders() -> None:
    a, b = tokens(1).clone(), tokens(1).clone()
    b[0, :2] = b[0, :2].flip(0)
    assert a[0, 0] != a[0, 1]
    one_layer = {kind: jitter(tiny_gpt(positions=kind, n_layer=1)).double() for kind in ("none", "rope", "learned")}
    moved = {kind: (gpt(a)[:, 5:] - gpt(b)[:, 5:]).abs().max() for kind, gpt in one_layer.items()}
    assert moved["none"] < 1e-12
    assert min(moved["rope"], moved["learned"]) > 1e-6


def test_learned_positions_are_the_only_ones_with_parameters() -> None:
    counts = {kind: tiny_gpt(positions=kind).n_params(positions=True) for kind in ("learned", "rope", "none")}
    assert counts["rope"] == counts["none"] == counts["learned"] - 12 * 16


def test_base_and_scale_are_those_of_transformers() -> None:
    """Hugging Face's LlamaRotaryEmbedding with rope_theta, and with rope_type linear: inv_freq / factor."""
    x_BHTK = torch.randn(1, 1, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inverse_P = 1.0 / 500.0 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8) / 4.0
    angle_TK = torch.outer(torch.arange(7, dtype=torch.float64), inverse_P).repeat(1, 2)
    a, b = x_BHTK.chunk(2, -1)
    expected = x_BHTK * angle_TK.cos() + torch.cat((-b, a), -1) * angle_TK.sin()
    assert torch.allclose(rotate(x_BHTK, Rope(500.0, 4.0)), expected, atol=1e-12)


@pytest.mark.parametrize(("scale", "original", "low", "high"), [(8.0, 8192, 1.0, 4.0), (4.0, 40, 0.5, 3.0)])
def test_llama3_scaling_is_that_of_transformers(scale: float, original: int, low: float, high: float) -> None:
    transformers = pytest.importorskip("transformers", reason="a development dependency")
    stated = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": scale, "low_freq_factor": low}
    stated |= {"high_freq_factor": high, "original_max_position_embeddings": original}
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "max_position_embeddings": 16384}
    config = transformers.LlamaConfig(**sizes, rope_parameters=stated)
    inverse_P, factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert factor == 1
    plain_P = 500000.0 ** (-torch.arange(0, 64, 2) / 64)
    kept, slowed = (torch.isclose(inverse_P, x) for x in (plain_P, plain_P / scale))
    assert min(int(x.sum()) for x in (kept, slowed, ~(kept | slowed))) > 0  # all three kinds of pairs
    # A pair (1, 0) at position 1 is turned by its frequency.
    x_BHTK = torch.cat((torch.ones(1, 1, 2, 32), torch.zeros(1, 1, 2, 32)), -1).double()
    turned_P2 = rotate(x_BHTK, Rope(500000.0, scale, "llama3", original, low, high))[0, 0, 1].view(2, 32)
    assert torch.allclose(torch.atan2(turned_P2[1], turned_P2[0]), inverse_P.double(), rtol=1e-5, atol=0)
