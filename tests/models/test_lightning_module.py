"""LanguageModel in a bare Lightning trainer: accumulation, hooks, metrics, and no synchronization at a step."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from src.models.lightning_module import LanguageModel
from src.models.optim.schedules.constant import Constant
from tests.support import adamw, tiny_gpt, tokens

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers


def batches(n_micro: int, n_steps: int = 3) -> Any:
    """Return steps of four sequences each, [A, 4 / A, T + 1]."""
    steps = [tokens(4, 13, seed=step).view(n_micro, 4 // n_micro, 13) for step in range(n_steps)]
    return DataLoader(steps, batch_size=None)  # type: ignore[arg-type]  # a list is a data set


def train(
    loader: Any, folder: Path, *callbacks: L.Callback, precision: Any = "32-true", **options: Any
) -> LanguageModel:
    schedule = Constant(peak=1e-2, floor=1e-2, warmup_steps=0, max_steps=len(loader))
    module = LanguageModel(tiny_gpt(), adamw(1e-2), schedule, compile_trunk=False, seed=0)
    shared: dict[str, Any] = {"max_epochs": 1, "max_steps": len(loader), "accelerator": "cpu", "logger": False}
    shared["precision"] = precision
    quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        callbacks=list(callbacks), default_root_dir=folder, enable_model_summary=False, **shared, **quiet
    )
    trainer.fit(module, loader, **options)
    assert trainer.global_step == len(loader)
    return module


def test_accumulated_micro_steps_equal_one_large_batch(tmp_path: Path) -> None:
    whole, accumulated = train(batches(1), tmp_path), train(batches(4), tmp_path)
    for one, other in zip(whole.parameters(), accumulated.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_step_is_the_mean_over_its_micro_steps(tmp_path: Path) -> None:
    idx, gpt = tokens(4, 13, seed=0), tiny_gpt()
    expected = gpt.loss(idx[:, :-1], idx[:, 1:]).item()
    for n_micro in (1, 4):
        logged = train(batches(n_micro, n_steps=1), tmp_path).trainer.callback_metrics["train/loss"]
        assert logged.item() == pytest.approx(expected, rel=1e-6)


def test_the_forward_runs_under_autocast_and_the_backward_does_not(tmp_path: Path) -> None:
    forward, backward = list[bool](), list[bool]()

    class Watch(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
            sublayer = module.gpt.get_submodule("h.0.mlp")
            sublayer.register_forward_pre_hook(lambda *_: forward.append(torch.is_autocast_enabled("cpu")))
            module.gpt.ln_f.weight.register_hook(lambda _: backward.append(torch.is_autocast_enabled("cpu")))

    train(batches(2, n_steps=1), tmp_path, Watch(), precision="bf16-mixed")
    assert backward == [False, False]
    assert forward == [True, True]


def test_lightnings_hooks_are_called_once_per_micro_step_or_step(tmp_path: Path) -> None:
    calls: list[str] = []

    class Hooks(L.Callback):
        def on_before_backward(self, *_: Any) -> None:
            calls.append("before_backward")

        def on_after_backward(self, *_: Any) -> None:
            calls.append("after_backward")

        def on_before_optimizer_step(self, *_: Any) -> None:
            calls.append("before_optimizer_step")

    train(batches(2, n_steps=1), tmp_path, Hooks())
    assert calls == ["before_backward", "after_backward"] * 2 + ["before_optimizer_step"]


def test_logging_the_loss_reads_nothing_back_to_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, losses, patches = LanguageModel.log, list[Tensor](), list[pytest.MonkeyPatch]()

    def fail(*_: object) -> None:
        raise AssertionError("read back")

    def forbid_reads(patch: pytest.MonkeyPatch) -> None:
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, fail)

    def log_without_reads(self: LanguageModel, *args: Any, **kwargs: Any) -> None:
        with monkeypatch.context() as patch:
            forbid_reads(patch)
            log(self, *args, **kwargs)

    class BetweenSteps(L.Callback):
        """Forbids reads while Lightning updates its metrics: from the end of a batch to the next."""

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(outputs["loss"])
            patches.append(pytest.MonkeyPatch())
            forbid_reads(patches[-1])

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if patches:
                patches.pop().undo()
                assert trainer.callback_metrics["train/loss"] == losses[-1]

        def on_train_epoch_end(self, *_: Any) -> None:
            patches.pop().undo()

    monkeypatch.setattr(LanguageModel, "log", log_without_reads)
    train(batches(2), tmp_path, BetweenSteps())
    assert len(losses) == 3


def test_the_validation_loss_weighs_every_token_alike(tmp_path: Path) -> None:
    uneven = [tokens(3, 13, seed=8), tokens(1, 13, seed=9)]
    module = train(batches(1), tmp_path, val_dataloaders=DataLoader(uneven, batch_size=None))
    losses = torch.cat([module.gpt.token_losses(b[:, :-1], b[:, 1:]).flatten() for b in uneven])
    logged = module.trainer.callback_metrics["val/loss"]
    assert logged.dtype == torch.float64
    assert logged.item() == pytest.approx(losses.double().mean().item(), rel=1e-12)
