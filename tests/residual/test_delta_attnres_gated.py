"""Gated delta attention residuals equal the authors' connection with its zero gate."""

import torch
from torch import Tensor

from src.residual.delta_attnres_gated import GatedDeltaAttentionResiduals
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """wdlctc/hyper-connection-factory @ c1562d7, hcfactory/connections/depth_attention.py: DeltaAttnRes, gate="zero".

    The first router has one source, whose weight is 1 whatever its query.
    """
    spec = stream_spec()
    strategy = jittered(GatedDeltaAttentionResiduals(spec, gate_init=0.0, eps=1e-6))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        h, sources = x0, [x0]
        for i, f in enumerate(branches):
            routed = x0
            if i > 0:
                q = strategy.query_QD[i - 1] * strategy.key_gain_QD[i - 1]
                keys = [torch.nn.functional.rms_norm(s, (s.shape[-1],), eps=1e-6) for s in sources]
                alpha = torch.stack([(k * q).sum(-1) for k in keys]).softmax(0)
                routed = sum(a[..., None] * s for a, s in zip(alpha, sources, strict=True))
            out = f(h + strategy.gate_S[i] * routed)
            h = h + out
            sources.append(out)
        return h

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """Gates and queries 0, gains 1; no decay and lr x 1 for all of a connection's parameters (hcfactory/train.py)."""
    gpt = tiny_gpt("delta_attnres_gated")
    assert not gpt.residual.gate_S.any()
    assert not gpt.residual.query_QD.any()
    assert torch.equal(gpt.residual.key_gain_QD, torch.ones(5, 16))
    groups = groups_by_name(gpt)
    assert {groups[f"residual.{name}"] for name, _ in gpt.residual.named_parameters()} == {(LR, 0.0)}
