"""LayerNorm scaling equals its equation; its initial weights."""

import torch

from src.residual.lns import LayerNormScaling
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt


def test_the_input_of_a_branch_shrinks_after_its_norm() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(LayerNormScaling(spec, output_init_scale=1.0))
    x = x0
    for k, branch in enumerate(branches):
        x = x + branch(strategy.norms[k](x) / (k // 2 + 1) ** 0.5)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-13)


def test_output_projections_start_unscaled_by_default() -> None:
    vanilla, unscaled = tiny_gpt().h[0].mlp.c_proj.weight, tiny_gpt("lns").h[0].mlp.c_proj.weight
    same = tiny_gpt("lns", strategy={"output_init_scale": 1.0}).h[0].mlp.c_proj.weight
    assert torch.allclose(unscaled, vanilla * 6**0.5)
    assert torch.equal(same, vanilla)
