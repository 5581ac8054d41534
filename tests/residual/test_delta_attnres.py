"""Delta attention residuals equal their equation."""

import torch

from src.residual.delta_attnres import DeltaAttentionResiduals
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_each_input_adds_attention_over_the_deltas() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(DeltaAttentionResiduals(spec, gate_init=0.0, eps=1e-5))
    x, sources = x0, [x0]
    for k, branch in enumerate(branches):
        routed = x0
        if k > 0:
            query = strategy.query_QD[k - 1] * strategy.key_gain_QD[k - 1]
            score = [v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt() @ query for v in sources]
            share = torch.stack(score).softmax(0)
            routed = sum(w.unsqueeze(-1) * v for w, v in zip(share, sources, strict=True))
        y = branch(x + strategy.gate_S[k] * routed)
        x = x + y
        sources.append(y)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-11)


def test_the_last_output_is_not_a_source() -> None:
    spec, x0 = stream_spec(), embedding_like()
    strategy = DeltaAttentionResiduals(spec, gate_init=0.0, eps=1e-5).double()
    state = strategy.begin(x0)
    for site in spec.sites:
        state = strategy.write(state, site, x0)
    assert len(state.sources.v_BTD) == 6
