"""Looped depth beside Huginn's code.

Covers `src/models/loops.py` too.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.models.flops import count_flops_per_token, describe_visits
from src.models.gpt import GPT
from src.recurrence.base import RecurrenceSpec
from src.recurrence.looped import LoopedDepth
from tests.oracle import LR, WEIGHT_DECAY, compare_model, groups_by_name
from tests.support import component, jitter, tiny_gpt, tokens


def built(n_layer: int, **keys: object) -> LoopedDepth:
    looped: LoopedDepth = component("recurrence", "looped", **keys)(RecurrenceSpec(n_layer, 16, bias=False))
    return looped


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("prelude", "coda", "loops"), [(1, 1, 3), (2, 1, 1), (0, 2, 2)])
def test_it_equals_its_source(prelude: int, coda: int, loops: int, bias: bool) -> None:
    """seal-rg/recurrent-pretraining @ 59e0b69, recpre/model_dynamic.py: RecurrentGPT.forward, injection_type linear.

    `iterate_forward` returns ln_f of the last state; state_init zero.
    """
    visits = {"prelude": prelude, "coda": coda, "loops": loops}
    gpt = jitter(tiny_gpt(recurrence="looped", n_layer=4, bias=bias, visits=visits)).double()
    adapter = gpt.adapter.linear

    def block(x: Tensor, layer: int) -> Tensor:
        x = x + gpt.h[layer].attn(gpt.h[layer].ln_1(x))
        return x + gpt.h[layer].mlp(gpt.h[layer].ln_2(x))

    def oracle(gpt: GPT, idx: Tensor) -> Tensor:
        input_embeds: Tensor = gpt.embedding(idx)
        for layer in range(prelude):
            input_embeds = block(input_embeds, layer)
        x = torch.zeros_like(input_embeds)
        for _ in range(loops):
            x = F.linear(torch.cat([x, input_embeds], dim=-1), adapter.weight, adapter.bias)
            for layer in range(prelude, 4 - coda):
                x = block(x, layer)
        x = gpt.ln_f(x)
        for layer in range(4 - coda, 4):
            x = block(x, layer)
        return gpt.ln_f(x)

    compare_model(gpt, oracle)


def test_the_adapter_starts_as_in_the_source_and_decays() -> None:
    """recpre/init.py, `takase`, which nebel-raven-3.5b has: normal of std sqrt(2 / (5 D)), there cut at three of them."""
    gpt = tiny_gpt(recurrence="looped", n_embd=128, bias=True)
    weight, std = gpt.adapter.linear.weight, (2 / (5 * 128)) ** 0.5
    assert weight.shape == (128, 256)
    assert weight.std().item() == pytest.approx(std, rel=0.03)
    assert not gpt.adapter.linear.bias.any()
    groups = groups_by_name(gpt)
    assert groups["adapter.linear.weight"] == (LR, WEIGHT_DECAY)
    assert groups["adapter.linear.bias"] == (LR, 0.0)  # no_weight_decay_for_bias_and_norm_params


def test_the_trunk_starts_as_without_loops() -> None:
    ours, plain = tiny_gpt(recurrence="looped").state_dict(), tiny_gpt().state_dict()
    assert all(torch.equal(ours[key], plain[key]) for key in plain)
    assert not torch.equal(ours["adapter.linear.weight"], tiny_gpt(recurrence="looped", seed=1).adapter.linear.weight)


@pytest.mark.parametrize(
    ("n_layer", "parts"),
    [(8, (2, 4, 2)), (12, (3, 6, 3)), (6, (2, 2, 2)), (3, (1, 1, 1)), (2, (0, 2, 0)), (1, (0, 1, 0))],
)
def test_prelude_and_coda_are_a_quarter_each_as_in_the_source(n_layer: int, parts: tuple[int, int, int]) -> None:
    looped = built(n_layer)
    assert (looped.prelude, looped.n_core, looped.coda) == parts


def test_the_order_and_the_starts_of_loops() -> None:
    looped = built(5, prelude=1, coda=1, loops=2)
    assert [visit.layer for visit in looped.visits()] == [0, 1, 2, 3, 1, 2, 3, 4]
    assert looped.loops.starts == {1, 4}
    assert looped.loops.end == 7
    assert describe_visits(tiny_gpt(recurrence="looped", visits={"loops": 2}), 10) == (
        "0 1 [1] 2; in brackets from step 0 on, with the same weights"
    )


def test_flops_count_the_adapter_in_every_loop() -> None:
    one, three = (tiny_gpt(recurrence="looped", visits={"loops": loops}) for loops in (1, 3))
    layer = sum(p.numel() for m in (one.h[1].attn, one.h[1].mlp) for p in m.parameters())
    difference = count_flops_per_token(three) - count_flops_per_token(one)
    assert difference == 2 * (6 * layer + 12 * 16 * 12 + 6 * 2 * 16 * 16)
    assert count_flops_per_token(one) == count_flops_per_token(tiny_gpt()) + 6 * 2 * 16 * 16


def test_a_strategy_with_another_state_than_one_stream_is_an_error() -> None:
    for residual in ("hyperconn", "attnres", "parallel_lanes"):
        with pytest.raises(
            ValueError, match=r"recurrence must not loop through an adapter with \w+, whose state is not"
        ):
            tiny_gpt(residual, recurrence="looped")


def test_strategies_with_one_stream_train() -> None:
    for residual in ("rezero", "postln", "hybridnorm"):
        gpt = jitter(tiny_gpt(residual, recurrence="looped"))
        gpt.loss(tokens(), tokens(seed=1)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in gpt.parameters())


def test_compiled_in_one_graph_it_equals_eager() -> None:
    torch.compiler.reset()
    gpt = jitter(tiny_gpt(recurrence="looped")).double()
    compiled = torch.compile(gpt.hidden, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(tokens()), gpt.hidden(tokens()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prelude": 2, "coda": 1}, r"leave a layer of 3 for the core, got 2 and 1"),
        ({"prelude": -1}, r"must be >= 0 and leave a layer of 3 for the core, got -1 and 1"),
        ({"loops": 0}, r"recurrence\.loops must be >= 1, got 0; without loops use recurrence=none"),
    ],
)
def test_loops_without_a_core_are_an_error(keys: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(3, **keys)
