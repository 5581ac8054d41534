"""TDAR equals the submission's recurrence."""

import math

import torch
from torch import Tensor

from src.residual.tdar import TDAR
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec
from tests.support import tiny_gpt

KEYS = {"query_std": 0.02, "newest_bias": 5.0, "eps": 1e-5, "lr_scale": 0.1}


def test_it_equals_its_source() -> None:
    """The recurrence of a submission to MLS-Bench llm-pretrain-residual: its description, as there is no public code.

    History H = [x0]; before block i > 0: logits_j = <q_i, RMSNorm(H_j)> + b_ij without a gain, and the block, with its
    own residual, runs on the mixture and is appended; the output is a last mixture with q_out, b_out.
    """
    spec = stream_spec()
    strategy = jittered(TDAR(spec, **KEYS))
    biases = torch.split(strategy.bias_P, [2, 3, 4])

    def mix(history: list[Tensor], query: Tensor, bias_J: Tensor) -> Tensor:
        h = torch.stack(history)
        logits = torch.nn.functional.rms_norm(h, (6,), eps=1e-5) @ query + bias_J[:, None, None]
        return torch.einsum("jbt,jbtd->btd", logits.softmax(0), h)

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        history = [x0]
        for i in range(3):
            x = x0 if i == 0 else mix(history, strategy.query_QD[i - 1], biases[i - 1])
            x = x + branches[2 * i](x)
            history.append(x + branches[2 * i + 1](x))
        return mix(history, strategy.query_QD[2], biases[2])

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """Queries N(0, 0.02), bias 5 on the newest; no decay, and the schedule's rate, which replaced the group's x 0.1."""
    strategy = TDAR(stream_spec(24, 1024), **KEYS)
    torch.manual_seed(0)
    strategy.reset()
    assert abs(strategy.query_QD.std().item() - 0.02) < 1e-3
    assert sum(p.numel() for p in strategy.parameters()) == 24 * 1024 + 24 * 27 // 2
    gpt = tiny_gpt("tdar")
    assert gpt.residual.bias_P.tolist() == [0, 5, 0, 0, 5, 0, 0, 0, 5]
    groups = groups_by_name(gpt)
    assert groups["residual.query_QD"] == groups["residual.bias_P"] == (LR, 0.0)


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
