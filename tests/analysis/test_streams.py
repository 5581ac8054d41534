"""Spread and gains of known streams and matrices."""

import torch

from src.analysis.forward import record_forward
from src.analysis.streams import backward_gain, compose_to_end, forward_gain, measure_streams, pair_cosine, spread
from tests.support import jitter, tiny_gpt, tokens


def test_copies_have_cosine_1_and_spread_0_and_orthogonal_streams_the_opposite() -> None:
    copies = torch.ones(1, 2, 3, 4)
    orthogonal = torch.eye(4).expand(1, 2, 4, 4)
    assert torch.allclose(pair_cosine(copies), torch.ones(1))
    assert torch.allclose(spread(copies), torch.zeros(1))
    assert torch.allclose(pair_cosine(orthogonal), torch.zeros(1))
    assert torch.allclose(spread(orthogonal), torch.full((1,), 3 / 4))  # |mean|^2 = 1/4 of |H_i|^2
    opposite = torch.tensor([1.0, -1.0]).view(1, 1, 2, 1)
    assert torch.allclose(pair_cosine(opposite), torch.tensor([-1.0]))
    assert torch.allclose(spread(opposite), torch.ones(1))


def test_gains_of_a_known_matrix_and_of_its_composition() -> None:
    m = torch.tensor([[1.0, -2.0], [0.5, 0.0]]).view(1, 1, 2, 2)
    assert forward_gain(m).item() == 3
    assert backward_gain(m).item() == 2
    swap = torch.tensor([[0.0, 3.0], [1.0, 0.0]]).view(1, 1, 2, 2)
    composed = compose_to_end((m, swap))
    assert torch.equal(composed[1], swap)
    assert torch.equal(composed[0][0, 0], swap[0, 0] @ m[0, 0])  # the last site is applied last


def test_static_hyper_connections_mix_by_the_identity_at_init() -> None:
    found = measure_streams(record_forward(tiny_gpt("hyperconn_static", n_layer=2).eval(), tokens()))
    for name in ("site_forward", "site_backward", "composed_forward", "composed_backward"):
        assert torch.equal(found[name], torch.ones(3, 4))


def test_doubly_stochastic_mixing_keeps_gains_of_1_and_free_mixing_does_not() -> None:
    mhc = measure_streams(record_forward(jitter(tiny_gpt("mhc_lite", n_layer=2)).eval(), tokens()))
    free = measure_streams(record_forward(jitter(tiny_gpt("hyperconn_static", n_layer=2)).eval(), tokens()))
    for name in ("composed_forward", "composed_backward"):
        assert torch.allclose(mhc[name], torch.ones(3, 4), atol=1e-5)
        assert (free[name] - 1).abs().min() > 1e-3
    a_SNM = jitter(tiny_gpt("hyperconn_static", n_layer=2)).residual.a_SNM[..., 1:].detach()
    product = a_SNM[3].T @ a_SNM[2].T @ a_SNM[1].T @ a_SNM[0].T
    assert torch.allclose(free["composed_forward"][:, 0], product.abs().sum(1).max().expand(3))
    assert torch.allclose(free["composed_backward"][:, 0], product.abs().sum(0).max().expand(3))


def test_parallel_lanes_are_one_below_their_first_layer() -> None:
    found = measure_streams(record_forward(jitter(tiny_gpt("parallel_lanes")).eval(), tokens()))  # from layer 2 of 3 on
    assert torch.allclose(found["cosine"][:, :5], torch.ones(3, 5))
    assert (found["cosine"][:, -1] < 0.999).all()
    assert found["site_forward"] == "the strategy does not map several streams linearly between sites"
