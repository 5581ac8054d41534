"""A run's trainer: Lightning's own callbacks and profilers work in it, and its order of validation and checkpoint.

Covers `src/callbacks/validation.py` too.
"""

import dataclasses
import math
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
)
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.callbacks.best_effort import BestEffort
from src.callbacks.checkpoints import read_checkpoint
from src.callbacks.loggers import RunInfo
from src.callbacks.run_record import RunRecord, read_metrics
from src.callbacks.validation import bits_per_byte
from src.datamodules.base import BatchSpec, build_data
from src.datamodules.token_shards import TokenShardDataModule
from src.launch.job import Job
from src.launch.stop_request import StopRequest
from src.models.lightning_module import LanguageModel
from src.training.run import Run, build_gpt
from src.training.trainer import build_trainer, identify_rank, open_loggers
from tests.runs import SMALL, make_shards
from tests.support import composed_settings

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers
KEYS = [*SMALL, "model.n_layer=1", "samples.tokens=0", "check=off"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def open_run(folder: Path, shards: Path, *overrides: str, rank: int = 0) -> Run:
    settings = composed_settings(*KEYS, f"data.path={shards}", *overrides)
    sizes = settings.model.block_size, settings.model.vocab_size, settings.seed, settings.trainer.max_steps
    data = build_data(settings.data, BatchSpec(*sizes))
    data.prepare_data()
    data.setup()
    folder.mkdir(exist_ok=True)
    job = Job(folder, OmegaConf.create(), resumes=False, rank=rank)
    record = RunRecord(folder, writes=rank == 0)
    return Run(job, settings, StopRequest(grace_s=60.0), data, record, BestEffort())


def test_a_resumed_run_gives_its_loggers_the_ids_that_it_recorded(tmp_path: Path, shards: Path) -> None:
    given: list[str | None] = []

    class Service(DummyLogger):
        def __init__(self, info: RunInfo) -> None:
            super().__init__()
            given.append(info.logger_id)

        @property
        def version(self) -> str:
            return "abc"

    for resumes in (False, True, False):
        run = open_run(tmp_path, shards)
        run.settings.config["logger"] = {"service": {}}
        run.settings.loggers.append(Service)
        run.job = dataclasses.replace(run.job, resumes=resumes)
        open_loggers(run)
        assert [logger.version for logger in run.loggers] == ["abc"]
        run.record.update(logger_ids=run.logger_ids)
    assert given == [None, "abc", None]


def fit(
    folder: Path,
    shards: Path,
    *overrides: str,
    callbacks: tuple[L.Callback, ...] = (),
    resume: str | None = None,
) -> L.Trainer:
    """Train in process as `task=train` does; returns the trainer."""
    run = open_run(folder, shards, *overrides)
    settings = run.settings
    settings.callbacks.extend((lambda callback=callback: callback) for callback in callbacks)
    module = LanguageModel(
        build_gpt(settings),
        settings.optimizer,
        settings.schedule,
        compile_trunk=False,
        seed=settings.seed,
        val_sets=run.data.validation_sets(),
        document_mark=run.data.document_mark(),
    )
    trainer = build_trainer(run)
    trainer.fit(module, datamodule=run.data, ckpt_path=resume, weights_only=True)
    return trainer


def val_losses(folder: Path) -> dict[int, float]:
    return {int(row["step"]): row["val/loss"] for row in read_metrics(folder) if "val/loss" in row}


def logged_tags(folder: Path) -> set[str]:
    events: Any = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return set(events.Tags()["scalars"])


def test_the_validation_loss_is_the_mean_over_every_token(shards: Path, tmp_path: Path) -> None:
    trainer = fit(tmp_path / "r", shards, "trainer.max_steps=4", "trainer.val_every_steps=4")
    module: Any = trainer.lightning_module
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by fit
    losses = [module.gpt.token_losses(batch[:, :-1].long(), batch[:, 1:].long()) for batch in data.val_batches(0, 1)]
    sums = [batch.double().sum().item() for batch in losses]
    assert val_losses(tmp_path / "r")[4] == sum(sums) / sum(batch.numel() for batch in losses)
    assert trainer.callback_metrics["val/loss"].item() == val_losses(tmp_path / "r")[4]
    assert trainer.callback_metrics["train/loss"].item() == read_metrics(tmp_path / "r")[-1]["train/loss"]


def test_training_validation_and_a_resumed_run_keep_attention_within_documents(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenShardDataModule, "_document_mark", 7)
    keys = ["trainer.max_steps=4", "trainer.checkpoint_every_steps=2", "data.document_attention=true"]
    whole = fit(tmp_path / "r", shards, *keys)
    module: Any = whole.lightning_module
    data: Any = whole.datamodule  # type: ignore[attr-defined]  # set by fit
    batches = [batch.long() for batch in data.val_batches(0, 1)]
    mark = (torch.cat(batches)[:, :-1] == 7).cumsum(1)
    losses = module.gpt.token_losses(torch.cat(batches)[:, :-1], torch.cat(batches)[:, 1:], document_BT=mark)
    assert val_losses(tmp_path / "r")[4] == pytest.approx(losses.double().mean().item(), rel=1e-6)
    checkpoint = str(tmp_path / "r/checkpoints/step00000002.ckpt")
    rest: Any = fit(tmp_path / "rest", shards, *keys, resume=checkpoint).lightning_module
    other: Any = fit(tmp_path / "other", shards, *keys[:2]).lightning_module
    for name, weight in module.gpt.state_dict().items():
        assert torch.equal(rest.gpt.state_dict()[name], weight)
    assert not torch.equal(other.gpt.h[0].attn.c_attn.weight, module.gpt.h[0].attn.c_attn.weight)


def test_dropout_of_a_step_follows_from_seed_step_and_rank(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: dict[int, int] = {}

    class Note(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            seeds[trainer.global_step] = torch.initial_seed()

    keys = ["trainer.max_steps=4", "trainer.checkpoint_every_steps=2", "model.dropout=0.5"]
    whole = fit(tmp_path / "r", shards, *keys, callbacks=(Note(),))
    first = dict(seeds)
    assert len({*first.values()}) == 4
    checkpoint = str(tmp_path / "r/checkpoints/step00000002.ckpt")
    rest = fit(tmp_path / "rest", shards, *keys, callbacks=(Note(),), resume=checkpoint)
    assert seeds == first
    for a, b in zip(whole.lightning_module.parameters(), rest.lightning_module.parameters(), strict=True):
        assert torch.equal(a, b)
    monkeypatch.setattr(LanguageModel, "global_rank", 1)
    fit(tmp_path / "rank", shards, *keys, callbacks=(Note(),))
    assert not {*seeds.values()} & {*first.values()}


def test_every_set_has_its_loss_and_bits_per_byte_and_the_first_chooses_the_best_checkpoint(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_shards(tmp_path / "other", vocab_size=300)
    keys = ["trainer.max_steps=4", "trainer.val_every_steps=2", f"data.val_sets={{other: {other}}}"]
    monkeypatch.setattr(TokenShardDataModule, "token_bytes", lambda self: np.full(512, 4, dtype=np.int16))
    trainer = fit(tmp_path / "r", shards, *keys)
    row = read_metrics(tmp_path / "r")[-1]
    module: Any = trainer.lightning_module
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by fit
    batch = torch.from_numpy(data.val_sets["other"].astype(int))
    loss = module.gpt.token_losses(batch[:, :-1], batch[:, 1:]).double().mean().item()
    assert row["val/other/loss"] == pytest.approx(loss, rel=1e-6)
    assert row["val/loss"] != row["val/other/loss"]
    assert row["val/bpb"] == row["val/loss"] / math.log(2) / 4
    assert row["val/other/bpb"] == row["val/other/loss"] / math.log(2) / 4
    assert {"val/other/loss", "val/bpb"} <= logged_tags(tmp_path / "r")
    best = torch.load(tmp_path / "r/checkpoints/best.ckpt", weights_only=True)["callbacks"]
    assert min(val_losses(tmp_path / "r").values()) in {state.get("best_loss") for state in best.values()}


def test_bits_per_byte_of_a_text_by_hand() -> None:
    # "Hello world" and an end of text: 3 tokens, 11 bytes, 2 nats a token: 6 nats are 8.656 bits.
    assert bits_per_byte(2.0, 11 / 3) == pytest.approx(8.6562 / 11, abs=1e-5)


def test_the_last_step_is_validated_even_if_it_is_no_multiple(shards: Path, tmp_path: Path) -> None:
    fit(tmp_path / "r", shards, "trainer.max_steps=5", "trainer.val_every_steps=3")
    assert list(val_losses(tmp_path / "r")) == [3, 5]


@pytest.mark.parametrize("step", [3, 4, 6])
def test_a_resume_neither_repeats_nor_loses_a_validation(step: int, shards: Path, tmp_path: Path) -> None:
    validated: list[int] = []

    class Count(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            validated.append(trainer.global_step)

    keys = ["trainer.max_steps=8", "trainer.val_every_steps=3", "trainer.checkpoint_every_steps=1"]
    fit(tmp_path / "whole", shards, *keys, "safety.keep_checkpoints=9")
    path = tmp_path / "whole" / "checkpoints" / f"step{step:08d}.ckpt"
    fit(tmp_path / "r", shards, *keys, callbacks=(Count(),), resume=str(path))
    assert validated == [s for s in (3, 6, 8) if s > step]
    whole, rest = val_losses(tmp_path / "whole"), val_losses(tmp_path / "r")
    assert rest == {s: loss for s, loss in whole.items() if s > step}


def test_early_stopping_ends_the_run_after_a_validation_and_saves_it(shards: Path, tmp_path: Path) -> None:
    stop = EarlyStopping("val/loss", patience=1, min_delta=100.0)
    trainer = fit(tmp_path / "r", shards, "trainer.val_every_steps=2", callbacks=(stop,))
    assert trainer.global_step == 4
    assert list(val_losses(tmp_path / "r")) == [2, 4]
    assert read_checkpoint(tmp_path / "r/checkpoints/last.ckpt")["reslab"]["step"] == 4


def test_a_stop_after_a_training_batch_is_validated_once_and_saved(shards: Path, tmp_path: Path) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 2

    trainer = fit(tmp_path / "r", shards, callbacks=(Stop(),))
    assert trainer.global_step == 2
    assert [row["step"] for row in read_metrics(tmp_path / "r")] == [1, 2]
    assert list(val_losses(tmp_path / "r")) == [2]
    assert read_checkpoint(tmp_path / "r/checkpoints/last.ckpt")["reslab"]["step"] == 2


def test_a_signal_is_saved_without_another_validation(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(self: StopRequest, max_s: float | None) -> None:
        if len(read_metrics(tmp_path / "r")) == 3:
            self.signum = signal.SIGTERM

    monkeypatch.setattr(StopRequest, "check_time", signalled)
    trainer = fit(tmp_path / "r", shards)
    assert trainer.global_step == 3
    assert val_losses(tmp_path / "r") == {}
    assert read_checkpoint(tmp_path / "r/checkpoints/last.ckpt")["reslab"]["step"] == 3


def test_model_checkpoint_keeps_the_best_by_validation_loss(shards: Path, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path / "own", "{step}", monitor="val/loss", save_top_k=1)
    fit(tmp_path / "r", shards, "trainer.val_every_steps=3", callbacks=(save,))
    losses = val_losses(tmp_path / "r")
    best = min(losses, key=losses.__getitem__)
    assert save.best_model_score is not None
    assert save.best_model_score.item() == losses[best]
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == [
        f"step={best}.ckpt",
        f"step={best}.ckpt.sha256",
    ]
    assert read_checkpoint(tmp_path / "own" / f"step={best}.ckpt")["reslab"]["step"] == best


def test_a_pruning_callback_reads_each_validation_loss(shards: Path, tmp_path: Path) -> None:
    reported: list[float] = []

    class Pruning(L.Callback):
        """Reads the metric as Optuna's PyTorchLightningPruningCallback does."""

        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.sanity_checking:
                return
            reported.append(trainer.callback_metrics["val/loss"].item())

    fit(tmp_path / "r", shards, callbacks=(Pruning(),))
    assert reported == list(val_losses(tmp_path / "r").values())


def test_a_failing_callback_is_an_error(shards: Path, tmp_path: Path) -> None:
    class Fails(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("of the user's own")

    with pytest.raises(RuntimeError, match="of the user's own"):
        fit(tmp_path / "r", shards, callbacks=(Fails(),))


def test_model_summary_counts_the_parameters(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(ModelSummary, "summarize", lambda self, data, total, *_, **__: seen.append(total))
    trainer = fit(tmp_path / "r", shards, "trainer.max_steps=1", callbacks=(ModelSummary(max_depth=2),))
    assert seen == [sum(p.numel() for p in trainer.lightning_module.parameters())]


def test_learning_rate_monitor_logs_the_schedule(shards: Path, tmp_path: Path) -> None:
    monitor = LearningRateMonitor(logging_interval="step")
    fit(tmp_path / "r", shards, callbacks=(monitor,))
    assert {tag for tag in logged_tags(tmp_path / "r") if tag.startswith("lr-")} == set(monitor.lrs)
    rates = [row["lr"] for row in read_metrics(tmp_path / "r")]
    assert len(rates) == 12
    for values in monitor.lrs.values():
        assert values == rates


def test_a_further_rank_has_a_logger_without_effect(shards: Path, tmp_path: Path) -> None:
    trainer = build_trainer(open_run(tmp_path / "r", shards, rank=1))
    (logger,) = trainer.loggers  # LearningRateMonitor and DeviceStatsMonitor raise an error without one
    logger.log_metrics({"x": 1.0}, step=1)
    assert list((tmp_path / "r").iterdir()) == []


def test_device_stats_monitor_logs_statistics(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.callbacks.device_stats_monitor._PSUTIL_AVAILABLE", True)
    monkeypatch.setattr(CPUAccelerator, "get_device_stats", lambda self, device: {"bytes": 3.0})
    fit(tmp_path / "r", shards, callbacks=(DeviceStatsMonitor(cpu_stats=None),))
    tags = logged_tags(tmp_path / "r")
    for hook in ("on_train_batch_start", "on_train_batch_end"):
        assert f"DeviceStatsMonitor.{hook}/bytes" in tags


def test_averaged_weights_are_validated_saved_and_resumed_exactly(shards: Path, tmp_path: Path) -> None:
    def ema() -> EMAWeightAveraging:
        return EMAWeightAveraging(decay=0.5)

    keys = ["trainer.val_every_steps=4", "trainer.checkpoint_every_steps=2", "safety.keep_checkpoints=9"]
    plain = fit(tmp_path / "plain", shards, *keys)
    whole = fit(tmp_path / "whole", shards, *keys, callbacks=(ema(),))
    train = [[row["train/loss"] for row in read_metrics(tmp_path / name)] for name in ("plain", "whole")]
    assert train[0] == train[1]  # averaging does not change training
    assert val_losses(tmp_path / "plain") != val_losses(tmp_path / "whole")
    for name in ("checkpoints/step00000004.ckpt", "checkpoints/step00000006.ckpt"):
        folder = tmp_path / name.rpartition("/")[2]
        rest = fit(folder, shards, *keys, callbacks=(ema(),), resume=str(tmp_path / "whole" / name))
        resumed = read_metrics(folder)
        assert [r["train/loss"] for r in resumed] == train[0][-len(resumed) :]
        assert val_losses(folder).items() <= val_losses(tmp_path / "whole").items()
        for a, b in zip(rest.lightning_module.parameters(), whole.lightning_module.parameters(), strict=True):
            assert torch.equal(a, b)
    assert plain.global_step == whole.global_step


@pytest.mark.parametrize("name", ["simple", "pytorch"])
def test_a_profiler_writes_into_the_run_folder(name: str, shards: Path, tmp_path: Path) -> None:
    fit(tmp_path / "r", shards, f"profiler={name}")
    files = list((tmp_path / "r" / "profiler").iterdir())
    text = "".join(path.read_text() for path in files)
    wanted = {"simple": "run_training_batch", "pytorch": "ProfilerStep"}[name]
    assert wanted in text, [os.path.basename(path) for path in files]


def test_ranks_compare_the_keys_of_trainer_but_those_of_a_nodes_processor(shards: Path, tmp_path: Path) -> None:
    plain = identify_rank(open_run(tmp_path / "r", shards))
    for override in ("trainer.val_every_steps=3", "trainer.max_steps=24", "trainer.checkpoint_every_steps=3"):
        assert identify_rank(open_run(tmp_path / "r", shards, override))["config"] != plain["config"]
    assert identify_rank(open_run(tmp_path / "r", shards, "trainer.threads=2")) == plain
    rolled_back = open_run(tmp_path / "r", shards)
    rolled_back.data.skipped = ((4, 2),)
    assert {k for k, v in identify_rank(rolled_back).items() if v != plain[k]} == {"rollbacks"}


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step")) for path in (folder / "checkpoints").glob("step*.ckpt"))


def test_kept_checkpoints_outlive_the_rolling_ones_and_a_resume_under_another_list(
    shards: Path, tmp_path: Path
) -> None:
    keys = ["trainer.checkpoint_every_steps=4", "safety.keep_checkpoints=1"]
    fit(tmp_path / "r", shards, *keys, "trainer.max_steps=8", "trainer.keep_steps=[3,4]")
    assert saved_steps(tmp_path / "r") == [3, 4, 8]
    last = str(tmp_path / "r/checkpoints/step00000008.ckpt")
    fit(tmp_path / "r", shards, *keys, "trainer.max_steps=12", "trainer.keep_steps=[10]", resume=last)
    assert saved_steps(tmp_path / "r") == [3, 4, 10, 12]
    for step in (3, 10):
        checkpoint = read_checkpoint(tmp_path / f"r/checkpoints/step{step:08d}.ckpt")
        assert checkpoint["reslab"]["step"] == step
