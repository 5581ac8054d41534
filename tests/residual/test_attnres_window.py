"""Attention residuals over a window equal attnres with the sources outside of it masked."""

import pytest
import torch
from torch import Tensor

from src.residual.attnres import AttentionResiduals
from src.residual.attnres_window import WindowAttentionResiduals
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt


@pytest.mark.parametrize("window", [1, 2, 4])
def test_it_equals_its_source(window: int) -> None:
    """Section 5.3 of arXiv 2603.15031, on equations 1-4: "the most recent W layer outputs plus the token embedding"."""
    spec = stream_spec()
    strategy = jittered(WindowAttentionResiduals(spec, window=window, eps=1e-5))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        h, v = x0, [x0]
        for layer in range(len(branches) + 1):
            if layer > 0:
                values = torch.stack(v)
                keys = torch.nn.functional.rms_norm(values, (6,), strategy.key_gain_QD[layer - 1], eps=1e-5)
                logits = torch.einsum("d,ibtd->ibt", strategy.query_QD[layer - 1], keys)
                outside = [0 < i <= layer - window for i in range(len(v))]
                alpha = logits.masked_fill(torch.tensor(outside)[:, None, None], -torch.inf).softmax(0)
                h = torch.einsum("ibt,ibtd->btd", alpha, values)
            if layer < len(branches):
                v.append(branches[layer](h))
        return h

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_papers() -> None:
    """Section 5: all queries are zero; the hyperparameters are those of the baseline. Section 5.3: W = 8."""
    gpt = tiny_gpt("attnres_window")
    assert gpt.residual.window == 8
    assert not gpt.residual.query_QD.any()
    assert torch.equal(gpt.residual.key_gain_QD, torch.ones(6, 16))
    groups = groups_by_name(gpt)
    assert groups["residual.query_QD"] == groups["residual.key_gain_QD"] == (LR, 0.0)


def test_a_window_over_all_outputs_is_attnres() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    window = jittered(WindowAttentionResiduals(spec, window=6, eps=1e-5))
    attnres = jittered(AttentionResiduals(spec, eps=1e-5))
    assert torch.allclose(flow(window, spec, x0, branches), flow(attnres, spec, x0, branches), rtol=0, atol=1e-12)


def test_its_weights_are_those_of_the_window() -> None:
    spec, x0 = stream_spec(), embedding_like()
    strategy = WindowAttentionResiduals(spec, window=2, eps=1e-5).double()
    weight_KJ = strategy.mixing(spec.sites, x0, (x0,) * 6)
    third = [1 / 3] * 3
    rows = [[1.0], [0.5, 0.5], third, [third[0], 0, *third[1:]], [third[0], 0, 0, *third[1:]]]
    for row, weight_J in zip(rows, weight_KJ, strict=False):
        assert weight_J.tolist() == pytest.approx([*row, *[0.0] * (7 - len(row))])
