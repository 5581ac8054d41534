"""Over-encoding beside the code of the source."""

from typing import Any

import pytest
import torch
from torch import Tensor

from src.embedding.base import EmbeddingSpec
from src.embedding.ngram_hash import NgramHash
from tests.oracle import LR, WEIGHT_DECAY, assert_same, groups_by_name
from tests.support import component, jitter, tiny_gpt, tokens


def spec(n_embd: int = 16, vocab_size: int = 64) -> EmbeddingSpec:
    return EmbeddingSpec(vocab_size, n_embd, 12, 3, 2, False, 0.0, True)


def over_encoding(embedding: NgramHash, idx: Tensor, n: int, k: int, m: int) -> Tensor:
    """`embed` of the source, token by token in Python's integers, without positions."""
    tables = embedding.table_RC.split([m + 2 * q for q in range(k * (n - 1))])
    batches = []
    for row in idx.tolist():
        xs = []
        for t, token in enumerate(row):
            x, q = embedding.wte.weight[token], 0
            for i in range(2, n + 1):
                gram = [row[t - s] if t >= s else 0 for s in range(i)]
                for _ in range(k):
                    h = sum(z * 64**p for p, z in enumerate(gram)) % (m + 2 * q)
                    x = x + tables[q][h] @ embedding.proj_JCD[q]
                    q += 1
            xs.append(x / (1 + k * (n - 1)))
        batches.append(torch.stack(xs))
    return torch.stack(batches)


@pytest.mark.parametrize(("n", "k"), [(3, 1), (4, 2), (2, 3)])
def test_it_equals_its_source(n: int, k: int) -> None:
    """wenhaochai/marin-pli @ 0eb9600, experiments/references/over_vocab_qwen3.py, with moduli m + 2 q."""
    keys = {"max_n": n, "slices": k}
    embedding = component("embedding", "ngram_hash", **keys)(spec()).double()
    idx = tokens()
    oracle = over_encoding(embedding, idx, n, k, 5 * 64) + embedding.wpe.weight[:12]
    assert_same(embedding(idx), oracle, embedding.parameters(), 1e-10)


def test_its_values_start_as_in_the_source() -> None:
    """Tables as the token table; `hnn.Linear.init`: standard deviation In^-1/2."""
    gpt = tiny_gpt(embedding="ngram_hash", n_embd=192, vocab_size=512)
    embedding, width = gpt.embedding, 64
    assert embedding.moduli == [2560, 2562]
    assert embedding.table_RC.shape == (2560 + 2562, width)
    assert embedding.table_RC.std().item() == pytest.approx(0.02, rel=0.02)
    assert embedding.proj_JCD.std().item() == pytest.approx(width**-0.5, rel=0.03)
    groups = groups_by_name(gpt)
    assert groups["embedding.table_RC"] == groups["embedding.proj_JCD"] == (LR, WEIGHT_DECAY)


def test_the_largest_ids_of_gpt2_do_not_overflow() -> None:
    embedding = component("embedding", "ngram_hash", max_n=5)(spec(n_embd=10, vocab_size=50304))
    rows = embedding.hash_rows(torch.full((1, 12), 50303))
    first = 0
    for j, (length, modulus) in enumerate(zip(embedding.lengths, embedding.moduli, strict=True)):
        assert rows[0, 11, j] == first + sum(50303 * 50304**p for p in range(length)) % modulus
        first += modulus


def test_the_order_of_a_pair_matters() -> None:
    rows = component("embedding", "ngram_hash")(spec()).hash_rows(torch.tensor([[3, 5, 3]]))
    assert rows[0, 1, 0] != rows[0, 2, 0]


@pytest.mark.parametrize("keys", [{"table_factor": 0.001}, {"max_n": 1}, {"slices": 0}, {"slices": 9}])
def test_tables_without_rows_or_channels_are_an_error(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"embedding must have table_factor .* the source uses max_n=3 slices=1"):
        component("embedding", "ngram_hash", **keys)(spec())


def test_a_whole_model_is_trained() -> None:
    gpt = jitter(tiny_gpt(embedding="ngram_hash"))
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert (gpt.embedding.table_RC.grad != 0).any()
