"""Attention residuals equal the paper's stacked equations."""

import torch
from torch import Tensor

from src.residual.attnres import AttentionResiduals
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """Equations 1-4 of arXiv 2603.15031, and the same mixture of all sources before the final norm.

    phi(q, k) = exp(q^T RMSNorm(k)); the norm has a gain, which the paper counts among the parameters of a layer.
    """
    spec = stream_spec()
    strategy = jittered(AttentionResiduals(spec, eps=1e-5))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        h, v = x0, [x0]
        for layer in range(len(branches) + 1):
            if layer > 0:
                values = torch.stack(v)
                keys = torch.nn.functional.rms_norm(values, (6,), strategy.key_gain_QD[layer - 1], eps=1e-5)
                alpha = torch.einsum("d,ibtd->ibt", strategy.query_QD[layer - 1], keys).softmax(0)
                h = torch.einsum("ibt,ibtd->btd", alpha, values)
            if layer < len(branches):
                v.append(branches[layer](h))
        return h

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_papers() -> None:
    """Section 5: all queries are zero; the hyperparameters are those of the baseline."""
    gpt = tiny_gpt("attnres")
    assert not gpt.residual.query_QD.any()
    assert torch.equal(gpt.residual.key_gain_QD, torch.ones(6, 16))
    groups = groups_by_name(gpt)
    assert groups["residual.query_QD"] == groups["residual.key_gain_QD"] == (LR, 0.0)


def test_it_starts_as_the_uniform_mean() -> None:
    spec, x0 = stream_spec(), embedding_like()
    strategy = AttentionResiduals(spec, eps=1e-5).double()
    constant = [lambda x, i=i: torch.full_like(x, float(i)) for i in range(6)]
    expected = (x0 + sum(range(6))) / 7
    assert torch.allclose(flow(strategy, spec, x0, constant), expected, atol=1e-12)


def test_the_first_site_has_no_query() -> None:
    strategy = AttentionResiduals(stream_spec(24, 1024), eps=1e-5)
    assert sum(p.numel() for p in strategy.parameters()) == 98_304
