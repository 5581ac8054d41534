"""Learned stream scaling against its source, on the streams of hyper-connections."""

import pytest
import torch
from torch import Tensor

from src.residual.stream_scaling import StreamScaling
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import component, jitter, tiny_gpt, tokens


def test_it_equals_its_source() -> None:
    """brain-lab-research/hc-stream-collapse @ 15d96c4, hyper_conn/mhc_lite.py, `StreamExpandLSS`; on static streams."""
    spec = stream_spec()
    strategy = jittered(component("residual", "stream_scaling+hyperconn_static")(spec))
    lss, static = strategy.parts["stream_scaling"].gain_ND, strategy.parts["hyperconn_static"]

    def oracle(x: Tensor, branches: Sublayers) -> Tensor:
        h = torch.stack([x * lss[s] for s in range(4)], dim=2)
        for branch, alpha, beta in zip(branches, static.a_SNM, static.b_SN, strict=True):
            mixed = torch.einsum("bsnd,nm->bsmd", h, alpha)
            h = mixed[:, :, 1:] + torch.einsum("bsd,n->bsnd", branch(mixed[:, :, 0]), beta)
        return h.mean(2)

    compare_flow(strategy, spec, oracle)


def test_alone_it_is_a_gain_on_the_embedding() -> None:
    spec = stream_spec()
    strategy = jittered(StreamScaling(spec, gain_init=0.6))
    (gain,) = strategy.parameters()

    def oracle(x: Tensor, branches: Sublayers) -> Tensor:
        x = x * gain
        for branch in branches:
            x = x + branch(x)
        return x

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_those_of_its_source() -> None:
    """The same file: 0.6 plus Xavier-uniform noise, bound sqrt(6 / (N + D)); model.py decays parameters of 2 axes."""
    gpt = tiny_gpt("stream_scaling+mhc_lite", n_embd=64)
    gain = gpt.residual.parts["stream_scaling"].gain_ND.detach()
    assert gain.shape == (4, 64)
    bound = (6 / 68) ** 0.5
    assert (gain - 0.6).abs().max() <= bound
    assert (gain - 0.6).std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert groups_by_name(gpt)["residual.parts.stream_scaling.gain_ND"] == (LR, WEIGHT_DECAY)


@pytest.mark.parametrize("name", ["hyperconn", "mhc", "mhc_lite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_gains_of_one_nothing_changes(name: str, dtype: torch.dtype) -> None:
    ours, plain = jitter(tiny_gpt(f"stream_scaling+{name}")), jitter(tiny_gpt(name))
    ours.load_state_dict(
        {k.replace("residual.", f"residual.parts.{name}."): v for k, v in plain.state_dict().items()}, strict=False
    )
    ours.residual.parts["stream_scaling"].gain_ND.data.fill_(1)
    grads = []
    for gpt in (ours.to(dtype), plain.to(dtype)):
        gpt.loss(tokens(), tokens(seed=1)).backward()
        grads.append(gpt.embedding.wte.weight.grad)
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-6 if dtype == torch.float32 else 1e-12)
