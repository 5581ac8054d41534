"""Post-LN against its equation."""

import torch

from src.residual.postln import PostLN
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt


def test_the_stream_is_normed_after_every_sum() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(PostLN(spec))
    x = x0
    for branch, norm in zip(branches, strategy.norms, strict=True):
        x = norm(x + branch(x))
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-13)


def test_a_model_has_no_other_norm() -> None:
    names = [name for name, _ in tiny_gpt("postln").named_parameters()]
    assert sum("norms" in name for name in names) == 6
    assert not any("ln_" in name for name in names)
