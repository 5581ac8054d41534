"""Mini recurrence: order, copies, start, ramp."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.models.flops import count_flops_per_token
from src.models.gpt import GPT
from src.models.optim.base import build_optimizer
from src.models.repeated_visits import start_repeated_visits
from src.recurrence.base import RecurrenceSpec
from src.recurrence.mini import MiniRecurrence
from src.residual.base import build_sites
from tests.oracle import compare_model
from tests.support import adamw, jitter, tiny_gpt, tokens

KEYS: dict[str, Any] = {
    "layers": [1, 2],
    "repeats": 1,
    "mlp": "untied",
    "start_fraction": 0.5,
    "start_step": None,
    "ramp_steps": 0,
}
FROM_THE_BEGINNING = {"start_fraction": None, "start_step": 0}


def mini(n_layer: int = 11, **changes: Any) -> MiniRecurrence:
    return MiniRecurrence(RecurrenceSpec(n_layer, 16, bias=False), **{**KEYS, **changes})


def order(recurrence: MiniRecurrence) -> list[int]:
    return [visit.layer for visit in recurrence.visits()]


def test_it_equals_its_source() -> None:
    """openai/parameter-golf @ 4908dc4, records/.../2026-03-31_ParallelResiduals_MiniDepthRecurrence/train_gpt.py.

    `_v2p_recur` is the order, `RepeatMLPWeights` the MLP of a repeated visit; all else is shared with the layer.
    """
    recur_layers, num_layers = [1, 2], 4
    visits = {"layers": recur_layers, **FROM_THE_BEGINNING}
    gpt = jitter(tiny_gpt(recurrence="mini", n_layer=num_layers, visits=visits)).double()

    def oracle(gpt: GPT, idx: Tensor) -> Tensor:
        cutoff = max(recur_layers) + 1
        x: Tensor = gpt.embedding(idx)
        for virtual, layer in enumerate([*range(cutoff), *recur_layers, *range(cutoff, num_layers)]):
            block, repeated = gpt.h[layer], cutoff <= virtual < cutoff + len(recur_layers)
            x = x + block.attn(block.ln_1(x))
            u = block.ln_2(x)
            if layer in recur_layers:  # the copy of a repeated visit is the second of the packed weights
                copy = int(repeated)
                x = x + F.gelu(u @ block.mlp.c_fc.weight[copy].T) @ block.mlp.c_proj.weight[copy].T
            else:
                x = x + block.mlp(u)
        return gpt.ln_f(x)

    compare_model(gpt, oracle)


def test_the_order_equals_the_sources() -> None:
    assert order(mini(layers=[4, 5])) == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10]
    assert order(mini(6, layers=[2], repeats=2)) == [0, 1, 2, 2, 2, 3, 4, 5]
    assert order(mini(3, layers=[0, 1, 2])) == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(("n_layer", "middle"), [(11, [5, 6]), (6, [1, 2]), (12, [4, 5]), (2, [0, 1]), (1, [0])])
def test_by_default_two_layers_in_the_middle_recur(n_layer: int, middle: list[int]) -> None:
    assert mini(n_layer, layers=None).layers == middle


def test_sites_are_keyed_by_layer_and_visit() -> None:
    sites = build_sites((visit.layer, visit.kinds) for visit in mini(3, layers=[1]).visits())
    assert [(s.index, s.block, s.layer, s.kind, s.visit) for s in sites[2:6]] == [
        (2, 1, 1, "attn", 0),
        (3, 1, 1, "mlp", 0),
        (4, 2, 1, "attn", 1),
        (5, 2, 1, "mlp", 1),
    ]


def test_repeated_visits_start_at_their_step_and_ramp_up() -> None:
    recurrence = mini(start_fraction=0.25, ramp_steps=10)
    assert recurrence.start_step(1000) == 250
    assert [recurrence.gain(step, 1000) for step in (0, 250, 255, 260, 999)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert not mini(**FROM_THE_BEGINNING).delayed
    assert mini(start_fraction=None, start_step=3000).start_step(6240) == 3000


def test_before_the_start_the_model_equals_the_plain_one() -> None:
    recurs = tiny_gpt(recurrence="mini", visits={"mlp": "shared"})
    recurs.follow(0, 100)
    assert torch.equal(recurs(tokens()), tiny_gpt()(tokens()))
    recurs.follow(48, 100)
    assert not torch.allclose(recurs(tokens()), tiny_gpt()(tokens()))


def test_shared_visits_repeat_the_layer() -> None:
    gpt = jitter(tiny_gpt(recurrence="mini", visits={"layers": [1], "repeats": 2, "mlp": "shared"})).double()
    x = gpt.embedding(tokens())
    for layer in (0, 1, 1, 1, 2):
        block = gpt.h[layer]
        x = x + block.attn(block.ln_1(x))
        x = x + block.mlp(block.ln_2(x))
    assert torch.allclose(gpt.hidden(tokens()), gpt.ln_f(x), rtol=0, atol=1e-12)


def test_untied_visits_have_their_own_mlp_initialized_from_the_layers() -> None:
    untied = tiny_gpt(recurrence="mini", visits={"layers": [1], **FROM_THE_BEGINNING})
    shared = tiny_gpt(recurrence="mini", visits={"layers": [1], "mlp": "shared", **FROM_THE_BEGINNING})
    more = sum(p.numel() for p in shared.h[1].mlp.parameters())
    assert untied.n_params(positions=True) - shared.n_params(positions=True) == more
    weight = untied.h[1].mlp.c_fc.weight
    assert torch.equal(weight[0], weight[1])
    assert weight[0].std().item() == pytest.approx(0.02, rel=0.1)
    with torch.no_grad():
        weight[1] += 0.1
    assert untied(tokens()).shape == shared(tokens()).shape
    x = untied.embedding(tokens())
    for layer, visit in ((0, 0), (1, 0), (1, 1), (2, 0)):
        block = untied.h[layer]
        x = x + block.attn(block.ln_1(x))
        x = x + block.mlp(block.ln_2(x), visit)
    assert torch.allclose(untied.hidden(tokens()), untied.ln_f(x), atol=1e-6)


def test_a_skipped_copy_has_zero_gradients_and_is_overwritten_at_the_start() -> None:
    gpt = tiny_gpt(recurrence="mini", visits={"layers": [1]}, bias=True)
    optimizer = build_optimizer(gpt, adamw(1e-2))
    for step in range(3):
        gpt.follow(step, 100)
        gpt.loss(tokens(seed=step), tokens(seed=9)).backward()
        for name, param in gpt.named_parameters():
            assert param.grad is not None, name
        assert not gpt.h[1].mlp.c_proj.weight.grad[1].any()
        optimizer.step()
        optimizer.zero_grad()
    copied = gpt.copied_params()
    assert len(copied) == 4
    assert not any(torch.equal(p[0], p[1]) for p in copied)
    start_repeated_visits(optimizer, copied)
    for param in copied:
        assert torch.equal(param[0], param[1])
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[param][name]
            assert moment[0].any()
            assert torch.equal(moment[0], moment[1])


def test_biases_of_copies_do_not_decay() -> None:
    gpt = tiny_gpt(recurrence="mini", bias=True)
    optimizer = build_optimizer(gpt, adamw(1e-2))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(gpt.h[0].mlp.c_fc.bias)] == 0.0
    assert decays[id(gpt.h[0].mlp.c_fc.weight)] == 0.1


def test_a_ramp_starts_without_a_jump() -> None:
    gpt = tiny_gpt(recurrence="mini", visits={"ramp_steps": 10})
    gpt.follow(47, 100)
    before = gpt.loss(tokens(), tokens(seed=1))
    gpt.follow(48, 100)
    assert torch.equal(gpt.loss(tokens(), tokens(seed=1)), before)
    gpt.follow(58, 100)
    assert not torch.equal(gpt.loss(tokens(), tokens(seed=1)), before)


def test_flops_count_the_active_visits() -> None:
    gpt, plain = tiny_gpt(recurrence="mini", visits={"layers": [1]}), tiny_gpt()
    gpt.follow(0, 100)
    assert count_flops_per_token(gpt) == count_flops_per_token(plain)
    gpt.follow(99, 100)
    attention, mlp = (sum(p.numel() for p in m.parameters()) for m in (plain.h[1].attn, plain.h[1].mlp))
    assert count_flops_per_token(gpt) - count_flops_per_token(plain) == 6 * (attention + mlp) + 12 * 16 * 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [1, 3]}, r"layers must be consecutive layers between 0 and 10, got \[1, 3\]"),
        ({"layers": [10, 11]}, r"layers must be consecutive layers between 0 and 10, got \[10, 11\]"),
        ({"layers": []}, r"layers must be consecutive .* for none use recurrence=none"),
        ({"repeats": 0}, r"repeats must be >= 1, got 0"),
        ({"ramp_steps": -1}, r"ramp_steps must be >= 0, got -1"),
        ({"mlp": "own"}, r"mlp must be untied or shared, got own"),
        ({"start_step": 3}, r"exactly one of .* must be null, got 0.5 and 3"),
        ({"start_fraction": 1.0}, r"start_fraction must be in \[0, 1\), got 1.0"),
        ({"start_fraction": None, "start_step": -1}, r"start_step must be >= 0, got -1"),
    ],
)
def test_an_invalid_recurrence_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mini(**changes)


def test_a_delayed_start_is_an_error_if_the_strategy_cannot_skip() -> None:
    with pytest.raises(ValueError, match=r"start_step must be 0 with DenseFormer.*start_step=0 or another residual"):
        tiny_gpt("denseformer", recurrence="mini")
    assert tiny_gpt("denseformer", recurrence="mini", visits=FROM_THE_BEGINNING)
