"""The divergence guard: what it judges, when it reads, what it remembers."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.callbacks.guard import HORIZON, DivergedError, Guard, GuardKeys, checksum
from src.models.lightning_module import StepResult
from src.models.optim.adamw import OptimizerConfig, apply_gradients, build_optimizer
from src.models.optim.muon import MuonKeys
from tests.support import tiny_gpt

KEYS = GuardKeys(rollbacks=0, above_uniform_nats=3.0, spike_nats=2.0, patience_steps=3)


def guard(every: int = 1) -> Guard:
    return Guard(KEYS, vocab_size=512, warmup_steps=2, look=lambda step: step % every == 0)


def feed(judge: Guard, losses: list[float], *, device: str = "cpu", first: int = 1) -> None:
    module: Any = SimpleNamespace(device=torch.device(device))
    for step, loss in enumerate(losses, first):
        result = StepResult(torch.tensor(loss), torch.tensor(1.0), 0.1)
        judge.on_train_batch_end(SimpleNamespace(global_step=step), module, {"step": result})  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_counts_at_once() -> None:
    with pytest.raises(DivergedError, match="step 3: loss nan") as error:
        feed(guard(), [6.0, 6.0, math.nan])
    assert (error.value.step, error.value.began) == (3, 3)


def test_far_above_uniform_counts_after_warmup_and_where_it_lasts() -> None:
    feed(guard(), [20.0, 20.0, 20.0, 20.0, 6.0, 20.0, 20.0, 6.0])
    with pytest.raises(DivergedError, match=r"step 3: loss 20\.000 above 9\.238") as error:
        feed(guard(), [20.0, 20.0, 20.0, 20.0, 20.0])
    assert (error.value.step, error.value.began) == (5, 3)


def test_a_spike_is_measured_from_the_level_of_sound_steps() -> None:
    falling = [6.0 - 0.03 * step for step in range(100)]
    judge = guard()
    feed(judge, falling)
    assert judge.level == pytest.approx(falling[-1] + 0.03 * HORIZON * (1 - (1 - 1 / HORIZON) ** 50), abs=0.4)
    feed(judge, [9.0, 9.0, 3.0, 9.0, 9.0, 3.0], first=101)
    with pytest.raises(DivergedError, match="over a level of"):
        feed(judge, [9.0] * 3, first=107)


def test_on_a_gpu_it_reads_only_where_it_is_told_to_look() -> None:
    judge = guard(every=10)
    feed(judge, [6.0] * 3 + [math.nan] * 6, device="cuda")
    with pytest.raises(DivergedError) as error:
        feed(judge, [math.nan], device="cuda", first=10)
    assert (error.value.step, error.value.began) == (10, 4)


def test_its_memory_goes_along_with_a_checkpoint() -> None:
    first, second, whole = guard(), guard(), guard()
    losses = [6.0 - 0.01 * step for step in range(60)]
    feed(whole, losses)
    feed(first, losses[:30])
    second.load_state_dict(first.state_dict())
    feed(second, losses[30:], first=31)
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("muon", [None, MuonKeys(momentum=0.95, ns_steps=5, lr_scale=1.0)])
def test_an_optimizer_step_reads_nothing_back_to_the_host(
    muon: MuonKeys | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt = tiny_gpt()
    optimizer = build_optimizer(gpt, OptimizerConfig(1e-3, 1e-4, 0, 0.1, (0.9, 0.95), 1e-8, 1.0, muon))
    for param in gpt.parameters():
        param.grad = torch.ones_like(param)

    def refuse(*_: object) -> None:
        raise AssertionError("read back")

    for name in ("item", "tolist", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    apply_gradients(optimizer, list(gpt.parameters()), 1.0, torch.tensor(1.0))


def test_a_single_bit_changes_the_checksum() -> None:
    gpt = tiny_gpt()
    before = checksum(gpt)
    weight = gpt.embedding.get_lm_head_weight()
    with torch.no_grad():
        weight.view(torch.int32)[3, 4] ^= 1
    assert checksum(gpt) != before


@pytest.mark.parametrize(
    ("key", "value"),
    [("rollbacks", -1), ("patience_steps", 0), ("spike_nats", 0.0), ("above_uniform_nats", -1.0)],
)
def test_a_bad_key_is_named(key: str, value: float) -> None:
    values = {"rollbacks": 0, "above_uniform_nats": 1.0, "spike_nats": 1.0, "patience_steps": 1, key: value}
    with pytest.raises(ValueError, match=rf"guard\.{key} must"):
        GuardKeys(**values)  # type: ignore[arg-type]
