"""Embeddings against their equations, and the room's contract over the shipped options."""

import inspect

import pytest
import torch

from tests.support import class_of, jitter, option, options, tiny_gpt, tokens


@pytest.mark.parametrize("name", options("embedding"))
def test_the_yaml_holds_exactly_the_constructors_keys(name: str) -> None:
    config = option("embedding", name)
    keywords = [p for p in inspect.signature(class_of(config)).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert {str(key) for key in config if not str(key).startswith("_")} == {p.name for p in keywords}
    assert all(p.default is p.empty for p in keywords)


@pytest.mark.parametrize("name", options("embedding"))
def test_every_parameter_gets_a_gradient_and_the_future_is_not_seen(name: str) -> None:
    gpt = tiny_gpt(embedding=name)
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert all(p.grad is not None for p in gpt.parameters())
    jitter(gpt).double()
    idx = tokens()
    changed = idx.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 64
    assert torch.allclose(gpt(idx)[:, :6], gpt(changed)[:, :6], atol=1e-12)


@pytest.mark.parametrize("name", options("embedding"))
def test_x0_is_the_token_and_the_position(name: str) -> None:
    embedding = tiny_gpt(embedding=name).embedding
    idx = tokens()
    assert torch.equal(embedding(idx), embedding.wte.weight[idx] + embedding.wpe.weight[:12])
    assert embedding.get_num_pos_params() == 12 * 16
    assert embedding.get_value_embed(0) is None


def test_the_tied_head_is_the_token_table_and_the_untied_one_is_not() -> None:
    tied, untied = (tiny_gpt(embedding=name) for name in ("tied", "untied"))
    assert tied.embedding.get_lm_head_weight() is tied.embedding.wte.weight
    assert untied.n_params(positions=True) - tied.n_params(positions=True) == 64 * 16
