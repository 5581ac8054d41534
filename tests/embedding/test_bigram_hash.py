"""Hashed bigrams against loops over their definition."""

import pytest
import torch

from tests.oracle import LR, WEIGHT_DECAY, assert_same, groups_by_name
from tests.plain_gpt import plain_logits
from tests.support import component, jitter, tiny_gpt, tokens


def test_rows_are_the_hash_of_a_token_and_the_one_before_it() -> None:
    embedding = tiny_gpt(embedding="bigram_hash").embedding
    idx = tokens()
    expected = [
        [319 if t == 0 else ((36313 * row[t]) ^ (27191 * row[t - 1])) % 319 for t in range(12)] for row in idx.tolist()
    ]
    assert embedding.hash_rows(idx).tolist() == expected
    assert embedding.table_RD.shape == (5 * 64, 16)


def test_the_largest_ids_of_gpt2_stay_in_the_table() -> None:
    embedding = tiny_gpt(embedding="bigram_hash", vocab_size=50304, n_layer=1, n_embd=2, n_head=1).embedding
    rows = embedding.hash_rows(torch.tensor([[50303, 50303, 50256, 0, 0]]))
    assert rows[0, 0] == 5 * 50304 - 1
    assert rows[0, 1] == ((36313 * 50303) ^ (27191 * 50303)) % (5 * 50304 - 1)
    assert ((rows[:, 1:] >= 0) & (rows[:, 1:] < 5 * 50304 - 1)).all()


def test_it_equals_its_source() -> None:
    """MLS-Bench llm-pretrain-embedding, baseline bigram_hash: 0.1 times a row of 5 V, before every layer.

    The hash is `get_bigram_hash` of KellerJordan/modded-nanogpt @ f411b3d, train_gpt.py.
    """
    gpt, idx = jitter(tiny_gpt(embedding="bigram_hash")).double(), tokens()
    table, mod = gpt.embedding.table_RD, 5 * 64 - 1
    hashed = torch.full_like(idx, mod)
    hashed[:, 1:] = torch.bitwise_xor(36313 * idx[:, 1:], 27191 * idx[:, :-1]) % mod
    stream = {layer: gpt.embedding.scale_L[layer] * table[hashed] for layer in range(3)}
    params = list(gpt.parameters())
    assert_same(gpt(idx), plain_logits(gpt, idx, stream=stream), params, 1e-10)
    assert not torch.allclose(gpt(idx), plain_logits(gpt, idx), rtol=0, atol=1e-3)


def test_it_starts_as_tied_with_scales_of_a_tenth() -> None:
    gpt = tiny_gpt(embedding="bigram_hash")
    assert torch.equal(gpt(tokens()), tiny_gpt()(tokens()))
    assert gpt.embedding.scale_L.tolist() == pytest.approx([0.1] * 3)
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert (gpt.embedding.table_RD.grad != 0).any()
    groups = groups_by_name(gpt)
    assert groups["embedding.table_RD"] == (LR, WEIGHT_DECAY)  # the benchmark decays tensors of two dimensions
    assert groups["embedding.scale_L"] == (LR, 0.0)


def test_the_order_of_a_pair_matters() -> None:
    rows = tiny_gpt(embedding="bigram_hash").embedding.hash_rows(torch.tensor([[3, 5, 3]]))
    assert rows[0, 1] != rows[0, 2]


@pytest.mark.parametrize(("factor", "rows"), [(0.5, 32), (1.0, 64), (2.0, 128)])
def test_the_table_factor_sets_the_rows(factor: float, rows: int) -> None:
    table = component("embedding", "bigram_hash", table_factor=factor)
    embedding = table(_spec())
    assert len(embedding.table_RD) == rows
    assert embedding.get_num_lookup_params() == rows * 16


@pytest.mark.parametrize("factor", [0.0, -1.0, 0.01])
def test_a_table_without_rows_is_an_error(factor: float) -> None:
    with pytest.raises(ValueError, match=r"embedding\.table_factor must give a table of >= 2 rows, got"):
        component("embedding", "bigram_hash", table_factor=factor)(_spec())


def _spec():  # type: ignore[no-untyped-def]
    from src.embedding.base import EmbeddingSpec

    return EmbeddingSpec(64, 16, 12, 3, 2, False, 0.0, True)
