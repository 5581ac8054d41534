"""Value embeddings in the stream beside the benchmark's description.

Covers `value_tables.py` too, for the embeddings that are built on it.
"""

from typing import Any

import pytest
import torch

from src.embedding.base import EmbeddingSpec
from src.models.gpt import GPT
from tests.oracle import LR, WEIGHT_DECAY, assert_same, groups_by_name
from tests.plain_gpt import plain_logits
from tests.support import component, jitter, tiny_gpt, tokens

TARGETS = ("value_embed", "value_embed_attention")


def spec(n_layer: int = 3) -> EmbeddingSpec:
    return EmbeddingSpec(64, 16, 12, n_layer, 2, False, 0.0, True)


def tables(gpt: GPT, layers: list[int]) -> dict[int, Any]:
    """Return the weighted rows of each layer's table for the tokens."""
    parts = zip(gpt.embedding.table_RD.split(64), gpt.embedding.scale_J, strict=True)
    return {layer: scale * table[tokens()] for layer, (table, scale) in zip(layers, parts, strict=True)}


def test_it_equals_its_source() -> None:
    """MLS-Bench llm-pretrain-embedding, baseline value_embed: one table for each layer of {1, 2, L-3, L-2, L-1}."""
    gpt = jitter(tiny_gpt(embedding="value_embed", n_layer=6)).double()
    oracle = plain_logits(gpt, tokens(), stream=tables(gpt, [1, 2, 3, 4, 5]))
    assert_same(gpt(tokens()), oracle, gpt.parameters(), 1e-10)


@pytest.mark.parametrize("name", TARGETS)
def test_the_shipped_layers_with_tables_are_1_2_and_the_last_three(name: str) -> None:
    embedding = component("embedding", name)(spec(n_layer=8))
    assert list(embedding.slots) == [1, 2, 5, 6, 7]
    assert embedding.table_RD.shape == (5 * 64, 16)
    assert embedding.scale_J.tolist() == [0.5] * 5
    embedding.reset()
    assert embedding.table_RD.std().item() == pytest.approx(0.01, rel=0.05)
    groups = groups_by_name(tiny_gpt(embedding=name))
    assert groups["embedding.table_RD"] == (LR, WEIGHT_DECAY)
    assert groups["embedding.scale_J"] == (LR, 0.0)


@pytest.mark.parametrize("name", TARGETS)
def test_a_layer_named_twice_has_one_table(name: str) -> None:
    assert list(component("embedding", name)(spec(n_layer=3)).slots) == [0, 1, 2]
    assert list(component("embedding", name, layers=[1, -2])(spec()).slots) == [1]


@pytest.mark.parametrize("name", TARGETS)
def test_layers_without_a_table_have_no_addition(name: str) -> None:
    embedding = component("embedding", name, layers=[1])(spec())
    found = embedding.lookup(tokens())
    x = torch.zeros(3, 12, 16)
    given = [(embedding.stream_addition(found, i), embedding.value_addition(found, i, x)) for i in range(3)]
    assert [(a is not None, b is not None) for a, b in given] == [
        (False, False),
        (name == "value_embed", name == "value_embed_attention"),
        (False, False),
    ]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([3], r"embedding\.layers must be between -3 and 2, got 3"),
        ([0, -4], r"embedding\.layers must be between -3 and 2, got -4"),
        ([], r"embedding\.layers must name at least one layer; for none use embedding=tied"),
    ],
)
def test_layers_out_of_bounds_are_an_error(name: str, layers: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        component("embedding", name, layers=layers)(spec())
