"""Shares of sources in depth attention."""

import torch

from src.analysis.sources import measure_sources, summarize_shares
from tests.support import jitter, tiny_gpt, tokens


def test_known_shares() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    found = summarize_shares(weights)
    assert torch.equal(found["embedding"], torch.tensor([1.0, 0.5, 0.1]))
    assert torch.equal(found["newest"], torch.tensor([1.0, 0.5, 0.7]))
    third = torch.tensor([0.1, 0.2, 0.7])
    assert torch.allclose(found["count"], torch.tensor([1.0, 2.0, (-(third * third.log()).sum()).exp().item()]))


def test_at_init_attention_residuals_read_all_sources_equally() -> None:
    found = measure_sources(tiny_gpt("attnres", n_layer=2).eval(), tokens(1), tokens(1, seed=1))
    assert not found.fitted
    assert torch.allclose(found.shares["count"], torch.arange(1.0, 6))
    assert torch.allclose(found.shares["newest"], 1 / torch.arange(1.0, 6))


def test_weights_that_are_no_shares_say_why() -> None:
    fitted = measure_sources(tiny_gpt(n_layer=2).eval(), tokens(1), tokens(1, seed=1))
    assert fitted.shares == "the strategy reports no weights of its own, so they are fitted"
    assert torch.allclose(fitted.weight_KJ, torch.ones(5, 5).tril(), atol=1e-4)
    streams = measure_sources(jitter(tiny_gpt("hyperconn_static", n_layer=2)).eval(), tokens(1), tokens(1, seed=1))
    assert streams.shares == "the strategy's weights are not shares: they do not sum to 1"
    wide = measure_sources(tiny_gpt("attnres", embedding="value_embed", n_layer=3).eval(), tokens(1), tokens(1, seed=1))
    assert wide.shares == "the embedding adds sources that reach one site only"
