"""The untied head is a table of its own, zero at init."""

import math

import pytest

from tests.oracle import LR, WEIGHT_DECAY, assert_same, groups_by_name
from tests.plain_gpt import plain_logits
from tests.support import jitter, tiny_gpt, tokens


def test_it_equals_its_source() -> None:
    """MLS-Bench llm-pretrain-embedding, baseline untied: a separate head."""
    gpt, idx = jitter(tiny_gpt(embedding="untied")).double(), tokens()
    head = gpt.embedding.lm_head.weight
    assert head is not gpt.embedding.wte.weight
    assert gpt.embedding.get_lm_head_weight() is head
    assert_same(gpt(idx), plain_logits(gpt, idx), gpt.parameters(), 1e-10)


def test_the_head_starts_at_zero_so_the_first_loss_is_ln_v() -> None:
    gpt = tiny_gpt(embedding="untied")
    assert not gpt.embedding.lm_head.weight.any()
    assert gpt.loss(tokens(), tokens(seed=1)).item() == pytest.approx(math.log(64), abs=1e-6)
    assert groups_by_name(gpt)["embedding.lm_head.weight"] == (LR, WEIGHT_DECAY)
    assert gpt.n_params(positions=True) - tiny_gpt().n_params(positions=True) == 64 * 16
