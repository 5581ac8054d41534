"""What stands around a step: how many Python calls it takes, and that it computes what Lightning's own does."""

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from hydra import initialize_config_dir
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import nn

from src.bench import host_overhead as surroundings
from src.bench.candidates import compose_default_settings
from src.callbacks.run_record import Row, read_metrics
from src.datamodules.fineweb import FineWebDataModule
from src.models.lightning_module import BATCH_HOOKS, LanguageModel
from src.models.optim.adamw import OptimizerConfig
from src.models.optim.schedules.cosine import Cosine
from src.settings.read import Settings
from src.training import trainer
from src.training.stepping import Float32, StepTrainer, precision
from tests.runs import ROOT
from tests.support import tiny_gpt

#: Lightning's own, which a run leaves unsaid.
pytestmark = pytest.mark.filterwarnings("ignore")
#: Python calls a step beside the step's own: 327 (841 with Lightning's own trainer and callbacks one by one).
MOST_CALLS = 340
STEPS = 24
#: Private names of Lightning's that LanguageModel overrides, with those of torch and Lightning that are public.
OVERRIDDEN: dict[type, tuple[type, tuple[str, ...]]] = {
    LanguageModel: (
        L.LightningModule,
        ("_on_before_batch_transfer", "_apply_batch_transfer_handler", "automatic_optimization", "__setattr__"),
    ),
    StepTrainer: (L.Trainer, ("enable_validation", "strategy", "lightning_module", "training", "fit")),
    Float32: (Precision, ("optimizer_step", "train_step_context")),
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(surroundings, "N_WARM", 5)
    monkeypatch.setattr(surroundings, "N_TIMED", STEPS - 7)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose_default_settings(
            [*surroundings.TINY, "name=x", f"trainer.max_steps={STEPS}", "trainer.log_every_steps=5"]
        )


@pytest.fixture
def data(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FineWebDataModule:
    monkeypatch.setattr(surroundings, "SHARD_TOKENS", 2**13)
    return surroundings.build_random_data(settings, tmp_path)


class _Calls:
    """Python calls between two moments of `tick`, from the first on."""

    def __init__(self) -> None:
        self.seconds = 0.0  # as the class that it stands in for
        self.number = 0
        self.ticks: list[int] = []

    def count(self, frame: FrameType, event: str, arg: object) -> None:
        self.number += event == "call"

    def tick(self) -> None:
        sys.setprofile(None)
        self.ticks.append(self.number)
        if len(self.ticks) < STEPS - 2:
            sys.setprofile(self.count)

    def a_step(self) -> float:
        """The median, in which no row is logged."""
        return statistics.median(b - a for a, b in zip(self.ticks, self.ticks[1:], strict=False))


@pytest.fixture
def counted() -> Iterator[_Calls]:
    yield _Calls()
    sys.setprofile(None)


def test_lightning_and_the_logging_take_few_calls_beside_a_step(
    settings: Settings,
    data: FineWebDataModule,
    counted: _Calls,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = _Calls()
    made = surroundings.optimizer_step

    def ticking(*args: Any, **kwargs: Any) -> Any:
        step, optimizer = made(*args, **kwargs)

        def step_fn(*batch: Any) -> None:
            bare.tick()
            step(*batch)

        return step_fn, optimizer

    class Ticks(surroundings._StepClock):
        def on_train_batch_start(self, *_: object) -> None:
            counted.tick()

    monkeypatch.setattr(surroundings, "optimizer_step", ticking)
    monkeypatch.setattr(surroundings, "_StepClock", Ticks)
    surroundings.time_training(settings, data, tmp_path / "run")
    surroundings.time_bare_loop(settings, data)
    assert 100 < counted.a_step() - bare.a_step() < MOST_CALLS


def test_it_computes_and_records_what_lightnings_own_trainer_does(
    settings: Settings, data: FineWebDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[nn.Module] = []
    fit = L.Trainer.fit
    monkeypatch.setattr(
        L.Trainer, "fit", lambda self, model, **rest: (fitted.append(model), fit(self, model, **rest))
    )
    surroundings.time_training(settings, data, tmp_path / "ours")
    monkeypatch.setattr(trainer, "StepTrainer", L.Trainer)
    monkeypatch.setattr(trainer, "precision", lambda *_: Precision())
    for name in OVERRIDDEN[LanguageModel][1][:-2]:
        monkeypatch.delattr(LanguageModel, name)
    monkeypatch.setattr(LanguageModel, "__setattr__", L.LightningModule.__setattr__)
    monkeypatch.setattr(LanguageModel, "automatic_optimization", property(lambda self: False))
    surroundings.time_training(settings, data, tmp_path / "lightning's")
    ours, lightnings = fitted
    for one, other in zip(ours.parameters(), lightnings.parameters(), strict=True):
        assert torch.equal(one, other)
    assert computed(tmp_path / "ours") == computed(tmp_path / "lightning's")


def computed(folder: Path) -> list[Row]:
    """The rows without their times."""
    return [{key: v for key, v in row.items() if key != "tokens_per_s"} for row in read_metrics(folder)]


@pytest.mark.parametrize("own", OVERRIDDEN, ids=lambda own: own.__name__)
def test_lightning_still_has_the_names_that_are_overridden(own: type) -> None:
    lightnings, names = OVERRIDDEN[own]
    for name in names:
        assert getattr(own, name) is not getattr(
            lightnings, name
        )  # AttributeError: it went, and costs time now


@pytest.mark.parametrize("hook", BATCH_HOOKS)
def test_a_hook_that_data_has_for_its_batches_is_called(
    hook: str, settings: Settings, data: FineWebDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(FineWebDataModule, hook, lambda self, batch, *_: called.append(hook) or batch)
    surroundings.time_training(settings, data, tmp_path / "run")
    assert called == [hook] * STEPS


def test_no_callback_has_the_hook_that_the_optimizers_step_leaves_out() -> None:
    for callback in L.Callback.__subclasses__():
        if callback.__module__.startswith("src."):
            assert callback.on_before_optimizer_step is L.Callback.on_before_optimizer_step, callback


def test_the_precisions_are_lightnings() -> None:
    assert precision("32-true", "cpu").precision == "32-true"
    mixed = precision("bf16-mixed", "cpu")
    assert isinstance(mixed, MixedPrecision)
    assert mixed.scaler is None
    with mixed.train_step_context():
        assert torch.is_autocast_enabled("cpu")
    assert precision("bf16-mixed", "gpu").device == "cuda"  # type: ignore[attr-defined]  # a MixedPrecision


def test_a_trainer_knows_its_module_and_its_stage() -> None:
    small = StepTrainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    assert small.lightning_module is None
    assert small.global_step == 0
    small.training = True
    assert small.training
    assert L.Trainer.training.fget(small)  # type: ignore[attr-defined]  # a property
    small.training = False
    assert not small.training
    assert small.strategy is small.strategy


def test_words_go_around_torch_and_all_else_through_it() -> None:
    keys = OptimizerConfig(1e-3, 1e-4, 0, 0.1, (0.9, 0.95), 1e-8, 1.0)
    module: Any = LanguageModel(tiny_gpt(), keys, Cosine(1e-3, 1e-4, 0, 10), compile_trunk=False, seed=0)
    module._current_fx_name = "training_step"
    assert module._current_fx_name == "training_step"
    module.scale = nn.Parameter(torch.ones(1))
    assert "scale" in dict(module.named_parameters())
    module.scale = None
    assert "scale" in module._parameters
    assert "scale" not in module.__dict__
    module.gpt = None
    assert not list(module.parameters())


def test_a_closure_is_called_before_the_step() -> None:
    done: list[str] = []
    optimizer = SimpleNamespace(step=lambda: done.append("step"))
    precision("32-true", "cpu").optimizer_step(optimizer, L.LightningModule(), lambda: done.append("closure"))
    assert done == ["closure", "step"]
