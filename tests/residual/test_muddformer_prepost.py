"""MUDDFormer with norms around its sums equals its layer written out."""

import torch

from tests.residual.test_muddformer import write_out
from tests.support import jitter, tiny_gpt, tokens


def test_it_equals_the_papers_layer() -> None:
    gpt = jitter(tiny_gpt("muddformer_prepost")).double()
    expected = write_out(gpt, tokens(), prepost=True)
    assert torch.allclose(gpt.hidden(tokens()), expected, rtol=0, atol=1e-10)


def test_the_gain_of_the_residuals_sum_starts_small() -> None:
    strategy = tiny_gpt("muddformer_prepost").residual
    assert torch.equal(strategy.post_gain_LD, torch.full((3, 16), 0.001))
    assert not strategy.dense.a_P.any()
