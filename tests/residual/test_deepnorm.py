"""DeepNorm against its source and its initial values."""

import torch

from src.residual.deepnorm import DeepNorm
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """microsoft/torchscale @ 4d1e0e8, torchscale/architecture/decoder.py: `DecoderLayer` with deepnorm, no encoder."""
    spec = stream_spec()
    strategy = jittered(DeepNorm(spec))
    alpha = (2.0 * 3) ** 0.25

    def oracle(x: torch.Tensor, branches: Sublayers) -> torch.Tensor:
        for branch, norm in zip(branches, strategy.norms, strict=True):
            residual = x
            x = norm(residual * alpha + branch(x))
        return x

    compare_flow(strategy, spec, oracle)


def test_values_and_outputs_start_small_and_queries_and_keys_do_not() -> None:
    """Compare with figure 2 of the paper; `Decoder` of torchscale divides by (8 L)^(1/4) in the same matrices."""
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


def test_norms_start_at_one_without_decay() -> None:
    gpt = tiny_gpt("deepnorm")
    assert all(torch.equal(norm.weight, torch.ones(16)) for norm in gpt.residual.norms)
    norms = {name: rate for name, rate in groups_by_name(gpt).items() if "norm" in name or "ln_" in name}
    assert norms == {f"residual.norms.{k}.weight": (LR, 0.0) for k in range(6)}


def test_initial_values_follow_from_the_seed() -> None:
    torch.manual_seed(1)
    one = tiny_gpt("deepnorm").state_dict()
    torch.manual_seed(2)
    other = tiny_gpt("deepnorm").state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
