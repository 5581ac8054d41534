"""Post-LN against the paper."""

import torch

from src.residual.postln import PostLN
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """arXiv 1706.03762, section 3.1: LayerNorm(x + Sublayer(x)) around each of the two sublayers of a layer."""
    spec = stream_spec()
    strategy = jittered(PostLN(spec))

    def oracle(x: torch.Tensor, branches: Sublayers) -> torch.Tensor:
        for branch, norm in zip(branches, strategy.norms, strict=True):
            z = x + branch(x)
            centred = z - z.mean(-1, keepdim=True)
            x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
        return x

    compare_flow(strategy, spec, oracle)


def test_a_model_has_one_norm_per_sublayer_and_no_other() -> None:
    """The decoder of the paper (section 3.1, figure 1) ends with the norm of its last sublayer."""
    gpt = tiny_gpt("postln")
    norms = {name: rate for name, rate in groups_by_name(gpt).items() if "norm" in name or "ln_" in name}
    assert norms == {f"residual.norms.{k}.weight": (LR, 0.0) for k in range(6)}
    assert all(torch.equal(norm.weight, torch.ones(16)) for norm in gpt.residual.norms)
