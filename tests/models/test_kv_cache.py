"""Decoding with a cache of keys and values: the logits of a full forward, for every shipped option that allows it."""

import pytest
import torch

from src.embedding.tied import TiedEmbedding
from src.models.attention import CausalAttention
from src.models.kv_cache import enable_cache, find_difference, next_logits
from tests.support import COMPOSITIONS, jitter, options, start_at_once, tiny_gpt, tokens

#: Strategies whose value for a token depends on other tokens besides attention; they decode by full forwards.
WITHOUT_CACHE = {"deep_delta_expanded"}  # a short convolution over tokens
TRUNKS = [
    {"positions": "rope", "rope_base": 500.0, "rope_scale": 2.0},
    {"positions": "rope", "n_kv_head": 1},
    {"positions": "rope", "rope_scaling": "llama3", "rope_scale": 8.0, "rope_original": 6},
    {"positions": "rope", "logit_softcap": 0.5},
    {"positions": "rope", "window_pattern": "SSL", "window_size": 3},
    {"positions": "none", "norm_placement": "sandwich"},
    {"qk_norm": "rms", "positions": "rope", "attention_scale": "inverse"},
    {"bias": True, "gelu_approximate": "tanh", "norm_placement": "output"},
]


@pytest.mark.parametrize("residual", [*options("residual"), *COMPOSITIONS])
def test_a_strategy_decodes_with_a_cache_or_is_known_not_to(residual: str) -> None:
    gpt = jitter(tiny_gpt(residual)).eval()
    assert (find_difference(gpt, 64) is not None) == (residual in WITHOUT_CACHE)


@pytest.mark.parametrize("embedding", options("embedding"))
@pytest.mark.parametrize("residual", ["vanilla", "hyperconn"])
def test_every_embedding_sees_the_tokens_before(embedding: str, residual: str) -> None:
    assert find_difference(jitter(tiny_gpt(residual, embedding=embedding)).eval(), 64) is None


@pytest.mark.parametrize("recurrence", options("recurrence"))
def test_every_visit_has_a_cache_of_its_own(recurrence: str) -> None:
    gpt = jitter(tiny_gpt(recurrence=recurrence, visits=start_at_once(recurrence, "vanilla"))).eval()
    assert find_difference(gpt, 64) is None


@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_trunk_decodes_with_a_cache(trunk: dict[str, str]) -> None:
    assert find_difference(jitter(tiny_gpt(**trunk)).eval(), 64) is None


@torch.no_grad()
def test_the_cached_logits_are_those_of_a_full_forward() -> None:
    gpt = jitter(tiny_gpt(positions="rope")).double().eval()
    idx_BT = tokens(2, 12)
    with enable_cache(gpt) as decoder:
        for end in range(3, 13):
            found_BV = decoder.next_logits(idx_BT[:, :end])
            assert decoder.attentions[0].kept[0][0].shape[2] == end
    wanted_BV = gpt(idx_BT)[:, -1]
    assert torch.allclose(found_BV, wanted_BV, rtol=0, atol=1e-12)
    # Outside of the block the model is what it was.
    assert torch.allclose(next_logits(gpt, idx_BT), wanted_BV, rtol=0, atol=1e-12)
    assert type(gpt.embedding) is TiedEmbedding
    assert all(type(block.attn.attend) is CausalAttention for block in gpt.h)  # type: ignore[union-attr]


class MixesTokens(torch.nn.Module):
    """Norm that mixes each token with the mean of all earlier ones, which a cache cannot see."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        normed: torch.Tensor = self.inner(x) + x.cumsum(1) / steps
        return normed


def test_a_model_that_mixes_tokens_elsewhere_is_found() -> None:
    gpt = jitter(tiny_gpt()).eval()
    gpt.h[0].ln_2 = MixesTokens(gpt.h[0].ln_2)  # type: ignore[union-attr, assignment]
    assert "logits differ by" in str(find_difference(gpt, 64))
