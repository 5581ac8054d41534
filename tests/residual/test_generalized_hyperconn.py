"""Generalized hyper-connections equal algorithms 1 to 3 of the paper."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.residual.generalized_hyperconn import GeneralizedHyperConnections
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt, tokens


@pytest.mark.parametrize(("n", "m"), [(3, 2), (4, 2), (2, 1), (3, 3)])
def test_it_equals_its_source(n: int, m: int) -> None:
    """Compare with arXiv 2511.11238, algorithm 2 (`GHyperConnection`), within algorithms 1 and 3."""
    spec, dim = stream_spec(), 6
    strategy = jittered(GeneralizedHyperConnections(spec, n_segment=n, n_frac=m, eps=1e-6))
    factor = 1.0 / math.sqrt(dim // m)

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        h = x0 @ strategy.expand_XD.T
        for k, branch in enumerate(branches):
            h_reshape = h.reshape(-1, n, h.shape[-1] // n)
            norm_h = h_reshape * (h_reshape.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * strategy.gain_SF[k]
            alpha_beta = (
                torch.tanh(norm_h @ strategy.w_SFC[k] * factor) * strategy.scale_SNC[k] + strategy.static_SNC[k]
            )
            alpha, beta = alpha_beta.split((m + n, m), dim=-1)
            mix_h = (h_reshape.transpose(1, 2) @ alpha).transpose(1, 2)
            h_o = branch(mix_h[:, :m].reshape(x0.shape)).reshape(-1, m, dim // m)
            h = (beta @ h_o + mix_h[:, m:]).reshape(h.shape)
        if n > m and n % m == 0:  # the paper leaves the norm out at a width of 1.5
            flat = h.reshape(-1, h.shape[-1])
            h = F.group_norm(flat, n // m, strategy.group_gain_X, strategy.group_bias_X).reshape(h.shape)
        return h @ strategy.reduce_DX.T

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """arXiv 2511.11238, equations 11 and 12, algorithm 2; A and B have no weight decay, the dynamic part has.

    That norm and scale of the dynamic part have none is a stated deviation.
    """
    gpt = tiny_gpt("generalized_hyperconn")
    strategy = gpt.residual
    alpha_NX = torch.tensor([[1.0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 1]])
    beta_NM = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    assert all(torch.equal(static_NC, torch.cat((alpha_NX, beta_NM), 1)) for static_NC in strategy.static_SNC)
    assert strategy.scale_SNC.eq(1).all()
    assert strategy.w_SFC.eq(0).all()
    groups = {name: group for name, group in groups_by_name(gpt).items() if name.startswith("residual.")}
    decayed, others = ("w_SFC", "expand_XD", "reduce_DX"), ("static_SNC", "scale_SNC", "gain_SF")
    assert groups == {
        **{f"residual.{name}": (LR, WEIGHT_DECAY) for name in decayed},
        **{f"residual.{name}": (LR, 0.0) for name in others},
    }


def test_at_an_integer_width_it_is_near_vanilla() -> None:
    keys = {"n_segment": 4, "n_frac": 2}
    ours, plain = tiny_gpt("generalized_hyperconn", strategy=keys).double(), tiny_gpt().double()
    difference = (ours(tokens()) - plain(tokens())).abs().max()
    assert 0 < difference < 0.05


def test_copies_of_a_segment_separate_in_training() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = GeneralizedHyperConnections(spec, n_segment=3, n_frac=2, eps=1e-6).double()
    optimizer = torch.optim.AdamW(strategy.parameters(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        flow(strategy, spec, x0, branches).square().mean().backward()
        optimizer.step()
    state = strategy.begin(x0)
    for site, branch in zip(spec.sites, branches, strict=True):
        u, state = strategy.read(state, site)
        state = strategy.write(state, site, branch(u))
    first, _, copy = state.h_BTNF.unbind(2)
    assert (first - copy).norm() > 1e-2 * first.norm()


@pytest.mark.parametrize(("n", "m"), [(3, 4), (8, 4), (1, 2)])
def test_segments_that_do_not_fit_raise_an_error(n: int, m: int) -> None:
    message = rf"n_frac must be <= residual.n_segment={n} and divide model.n_embd=6, got {m}"
    with pytest.raises(ValueError, match=message):
        GeneralizedHyperConnections(stream_spec(), n_segment=n, n_frac=m, eps=1e-6)
