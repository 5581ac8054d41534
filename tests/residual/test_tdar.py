"""TDAR equals the submission's recurrence."""

import math

import torch

from src.residual.tdar import TDAR
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers

KEYS = {"query_std": 0.02, "newest_bias": 5.0, "eps": 1e-5, "lr_scale": 0.1}


def test_it_equals_the_submissions_recurrence() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(TDAR(spec, **KEYS))
    biases = torch.split(strategy.bias_P, [2, 3, 4])
    history = [x0]
    for i in range(4):
        x = x0
        if i > 0:
            h = torch.stack(history)
            key = h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            logit = key @ strategy.query_QD[i - 1] + biases[i - 1].view(-1, 1, 1)
            x = (torch.softmax(logit, dim=0).unsqueeze(-1) * h).sum(0)
        if i < 3:
            x = x + branches[2 * i](x)
            history.append(x + branches[2 * i + 1](x))
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-12)


def test_at_init_the_newest_stream_has_nearly_all_the_weight() -> None:
    spec, x0 = stream_spec(), embedding_like()
    strategy = TDAR(spec, **KEYS).double()
    x, history = x0, [x0]
    for _ in range(3):
        history.append(x)
        weight = math.exp(5) / (math.exp(5) + len(history) - 1)
        x = weight * history[-1] + (1 - weight) * sum(history[:-1]) / (len(history) - 1)
    nothing = [torch.zeros_like] * 6
    assert torch.allclose(flow(strategy, spec, x0, nothing), x, rtol=0, atol=1e-12)
    assert strategy.bias_P.tolist() == [0, 5, 0, 0, 5, 0, 0, 0, 5]


def test_queries_are_random_and_each_is_used() -> None:
    strategy = TDAR(stream_spec(24, 1024), **KEYS)
    torch.manual_seed(0)
    strategy.reset()
    assert abs(strategy.query_QD.std().item() - 0.02) < 1e-3
    assert sum(p.numel() for p in strategy.parameters()) == 24 * 1024 + 24 * 27 // 2
    (group,) = strategy.param_groups()
    assert (group.lr_scale, group.decay) == (0.1, False)
