"""Host time of a training besides its steps: reading a batch, and Lightning's loop with this project's callbacks.

Both are measured in CPU time. Batches come from shards of random tokens in the page cache, a lower bound of the time to
read. The loop's cost is the time per step of a training of a tiny model by the project's own trainer, minus that of the
same steps in a bare loop over the same batches, without validations and checkpoints.
"""

import functools
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L
import numpy as np
from omegaconf import OmegaConf

from src.bench.candidates import compose_default_settings
from src.bench.step import optimizer_step
from src.bench.timing import silence_stderr
from src.callbacks.best_effort import BestEffort
from src.callbacks.run_record import RunRecord
from src.datamodules.base import BatchSpec, TokenDataModule, build_data
from src.datamodules.shards.format import write_shard
from src.launch.job import Job
from src.launch.stop_request import StopRequest
from src.models.lightning_module import LanguageModel
from src.settings.read import Settings
from src.training.run import Run, build_gpt
from src.training.trainer import build_trainer

SHARD_TOKENS = 2**21
N_READS = 30
#: Steps of the tiny trainings: first the untimed ones, then the timed ones; and trainings of each kind.
N_WARM, N_TIMED, N_TRAININGS = 20, 100, 5
TINY = (
    *("residual=vanilla", "model=tiny", "model.n_layer=2", "model.n_embd=32", "model.n_head=2"),
    *("model.block_size=32", "model.vocab_size=512", "data.micro_batch_size=2", "data.global_batch_size=2"),
    *("trainer=cpu", "trainer.stream_pictures=false", "samples.tokens=0", "evaluation=none", "check=off"),
    *(f"trainer.max_steps={N_WARM + N_TIMED + 2}", "trainer.val_every_steps=1000000"),
    "trainer.checkpoint_every_steps=1000000",
)


def measure_data_seconds(settings: Settings, folder: Path) -> float | None:
    """Return the median CPU time to read one micro-batch as int64 ids, or None if the data are not token shards."""
    keys = settings.data.keywords if isinstance(settings.data, functools.partial) else {}
    if not {"path", "micro_batch_size"} <= keys.keys():
        return None
    data = build_random_data(settings, folder)
    batches = iter(data.train_dataloader())
    next(batches)
    seconds = []
    for _ in range(N_READS):
        start = time.process_time()
        for tokens_MT in next(batches):
            tokens_MT[:, :-1].long(), tokens_MT[:, 1:].long()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def build_random_data(settings: Settings, folder: Path) -> TokenDataModule:
    """Write shards of random tokens into `folder` and build the configured data module over them.

    Each step takes one micro-batch.
    """
    micro, length = int(settings.config["data"]["micro_batch_size"]), settings.model.block_size + 1
    n_steps = max(N_READS + 1, settings.trainer.max_steps if settings.trainer.max_steps < 1000 else 0)
    rng = np.random.default_rng(0)
    for split, number in (("val", 0), ("train", 1)):
        ids = rng.integers(min(settings.model.vocab_size, 50257), size=SHARD_TOKENS, dtype=np.uint16)
        write_shard(folder / f"fineweb_{split}_{number:06d}.bin", ids)
    spec = BatchSpec(length - 1, settings.model.vocab_size, settings.seed, n_steps)
    factory = functools.partial(
        settings.data,
        path=str(folder),
        val_tokens=length - 1,
        micro_batch_size=micro,
        global_batch_size=micro,
        workers=0,
        cache=str(folder / "cache"),
        epochs=None,
    )
    data = build_data(factory, spec)
    data.prepare_data()
    data.setup()
    return data


def measure_loop_seconds(log_every_steps: int) -> float:
    """Return the median CPU time per step of a training minus that of a bare loop."""
    settings = compose_default_settings([*TINY, f"trainer.log_every_steps={log_every_steps}"])
    with TemporaryDirectory() as folder:
        data = build_random_data(settings, Path(folder))
        return statistics.median(
            time_training(settings, data, Path(folder) / str(i)) - time_bare_loop(settings, data)
            for i in range(N_TRAININGS)
        )


def time_bare_loop(settings: Settings, data: TokenDataModule) -> float:
    """Return the seconds per step of a loop that only reads batches and takes steps."""
    data.trainer = None
    gpt = build_gpt(settings)
    step, _ = optimizer_step(gpt, settings.optimizer, bf16=False, compiled=False, n_micro=1)
    for number, (tokens_MT,) in enumerate(data.train_dataloader()):
        if number == N_WARM:
            start = time.process_time()
        if number == N_WARM + N_TIMED:
            break
        step(tokens_MT[:, :-1].long(), tokens_MT[:, 1:].long())
    return (time.process_time() - start) / N_TIMED


def time_training(settings: Settings, data: TokenDataModule, folder: Path) -> float:
    """Return the seconds per step of a training as `task=train` runs it."""
    module = LanguageModel(
        build_gpt(settings), settings.optimizer, settings.schedule, compile_trunk=False, seed=settings.seed
    )
    request = StopRequest(grace_s=settings.safety.grace_s)
    folder.mkdir()
    job = Job(folder, OmegaConf.create(), resumes=False)
    run = Run(job, settings, request, data, RunRecord(folder, writes=True), BestEffort())
    clock = _StepClock()
    with silence_stderr():
        trainer = build_trainer(run)
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]  # Lightning's list
        trainer.fit(module, datamodule=data)
    return clock.seconds / N_TIMED


class _StepClock(L.Callback):
    """CPU time from the start of the first timed step to the end of the last."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == N_WARM:
            self.seconds -= time.process_time()
        if trainer.global_step == N_WARM + N_TIMED:
            self.seconds += time.process_time()
