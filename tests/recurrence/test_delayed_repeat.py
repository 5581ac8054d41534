"""Delayed repeat beside the record code.

Covers `repeated_layers.py` too; `test_mini.py` has its starts and ramps.
"""

import pytest
from torch import Tensor

from src.models.flops import count_flops_per_token, describe_visits
from src.models.gpt import GPT
from src.recurrence.base import RecurrenceSpec
from src.recurrence.delayed_repeat import DelayedRepeat
from tests.oracle import compare_model
from tests.support import component, jitter, tiny_gpt, tokens


def built(n_layer: int, **keys: object) -> DelayedRepeat:
    repeat: DelayedRepeat = component("recurrence", "delayed_repeat", **keys)(RecurrenceSpec(n_layer, 16, bias=False))
    return repeat


def order(recurrence: DelayedRepeat) -> list[int]:
    return [visit.layer for visit in recurrence.visits()]


def test_it_equals_its_source() -> None:
    """openai/parameter-golf @ 4908dc4, records/.../2026-04-29_SmearGateBOSFix_3Seed_1.06141/train_gpt.py.

    `all_indices` is the order while `looping_active`, range(num_layers) before.
    """
    num_loops, loop_start, loop_end, num_layers = 2, 1, 2, 4
    visits = {"layers": [loop_start, loop_end], "repeats": num_loops}
    gpt = jitter(tiny_gpt(recurrence="delayed_repeat", n_layer=num_layers, visits=visits)).double()

    def oracle(gpt: GPT, idx: Tensor) -> Tensor:
        indices = list(range(num_layers))
        if gpt.recurs:
            indices = list(range(loop_start))
            for _ in range(num_loops + 1):
                indices.extend(range(loop_start, loop_end + 1))
            indices.extend(range(loop_end + 1, num_layers))
        x: Tensor = gpt.embedding(idx)
        for i in indices:
            x = x + gpt.h[i].attn(gpt.h[i].ln_1(x))
            x = x + gpt.h[i].mlp(gpt.h[i].ln_2(x))
        return gpt.ln_f(x)

    for step, recurs in ((0, False), (34, False), (35, True), (99, True)):
        gpt.follow(step, 100)
        assert gpt.recurs == recurs
        compare_model(gpt, oracle)


def test_the_shipped_keys_are_the_sources() -> None:
    """NUM_LOOPS 2, LOOP_START 3, LOOP_END 5, ENABLE_LOOPING_AT 0.35 of the same file, with 11 layers."""
    repeat = built(11)
    assert order(repeat) == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert repeat.start_step(1000) == 350
    assert repeat.gain(350, 1000) == 1.0


@pytest.mark.parametrize(
    ("n_layer", "layers"), [(12, [3, 4, 5]), (6, [0, 1, 2]), (3, [0, 1, 2]), (2, [0, 1]), (1, [0])]
)
def test_by_default_three_layers_in_the_middle_recur(n_layer: int, layers: list[int]) -> None:
    assert built(n_layer).layers == layers


def test_layers_need_not_be_consecutive() -> None:
    """`_v2p_recur` of records/.../2026-03-31_ParallelResiduals_MiniDepthRecurrence has the same order."""
    assert order(built(6, layers=[1, 3], repeats=2)) == [0, 1, 2, 3, 1, 3, 1, 3, 4, 5]
    gpt = tiny_gpt(recurrence="delayed_repeat", visits={"layers": [0, 2], "start_fraction": None, "start_step": 0})
    assert describe_visits(gpt, 10) == "0 1 2 [0 2 0 2]; in brackets from step 0 on, with the same weights"
    assert gpt(tokens()).isfinite().all()


def test_repeated_visits_have_no_parameters_and_count_as_flops() -> None:
    gpt, plain = tiny_gpt(recurrence="delayed_repeat", visits={"layers": [1]}), tiny_gpt()
    assert gpt.n_params(positions=True) == plain.n_params(positions=True)
    gpt.follow(99, 100)
    layer = sum(p.numel() for m in (plain.h[1].attn, plain.h[1].mlp) for p in m.parameters())
    assert count_flops_per_token(gpt) - count_flops_per_token(plain) == 2 * (6 * layer + 12 * 16 * 12)


@pytest.mark.parametrize("layers", [[], [3, 1], [1, 1], [-1, 0], [11]])
def test_layers_that_are_not_ascending_layers_are_an_error(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"recurrence\.layers must be ascending layers between 0 and 10, got \["):
        built(11, layers=layers)
