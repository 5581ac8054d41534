"""Multi-head attention residuals equal the authors' router; the heads of depth attention are tested here too."""

import pytest
import torch
from torch import Tensor

from src.kernels import depth_attention
from src.residual.attnres import AttentionResiduals
from src.residual.attnres_multihead import MultiHeadAttentionResiduals
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_it_equals_its_source(heads: int) -> None:
    """wdlctc/hyper-connection-factory @ c1562d7, hcfactory/connections/depth_attention.py: DepthRouter, AttnRes, MHAR.

    The norm of a key is over all channels, without a gain; the gain multiplies the query. There is one router per
    sublayer and one for the output. The source's first router has one source, whose weight is 1.
    """
    spec = stream_spec()
    strategy = jittered(MultiHeadAttentionResiduals(spec, n_depth_head=heads, eps=1e-6))

    def route(router: int, sources: list[Tensor]) -> Tensor:
        if router < 0:
            return sources[0]
        keys = [torch.nn.functional.rms_norm(s, (s.shape[-1],), eps=1e-6) for s in sources]
        q = strategy.query_QD[router] * strategy.key_gain_QD[router]
        logits = torch.stack([(k * q).unflatten(-1, (heads, -1)).sum(-1) for k in keys])
        alpha = logits.softmax(0)
        return sum(a.repeat_interleave(6 // heads, dim=-1) * s for a, s in zip(alpha, sources, strict=True))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        sources = [x0]
        for i, branch in enumerate(branches):
            sources.append(branch(route(i - 1, sources)))
        return route(len(branches) - 1, sources)

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """Queries 0, gains 1 (DepthRouter); no decay and lr x 1 for all of a connection's parameters (hcfactory/train.py)."""
    gpt = tiny_gpt("attnres_multihead")
    assert gpt.residual.n_depth_head == 4
    assert not gpt.residual.query_QD.any()
    assert torch.equal(gpt.residual.key_gain_QD, torch.ones(6, 16))
    groups = groups_by_name(gpt)
    assert groups["residual.query_QD"] == groups["residual.key_gain_QD"] == (LR, 0.0)


def test_one_head_is_attnres() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    one = jittered(MultiHeadAttentionResiduals(spec, n_depth_head=1, eps=1e-5))
    attnres = jittered(AttentionResiduals(spec, eps=1e-5))
    assert torch.allclose(flow(one, spec, x0, branches), flow(attnres, spec, x0, branches), rtol=0, atol=1e-12)


def test_equal_keys_of_zero_weigh_all_heads_alike_and_other_keys_do_not() -> None:
    x0, y = embedding_like(), embedding_like().flip(1)
    key_QD = torch.zeros(1, 6, dtype=torch.float64)
    key_QD[0, :3] = 1.0  # of the first head alone
    sources = depth_attention.append(depth_attention.open(x0, key_QD, 1e-6, n_head=2), y, 0)
    mean = (x0 + y) / 2
    out = depth_attention.attend(sources, 0)
    assert torch.allclose(out[..., 3:], mean[..., 3:], rtol=0, atol=1e-12)
    assert not torch.allclose(out[..., :3], mean[..., :3], rtol=0, atol=1e-3)


@pytest.mark.parametrize("heads", [0, 4])
def test_heads_that_do_not_divide_the_width_are_rejected(heads: int) -> None:
    with pytest.raises(ValueError, match=f"n_depth_head must divide n_embd=6, got {heads}"):
        MultiHeadAttentionResiduals(stream_spec(), n_depth_head=heads, eps=1e-6)
