"""The scaled embedding beside the source's patch of nanoGPT."""

import pytest

from tests.oracle import LR, assert_same, groups_by_name
from tests.support import jitter, tiny_gpt, tokens


def test_it_equals_its_source() -> None:
    """zlab-princeton/Derf @ 8dd9ea3, language model/model_derf.patch: drop((tok_emb + pos_emb) * shared_scale)."""
    embedding = jitter(tiny_gpt(embedding="scaled")).double().embedding
    oracle = (embedding.wte.weight[tokens()] + embedding.wpe.weight[None, :12]) * embedding.scale
    assert_same(embedding(tokens()), oracle, embedding.parameters(), 1e-12)
    assert embedding.get_lm_head_weight() is embedding.wte.weight


def test_its_scale_starts_at_the_root_of_the_width_and_does_not_decay() -> None:
    gpt = tiny_gpt(embedding="scaled")
    assert gpt.embedding.scale.tolist() == pytest.approx([4.0])
    assert groups_by_name(gpt)["embedding.scale"] == (LR, 0.0)
