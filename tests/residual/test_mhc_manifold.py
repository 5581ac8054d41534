"""mHC with other maps to the mixing."""

from itertools import permutations
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.residual.families.manifolds import ManifoldName
from src.residual.mhc import ManifoldHyperConnections
from src.residual.mhc_manifold import OtherManifoldHyperConnections
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import jitter, tiny_gpt, tokens

KEYS: dict[str, Any] = {
    "n_stream": 3,
    "manifold": "orthostochastic",
    "n_iteration": 20,
    "scale_init": 0.01,
    "own_share": 0.7,
    "res_logit": 8.0,
    "eps": 1e-6,
    "stream_dtype": "float32",
}


def rotation(numbers: Tensor) -> Tensor:
    """Return the rotation (I - K)(I + K)^-1 of three streams, K skew-symmetric with three numbers above its diagonal."""
    a, b, c = numbers
    zero = torch.zeros_like(a)
    skew = torch.stack((zero, a, b, -a, zero, c, -b, -c, zero)).view(3, 3)
    one = torch.eye(3, dtype=torch.float64)
    return (one - skew) @ torch.linalg.inv(one + skew)


def blend(numbers: Tensor) -> Tensor:
    """Return the blend of the six permutation matrices of three streams."""
    matrices = torch.stack([torch.eye(3, dtype=torch.float64)[list(order)] for order in permutations(range(3))])
    return (numbers.softmax(0)[:, None, None] * matrices).sum(0)


MAPS = {"cayley": rotation, "orthostochastic": lambda numbers: rotation(numbers) ** 2, "permutations": blend}


@pytest.mark.parametrize("name", MAPS)
def test_it_equals_its_source(name: str) -> None:
    """Compare with arXiv 2512.24880, equations 3, 7 and 8, token by token, with the map written out in place of (8)."""
    spec, n = stream_spec(), 3
    strategy = jittered(OtherManifoldHyperConnections(spec, **{**KEYS, "manifold": name}))

    def one_token(x: Tensor, branches: Sublayers) -> Tensor:
        streams = torch.stack([x] * n)
        for k, branch in enumerate(branches):
            vec = F.rms_norm(streams.flatten(), (n * 6,), eps=1e-6)
            pre, post, res = (strategy.phi_SCV[k] @ vec).split((n, n, len(strategy.phi_SCV[k]) - 2 * n))
            b_pre, b_post, b_res = strategy.bias_SC[k].split((n, n, len(res)))
            alpha_pre, alpha_post, alpha_res = strategy.scale_S3[k]
            y = branch(torch.sigmoid(alpha_pre * pre + b_pre) @ streams)
            mixed = MAPS[name](alpha_res * res + b_res) @ streams
            streams = mixed + 2 * torch.sigmoid(alpha_post * post + b_post).unsqueeze(1) * y
        return streams.mean(0)

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        return torch.stack([one_token(x, branches) for x in x0.flatten(0, 1)]).view(x0.shape)

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_those_of_mhc() -> None:
    gpt = tiny_gpt("mhc_manifold")
    strategy, mhc = gpt.residual, tiny_gpt("mhc").residual
    assert torch.equal(strategy.bias_SC[:, :8], mhc.bias_SC[:, :8])
    assert torch.equal(strategy.scale_S3, mhc.scale_S3)
    assert strategy.phi_SCV.eq(0).all()
    groups = {name: group for name, group in groups_by_name(gpt).items() if name.startswith("residual.")}
    assert groups == {
        "residual.phi_SCV": (LR, WEIGHT_DECAY),
        "residual.scale_S3": (LR, 0.0),
        "residual.bias_SC": (LR, 0.0),
    }


def test_with_sinkhorn_it_is_mhc_bit_for_bit() -> None:
    spec, x0, branches = stream_spec(), embedding_like(), sublayers(6)
    ours = jittered(OtherManifoldHyperConnections(spec, **{**KEYS, "manifold": "sinkhorn"}))
    theirs = jittered(ManifoldHyperConnections(spec, **{key: KEYS[key] for key in KEYS if key != "manifold"}))
    assert torch.equal(flow(ours, spec, x0, branches), flow(theirs, spec, x0, branches))


@pytest.mark.parametrize("name", get_args(ManifoldName))
def test_every_map_starts_as_vanilla_and_trains_every_parameter(name: ManifoldName) -> None:
    ours, plain = tiny_gpt("mhc_manifold", strategy={"manifold": name}).double(), tiny_gpt().double()
    assert (ours(tokens()) - plain(tokens())).abs().max() < 1e-6
    gpt = jitter(ours)
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert all(p.grad is not None and p.grad.flatten(1).abs().amax(1).gt(0).all() for p in gpt.residual.parameters())


def test_streams_in_bfloat16_stay_close() -> None:
    stored, exact = (tiny_gpt("mhc_manifold", strategy={"stream_dtype": d}) for d in ("bfloat16", "float32"))
    difference = jitter(stored).hidden(tokens()) - jitter(exact).hidden(tokens())
    assert 0 < difference.abs().max() < 0.2
