"""Value projections beside slowrun's code."""

import pytest
import torch

from src.embedding.base import EmbeddingSpec
from src.models.gpt import GPT
from tests.oracle import LR, WEIGHT_DECAY, compare_model, groups_by_name
from tests.support import component, jitter, tiny_gpt, tokens


def value_embeddings(gpt: GPT, layer: int, h: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """`ve` of slowrun's CausalSelfAttention, times its gate; heads of 8 channels side by side."""
    if layer % 2 != (gpt.config.n_layer - 1) % 2:
        return torch.zeros_like(h)
    j = layer // 2
    ve = x0 @ gpt.embedding.proj_JDD[j].T
    gate = 2 / (1 + torch.exp(-h[..., :16] @ gpt.embedding.gate_JHC[j].T))
    return torch.cat([gate[..., :1] * ve[..., :8], gate[..., 1:] * ve[..., 8:]], -1)


@pytest.mark.parametrize("n_layer", [3, 4])
@pytest.mark.parametrize("positions", ["learned", "none"])
def test_it_equals_its_source(n_layer: int, positions: str) -> None:
    """qlabs-eng/slowrun @ fd342f0, train.py: `ve_projs[str(i)](x0)` with x0 = norm(wte(idx)), gated in attention."""
    gpt = jitter(tiny_gpt(embedding="value_projection", n_layer=n_layer, positions=positions)).double()

    def oracle(gpt: GPT, idx: torch.Tensor) -> torch.Tensor:
        rows = gpt.embedding.wte.weight[idx]
        x0 = rows / ((rows**2).mean(-1, keepdim=True) + torch.finfo(rows.dtype).eps).sqrt()
        x = rows if positions == "none" else rows + gpt.embedding.wpe.weight[: idx.shape[1]]
        for layer, block in enumerate(gpt.h):
            h = block.ln_1(x)
            x = x + block.attn(h, add_to_values=lambda h, n=layer: value_embeddings(gpt, n, h, x0))
            x = x + block.mlp(block.ln_2(x))
        return gpt.ln_f(x)

    compare_model(gpt, oracle)


def test_its_values_start_as_in_the_source() -> None:
    """`init_weights`: ve_projs uniform in +-sqrt(3 / D), gates zero, so that a gate is 2 sigmoid(0) = 1."""
    embedding = component("embedding", "value_projection")(EmbeddingSpec(64, 256, 12, 5, 4, False, 0.0, True))
    assert list(embedding.slots) == [0, 2, 4]
    assert embedding.proj_JDD.std().item() == pytest.approx(256**-0.5, rel=0.01)
    assert embedding.proj_JDD.abs().max().item() == pytest.approx((3 / 256) ** 0.5, rel=0.01)
    assert embedding.gate_JHC.shape == (3, 4, 32)
    assert not embedding.gate_JHC.any()
    groups = groups_by_name(tiny_gpt(embedding="value_projection"))  # the source decays its matrices
    assert groups["embedding.proj_JDD"] == groups["embedding.gate_JHC"] == (LR, WEIGHT_DECAY)


def test_a_gate_without_channels_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"embedding\.gate_channels must be >= 1, got 0; the source uses 32"):
        tiny_gpt_with(gate_channels=0)


def tiny_gpt_with(**keys: int) -> object:
    return component("embedding", "value_projection", **keys)(EmbeddingSpec(64, 16, 12, 3, 2, False, 0.0, True))


def test_repeated_visits_gate_with_their_own_input() -> None:
    visits = {"layers": [0], "start_fraction": None, "start_step": 0}
    gpt = jitter(tiny_gpt(embedding="value_projection", recurrence="mini", visits=visits)).double()
    assert gpt(tokens()).isfinite().all()
