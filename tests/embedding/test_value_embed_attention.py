"""Value embeddings in attention beside the record code."""

import pytest
import torch

from tests.oracle import assert_same
from tests.plain_gpt import plain_logits
from tests.support import jitter, tiny_gpt, tokens


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_it_equals_its_source(positions: str) -> None:
    """KellerJordan/modded-nanogpt @ f411b3d: tables and layers of train_gpt.py, the sum of records/2025-01-16_Sub3Min.

    There v <- lambdas[0] v + lambdas[1] ve; here the projection of v holds lambdas[0].
    """
    gpt = jitter(tiny_gpt(embedding="value_embed_attention", positions=positions, n_layer=6)).double()
    lambdas = gpt.embedding.scale_J
    ve = gpt.embedding.table_RD.view(5, 64, -1)[:, tokens()]
    layers = [None, ve[0], ve[1], ve[2], ve[3], ve[4]]  # [None, 1, 2, ..., -3, -2, -1] of six layers
    values = {layer: lambdas[layer - 1] * rows for layer, rows in enumerate(layers) if rows is not None}
    assert_same(gpt(tokens()), plain_logits(gpt, tokens(), values=values), gpt.parameters(), 1e-10)
    assert not torch.allclose(gpt(tokens()), plain_logits(gpt, tokens()), rtol=0, atol=1e-3)


def test_its_tables_and_weights_start_as_in_the_source() -> None:
    gpt = tiny_gpt(embedding="value_embed_attention", vocab_size=4096, n_layer=6)
    assert gpt.embedding.table_RD.std().item() == pytest.approx(0.01, rel=0.02)  # 0.01 * randn, train_gpt.py
    assert gpt.embedding.scale_J.tolist() == [0.5] * 5  # lambdas[1], records/2025-01-16_Sub3Min
