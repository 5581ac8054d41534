"""DeepNorm against its equation and its initial values."""

import torch

from src.residual.deepnorm import DeepNorm
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt


def test_the_stream_is_multiplied_by_alpha() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(DeepNorm(spec))
    x = x0
    for branch, norm in zip(branches, strategy.norms, strict=True):
        x = norm(6**0.25 * x + branch(x))
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-13)


def test_values_and_outputs_start_small_and_queries_and_keys_do_not() -> None:
    width, beta = 256, 24**-0.25
    block = tiny_gpt("deepnorm", n_embd=width).h[1]
    query, key, value = block.attn.c_attn.weight.chunk(3)
    square, tall = width**-0.5, (2 / (5 * width)) ** 0.5  # Xavier: sqrt(2 / (fan_in + fan_out))
    for weight, std in (
        (query, square),
        (key, square),
        (value, beta * square),
        (block.attn.c_proj.weight, beta * square),
        (block.mlp.c_fc.weight, beta * tall),
        (block.mlp.c_proj.weight, beta * tall),
    ):
        assert abs(weight.std().item() / std - 1) < 0.02


def test_initial_values_follow_from_the_seed() -> None:
    torch.manual_seed(1)
    one = tiny_gpt("deepnorm").state_dict()
    torch.manual_seed(2)
    other = tiny_gpt("deepnorm").state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
