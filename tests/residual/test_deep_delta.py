"""Deep Delta Learning with a scalar target against its source.

Covers `src/residual/families/delta_rule.py` too.
"""

import pytest
import torch

from src.residual.deep_delta import DeepDelta
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, jittered, stream_spec
from tests.support import tiny_gpt

KEYS = {"beta_init": 1.0, "value_scale": 4.0, "eps": 0.1}


def strategy_of_plain_sublayers() -> DeepDelta:
    strategy = DeepDelta(stream_spec(), **KEYS)
    strategy.reset()
    return jittered(strategy)


def test_it_equals_its_source() -> None:
    """yifanzhang-pro/deep-delta-learning @ 2b55f25, model/DDL-vdim1-gpt-mha-rope.py: `DeepDeltaResidualVdim1`, `Block`.

    eps is large, so that it counts.
    """
    strategy = strategy_of_plain_sublayers()

    def oracle(x: torch.Tensor, branches: Sublayers) -> torch.Tensor:
        for k, branch in enumerate(branches):
            x_norm = strategy.norms[k](x)
            k_in = branch(x_norm)
            direction = k_in / (k_in.square().sum(-1, keepdim=True) + 0.1**2).sqrt()
            beta = 2 / (1 + torch.exp(-(x_norm @ strategy.beta_SD[k] + strategy.beta_bias_S[k])))
            v = 4 / (1 + torch.exp(-(x @ strategy.value_SND[k, 0] + strategy.value_bias_SN[k])))
            x = x + (beta * (v - (direction * x).sum(-1)))[..., None] * direction
        return x

    compare_flow(strategy, stream_spec(), oracle)


def test_initial_values_and_decay_are_those_of_the_source() -> None:
    """Compare with `init_gpt_weights` (0.5 / sqrt(D) for matrices), `_logit`, nn.Linear's bias, nanoGPT's decay."""
    width = 256
    gpt = tiny_gpt("deep_delta", n_embd=width)
    own = gpt.residual
    for weight in (own.beta_SD, own.value_SND):
        assert abs(weight.std().item() / (0.5 * width**-0.5) - 1) < 0.05
    assert not own.beta_bias_S.any()
    assert 0 < own.value_bias_SN.abs().max() <= width**-0.5
    rates = groups_by_name(gpt)
    assert {rates[f"residual.{name}"] for name in ("beta_SD", "value_SND")} == {(LR, WEIGHT_DECAY)}
    assert {rates[f"residual.{name}"] for name in ("beta_bias_S", "value_bias_SN", "norms.0.weight")} == {(LR, 0.0)}


def test_a_step_of_one_replaces_the_part_along_the_output_by_the_target() -> None:
    spec, x0 = stream_spec(1), embedding_like()
    strategy = DeepDelta(spec, **KEYS | {"eps": 1e-12}).double()
    strategy.reset()
    with torch.no_grad():
        strategy.beta_SD.zero_()
    direction = torch.zeros(6, dtype=torch.float64).index_fill(0, torch.tensor(2), -3.0)
    _, state = strategy.read(strategy.begin(x0), spec.sites[0])
    state = strategy.write(state, spec.sites[0], direction.expand_as(x0))
    out = strategy.end(state)
    value = 4 * torch.sigmoid(x0 @ strategy.value_SND[0, 0] + strategy.value_bias_SN[0])
    assert torch.allclose(out[..., 2], -value, rtol=0, atol=1e-12)
    others = [0, 1, 3, 4, 5]
    assert torch.allclose(out[..., others], x0[..., others], rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta_init", [0.0, 2.0])
def test_a_step_at_a_bound_is_an_error(beta_init: float) -> None:
    with pytest.raises(ValueError, match=r"residual.beta_init must be > 0 and < 2, got"):
        DeepDelta(stream_spec(), **KEYS | {"beta_init": beta_init})
