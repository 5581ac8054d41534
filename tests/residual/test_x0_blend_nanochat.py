"""Blending with x0 against nanochat."""

import pytest
from torch import Tensor

from src.residual.x0_blend_nanochat import X0BlendNanochat
from tests.oracle import compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import component, composed_settings, tiny_gpt


def test_it_equals_its_source() -> None:
    """karpathy/nanochat @ 92d63d4, nanochat/gpt.py, GPT.forward."""
    spec = stream_spec(4)
    strategy: X0BlendNanochat = jittered(component("residual", "x0_blend_nanochat")(spec))

    def nanochat(x: Tensor, branches: Sublayers) -> Tensor:
        x0 = x
        for i in range(4):
            x = strategy.keep_L[i] * x + strategy.blend_L[i] * x0
            x = x + branches[2 * i](x)
            x = x + branches[2 * i + 1](x)
        return x

    compare_flow(strategy, spec, nanochat)


@pytest.mark.parametrize("n_layer", [1, 3, 12])
def test_initial_values_are_the_sources(n_layer: int) -> None:
    """karpathy/nanochat @ 92d63d4, nanochat/gpt.py, GPT.init_weights."""
    strategy: X0BlendNanochat = component("residual", "x0_blend_nanochat")(stream_spec(n_layer))
    for i in range(n_layer):
        assert strategy.keep_L[i].item() == pytest.approx(1.15 - 0.10 * i / max(n_layer - 1, 1))
        assert strategy.blend_L[i].item() == pytest.approx(0.20 - 0.15 * i / max(n_layer - 1, 1))


def test_groups_are_the_sources() -> None:
    """karpathy/nanochat @ 92d63d4, nanochat/gpt.py, GPT.setup_optimizer with scalar_lr=0.5."""
    groups = groups_by_name(tiny_gpt("x0_blend_nanochat"))
    assert groups["residual.keep_L"] == (pytest.approx(0.5 * 0.01), 0.05)
    assert groups["residual.blend_L"] == (pytest.approx(0.5), 0.0)


def test_a_pair_of_the_configuration_arrives_as_a_pair() -> None:
    assert composed_settings("residual=x0_blend_nanochat").residual.keywords["keep_init"] == (1.15, 1.05)
    assert composed_settings("residual=x0_blend", "residual.keep_init=1").residual.keywords["keep_init"] == 1.0
    with pytest.raises(
        ValueError, match=r"residual\.keep_init must be float or tuple\[float, float\], got \[1, 2, 3\]"
    ):
        composed_settings("residual=x0_blend", "residual.keep_init=[1,2,3]")
