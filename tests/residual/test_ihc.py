"""Identity hyper-connections equal the code of HY V4."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.hyper_streams import settle
from src.residual.ihc import IdentityHyperConnections
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, jittered, stream_spec
from tests.support import tiny_gpt, tokens

KEYS: dict[str, Any] = {"n_stream": 4, "scale_init": 0.01, "phi_std": 0.006, "eps": 1e-6, "norm_eps": 1e-5}


def test_it_equals_its_source() -> None:
    """Compare with huggingface/transformers @ cdda7eb, `models/hy_v4/modular_hy_v4.py`."""
    spec, n = stream_spec(), 4
    strategy = jittered(IdentityHyperConnections(spec, **KEYS))

    def gated_logits(hidden_states: Tensor, mix_weight: Tensor) -> Tensor:
        flat = hidden_states.flatten(2)
        return F.linear(flat, mix_weight) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-5)

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        states = torch.stack([x0] * n, dim=2)
        for k, branch in enumerate(branches):
            scale, base = strategy.scale_S2[k], strategy.bias_SC[k]
            pre_logits, post_logits = gated_logits(states, strategy.phi_SCV[k]).split(n, dim=-1)
            pre = torch.sigmoid(pre_logits * scale[0] + base[:n]) + 1e-6
            post = 2.0 * torch.sigmoid(post_logits * scale[1] + base[n:]) + 1e-6
            y = branch(torch.sum(pre.unsqueeze(-1) * states, dim=2))
            states = post.unsqueeze(-1) * y.unsqueeze(-2) + states
        logits = gated_logits(states, strategy.head_phi_NV)
        head = torch.sigmoid(logits * strategy.head_scale + strategy.head_bias_N) + 1e-6
        return torch.sum(head.unsqueeze(-1) * states, dim=2)

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """huggingface/transformers @ cdda7eb, `_init_weights` of hy_v4; it has no optimizer, phi decays by choice."""
    gpt = tiny_gpt("ihc", n_embd=64)
    strategy = gpt.residual
    for phi in (strategy.phi_SCV, strategy.head_phi_NV):
        assert abs(phi.std() / 0.006 - 1) < 0.1
    for scale in (strategy.scale_S2, strategy.head_scale):
        assert torch.equal(scale, torch.full_like(scale, 0.01))
    for read in (strategy.bias_SC[:, :4], strategy.head_bias_N):
        assert torch.equal(read, torch.full_like(read, -math.log(3)))
    assert strategy.bias_SC[:, 4:].eq(0).all()
    groups = {name: group for name, group in groups_by_name(gpt).items() if name.startswith("residual.")}
    assert {name for name, (_, decay) in groups.items() if decay} == {"residual.phi_SCV", "residual.head_phi_NV"}
    assert set(groups.values()) == {(LR, WEIGHT_DECAY), (LR, 0.0)}


def test_at_init_it_is_close_to_vanilla_and_its_streams_differ() -> None:
    ours, plain = tiny_gpt("ihc").double(), tiny_gpt().double()
    difference = (ours(tokens()) - plain(tokens())).abs().max()
    assert 0 < difference < 1e-2
    spec, x0 = stream_spec(), embedding_like()
    strategy = IdentityHyperConnections(spec, **KEYS).double()
    strategy.reset()
    _, state = strategy.read(strategy.begin(x0), spec.sites[0])
    h = settle(strategy.write(state, spec.sites[0], x0))
    assert (h - h.mean(2, keepdim=True)).abs().max() > 1e-6
