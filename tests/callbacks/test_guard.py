"""Divergence guard: its criteria, when it reads values back, and its state."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from src.callbacks.guard import HORIZON, DivergedError, Guard, GuardKeys, checksum
from src.models.optim.base import apply_gradients, build_optimizer
from src.settings.sections import read_section
from tests.support import composed_settings, tiny_gpt

KEYS = GuardKeys(rollbacks=0, above_uniform_nats=3.0, spike_nats=2.0, patience_steps=3)


def guard(every: int = 1) -> Guard:
    return Guard(KEYS, vocab_size=512, warmup_steps=2, reads_after=lambda step: step % every == 0)


def feed(checker: Guard, losses: list[float], *, device: str = "cpu", first: int = 1) -> None:
    module: Any = SimpleNamespace(device=torch.device(device))
    for step, loss in enumerate(losses, first):
        outputs = {"loss": torch.tensor(loss), "grad_norm": torch.tensor(1.0), "lr": 0.1}
        checker.on_train_batch_end(SimpleNamespace(global_step=step), module, outputs)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_ends_the_run_at_once() -> None:
    with pytest.raises(DivergedError, match="step 3: loss nan") as error:
        feed(guard(), [6.0, 6.0, math.nan])
    assert (error.value.step, error.value.began) == (3, 3)


def test_a_loss_far_above_uniform_counts_after_warmup_and_patience() -> None:
    feed(guard(), [20.0, 20.0, 20.0, 20.0, 6.0, 20.0, 20.0, 6.0])
    with pytest.raises(DivergedError, match=r"step 3: loss 20\.000 above 9\.238") as error:
        feed(guard(), [20.0, 20.0, 20.0, 20.0, 20.0])
    assert (error.value.step, error.value.began) == (5, 3)


def test_a_spike_is_measured_from_the_level_of_normal_steps() -> None:
    falling = [6.0 - 0.03 * step for step in range(100)]
    checker = guard()
    feed(checker, falling)
    assert checker.level == pytest.approx(falling[-1] + 0.03 * HORIZON * (1 - (1 - 1 / HORIZON) ** 50), abs=0.4)
    feed(checker, [9.0, 9.0, 3.0, 9.0, 9.0, 3.0], first=101)
    with pytest.raises(DivergedError, match="over a level of"):
        feed(checker, [9.0] * 3, first=107)


def test_on_a_gpu_values_are_read_only_after_the_given_steps() -> None:
    checker = guard(every=10)
    feed(checker, [6.0] * 3 + [math.nan] * 6, device="cuda")
    with pytest.raises(DivergedError) as error:
        feed(checker, [math.nan], device="cuda", first=10)
    assert (error.value.step, error.value.began) == (10, 4)


def test_a_weight_that_is_not_finite_is_found_before_a_save() -> None:
    gpt = tiny_gpt()
    guard().check_weights(4, gpt)
    with torch.no_grad():
        gpt.ln_f.weight[3] = math.inf
    with pytest.raises(DivergedError, match="step 4: a parameter is not finite") as error:
        guard().check_weights(4, gpt)
    assert (error.value.step, error.value.began) == (4, 4)


def test_the_state_of_a_checkpoint_continues_the_level() -> None:
    first, second, whole = guard(), guard(), guard()
    losses = [6.0 - 0.01 * step for step in range(60)]
    feed(whole, losses)
    feed(first, losses[:30])
    second.load_state_dict(first.state_dict())
    feed(second, losses[30:], first=31)
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizer_step_reads_nothing_back_to_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = tiny_gpt()
    optimizer = build_optimizer(gpt, composed_settings(f"optimizer={name}").optimizer)
    for param in gpt.parameters():
        param.grad = torch.ones_like(param)

    def fail(*_: object) -> None:
        raise AssertionError("read back")

    for name in ("item", "tolist", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, fail)
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
        read_section("guard", OmegaConf.create(values), GuardKeys)
