"""Norm placement: on the input of a sublayer, on its output, on both.

Covers `block.py` too.
"""

import pytest
import torch

from src.models.config import GPTConfig
from src.models.gpt import GPT
from tests.plain_gpt import plain_logits
from tests.support import SIZES, component, export_gpt2, jitter, options, tiny_gpt, tokens

PLACEMENTS = {
    "pre": ["ln_1", "ln_2"],
    "sandwich": ["ln_1", "ln_1_out", "ln_2", "ln_2_out"],
    "output": ["ln_1_out", "ln_2_out"],
}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_placement_equals_its_equation(placement: str) -> None:
    gpt = jitter(tiny_gpt(norm_placement=placement)).double()
    assert torch.allclose(gpt(tokens()), plain_logits(gpt, tokens()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_only_the_norms_of_the_placement_are_built_and_all_are_used(placement: str) -> None:
    gpt = tiny_gpt(norm_placement=placement)
    norms = sorted(key.split(".")[2] for key in gpt.state_dict() if key.startswith("h.1.ln"))
    assert norms == PLACEMENTS[placement]
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert all(p.grad is not None for p in gpt.parameters())
    per_layer = 16 * len(PLACEMENTS[placement])
    assert gpt.n_params(positions=True) == tiny_gpt().n_params(positions=True) + 3 * (per_layer - 32)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("norm", options("norm"))
def test_under_bf16_it_is_close_to_float32(placement: str, norm: str) -> None:
    gpt = jitter(tiny_gpt(norm=norm, norm_placement=placement))
    with torch.autocast("cpu", torch.bfloat16):
        x_BTD = gpt.hidden(tokens())
    exact = gpt.hidden(tokens())
    assert x_BTD.dtype == torch.float32
    assert (x_BTD - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("placement", ["sandwich", "output"])
@pytest.mark.parametrize("residual", ["parallel", "variance_parallel"])
def test_a_strategy_with_its_own_norms_needs_placement_pre(residual: str, placement: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.norm_placement must be pre with \w+, .*, got {placement}; give"):
        tiny_gpt(residual, norm_placement=placement)


@pytest.mark.parametrize("placement", ["sandwich", "output"])
def test_another_placement_is_not_exported_as_gpt2(placement: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="ln_1"):
        export_gpt2(tiny_gpt(norm_placement=placement), tmp_path / "hub")


def test_rmsnorm_parallel_of_the_benchmark_equals_parallel_with_rmsnorm() -> None:
    gpt = GPT(
        GPTConfig(**SIZES),
        residual=component("residual", "parallel"),
        norm=component("norm", "rmsnorm"),
        embedding=component("embedding", "tied"),
        seed=0,
    )
    x = gpt.embedding(tokens())
    for norm, block in zip(gpt.residual.norms, gpt.h, strict=True):
        h = norm(x)
        x = x + block.attn(h) + block.mlp(h)
    assert torch.allclose(gpt.hidden(tokens()), gpt.ln_f(x), atol=1e-6)
