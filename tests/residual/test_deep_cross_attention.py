"""DeepCrossAttention against the public code."""

from typing import Any

import pytest
import torch
from torch import Tensor

from src.residual.base import QKV
from tests.oracle import LR, compare_model, groups_by_name
from tests.support import jitter, tiny_gpt, tokens

EPS = torch.finfo(torch.float32).eps  # of nn.RMSNorm in the source's dtype


def source_model(gpt: Any, idx: Tensor, k: int = 2) -> Tensor:
    """DCAGPT.forward with DCABlock, GRN and select_layers, on the trunk's sublayers."""
    strategy = gpt.residual
    weights, biases, gains = iter(strategy.w_QD), iter(strategy.b_PD), iter(strategy.gain_LD)

    def grn(stacked: Tensor, outputs: int) -> list[Tensor]:
        normed = stacked * torch.rsqrt(stacked.pow(2).mean(-1, keepdim=True) + EPS) * next(gains)
        aggregate = [torch.relu(normed @ next(weights)) for _ in range(outputs)]
        gates = [a[..., None] + torch.stack([next(biases) for _ in stacked])[:, None, None] for a in aggregate]
        return [torch.einsum("ybnd,ybnd->bnd", stacked, gate) for gate in gates]

    def select_layers(everything: list[Tensor]) -> Tensor:
        return torch.stack(everything if len(everything) < 2 * k else everything[:k] + everything[-k:])

    all_tokens = [gpt.embedding(idx)]
    for block in gpt.h:
        q, k_, v = grn(select_layers(all_tokens), 3)
        attn_out = block.attn(QKV(block.ln_1.q(q), block.ln_1.k(k_), block.ln_1.v(v)))
        all_tokens.append(block.mlp(block.ln_2(attn_out + q)) + attn_out)
    (pooled,) = grn(select_layers(all_tokens), 1)
    assert [next(rest, None) for rest in (weights, biases, gains)] == [None] * 3
    return gpt.ln_f(pooled)


@pytest.mark.parametrize("n_layer", [1, 3, 6])
def test_it_equals_its_source(n_layer: int) -> None:
    """lucidrains/deep-cross-attention @ 35a0046, deep_cross_attention/dca_gpt.py."""
    compare_model(jitter(tiny_gpt("deep_cross_attention", n_layer=n_layer)).double(), source_model)


def test_initial_values_and_groups_are_those_of_its_source() -> None:
    """lucidrains/deep-cross-attention @ 35a0046, GRN.__init__ and train.py, whose Adam has no weight decay."""
    gpt = tiny_gpt("deep_cross_attention")
    assert not gpt.residual.w_QD.any()
    assert (gpt.residual.b_PD == 1).all()
    assert (gpt.residual.gain_LD == 1).all()
    groups = groups_by_name(gpt)
    assert all(groups[f"residual.{name}"] == (LR, 0.0) for name in ("w_QD", "b_PD", "gain_LD"))


@pytest.mark.parametrize(("n_layer", "keys"), [(3, {}), (7, {"n_first": 1, "middle_sum": True})])
def test_it_is_vanilla_at_init_if_no_output_is_left_out(n_layer: int, keys: dict[str, Any]) -> None:
    ours = tiny_gpt("deep_cross_attention", n_layer=n_layer, strategy=keys).double()
    assert torch.allclose(ours(tokens()), tiny_gpt(n_layer=n_layer).double()(tokens()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("w_std", "trains"), [(0.0, False), (0.02, True)])
def test_gates_train_only_from_values_other_than_zero(w_std: float, trains: bool) -> None:
    gpt = tiny_gpt("deep_cross_attention", strategy={"w_std": w_std})
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert bool(gpt.residual.w_QD.grad.any()) == trains
