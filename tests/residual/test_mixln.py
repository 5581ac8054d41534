"""Mix-LN against its equation."""

import pytest
import torch

from src.residual.mixln import MixLN
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt


def test_the_first_layers_are_post_ln_and_the_others_pre_ln() -> None:
    spec, branches, x0 = stream_spec(8), sublayers(16), embedding_like()
    strategy = jittered(MixLN(spec, post_fraction=0.25))
    x = x0
    for k, branch in enumerate(branches):
        x = strategy.norms[k](x + branch(x)) if k < 4 else x + branch(x)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-12)


def test_the_trunk_builds_the_norms_that_the_strategy_does_not() -> None:
    names = [name for name, _ in tiny_gpt("mixln", n_layer=4).named_parameters() if "ln_" in name]
    assert {name.split(".")[1] for name in names if name.startswith("h.")} == {"1", "2", "3"}
    assert any(name.startswith("ln_f") for name in names)


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_a_share_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"residual.post_fraction must be in \(0, 1\], got"):
        MixLN(stream_spec(), post_fraction=fraction)
