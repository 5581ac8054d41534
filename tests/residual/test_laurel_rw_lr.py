"""LAuReL-RW+LR against its equation, and the source's count."""

import torch

from src.residual.laurel_rw_lr import LaurelRWLR
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_the_weighted_sum_includes_the_low_rank_map() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(LaurelRWLR(spec, rank=2))
    x = x0
    for k, branch in enumerate(branches):
        a, b = (2 * strategy.w_S2[k].softmax(0)).tolist()
        x = a * branch(x) + b * (x + x @ strategy.a_SDR[k] @ strategy.b_SRD[k])
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-12)


def test_only_the_matrices_have_weight_decay() -> None:
    strategy = LaurelRWLR(stream_spec(), rank=2)
    assert [(g.decay, len(g.params)) for g in strategy.param_groups()] == [(True, 2), (False, 1)]
