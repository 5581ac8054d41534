"""Value embeddings, in the stream and in attention, against their definition.

Covers `value_embed_attention.py` and `value_tables.py` too.
"""

from typing import Any

import pytest
import torch

from src.embedding.base import EmbeddingSpec
from src.models.gpt import GPT
from tests.plain_gpt import plain_logits
from tests.support import component, jitter, tiny_gpt, tokens

TARGETS = ("value_embed", "value_embed_attention")


def spec(n_layer: int = 3) -> EmbeddingSpec:
    return EmbeddingSpec(64, 16, 12, n_layer, 2, False, 0.0, True)


def tables(gpt: GPT) -> dict[int, Any]:
    """Return the rows of each layer's table for the tokens."""
    embedding = gpt.embedding
    parts = zip(embedding.slots, embedding.table_RD.split(64), embedding.scale_J, strict=True)
    return {layer: scale * table[tokens()] for layer, table, scale in parts}


def test_value_embed_adds_the_row_of_each_layers_table_to_the_stream() -> None:
    gpt = jitter(tiny_gpt(embedding="value_embed")).double()
    assert torch.allclose(gpt(tokens()), plain_logits(gpt, tokens(), stream=tables(gpt)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_value_embed_attention_adds_the_row_to_the_values(positions: str) -> None:
    gpt = jitter(tiny_gpt(embedding="value_embed_attention", positions=positions)).double()
    assert torch.allclose(gpt(tokens()), plain_logits(gpt, tokens(), values=tables(gpt)), rtol=0, atol=1e-10)
    assert not torch.allclose(gpt(tokens()), plain_logits(gpt, tokens()), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", TARGETS)
def test_the_shipped_layers_with_tables_are_1_2_and_the_last_three(name: str) -> None:
    embedding = component("embedding", name)(spec(n_layer=8))
    assert list(embedding.slots) == [1, 2, 5, 6, 7]
    assert embedding.table_RD.shape == (5 * 64, 16)
    assert embedding.scale_J.tolist() == [0.5] * 5
    embedding.reset()
    assert embedding.table_RD.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("name", TARGETS)
def test_a_layer_named_twice_has_one_table(name: str) -> None:
    assert list(component("embedding", name)(spec(n_layer=3)).slots) == [0, 1, 2]
    assert list(component("embedding", name, layers=[1, -2])(spec()).slots) == [1]


@pytest.mark.parametrize("name", TARGETS)
def test_layers_without_a_table_have_no_addition(name: str) -> None:
    embedding = component("embedding", name, layers=[1])(spec())
    found = embedding.lookup(tokens())
    given = [(embedding.stream_addition(found, i), embedding.value_addition(found, i)) for i in range(3)]
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
