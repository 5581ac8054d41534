"""The tied head is the token table."""

import pytest
import torch

from tests.oracle import LR, WEIGHT_DECAY, assert_same, groups_by_name
from tests.plain_gpt import plain_logits
from tests.support import jitter, tiny_gpt, tokens


def test_it_equals_its_source() -> None:
    """Section 3 of arXiv 1608.05859: one matrix is the input embedding and the output embedding."""
    gpt, idx = jitter(tiny_gpt()).double(), tokens()
    assert gpt.embedding.get_lm_head_weight() is gpt.embedding.wte.weight
    assert_same(gpt(idx), plain_logits(gpt, idx), gpt.parameters(), 1e-10)


def test_its_tables_start_and_decay_as_in_nanogpt() -> None:
    gpt = tiny_gpt(vocab_size=4096, block_size=512)
    groups = groups_by_name(gpt)
    for name in ("wte", "wpe"):
        assert gpt.embedding.get_parameter(f"{name}.weight").std().item() == pytest.approx(0.02, rel=0.05)
        assert groups[f"embedding.{name}.weight"] == (LR, WEIGHT_DECAY)
    assert torch.equal(tiny_gpt().embedding.wte.weight, tiny_gpt(residual="rezero").embedding.wte.weight)
