"""What a training costs besides its steps: reading a batch, and Lightning's loop with this project's callbacks.

Both are host work, measured in CPU time. Batches come from shards of random tokens in the page cache, the least
that reading can cost. The loop is a training of a tiny model by the project's own trainer, less the same steps in a
bare loop over the same batches; it has no part in validations and checkpoints.
"""

import functools
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L
import numpy as np
from omegaconf import OmegaConf

from src.bench.candidates import composed_alone
from src.bench.step import optimizer_step
from src.bench.timing import silent
from src.callbacks.best_effort import Soft
from src.callbacks.run_record import RunRecord
from src.callbacks.stop import StopRequest
from src.datamodules.base import BatchSpec, TokenDataModule, build_data
from src.datamodules.shards.format import write_shard
from src.launch.job import Job
from src.models.lightning_module import LanguageModel
from src.settings.read import Settings
from src.training.run import build_gpt
from src.training.trainer import TrainerParts, build_trainer

SHARD_TOKENS = 2**21
READS = 30
#: Steps of the tiny trainings: those not counted, and those counted.
WARM, COUNTED = 20, 100
TINY = (
    *("residual=vanilla", "model=tiny", "model.n_layer=2", "model.n_embd=32", "model.n_head=2"),
    *("model.block_size=32", "model.vocab_size=512", "data.micro_batch_size=2", "data.global_batch_size=2"),
    *("trainer=cpu", "trainer.stream_pictures=false", "samples.tokens=0", "evaluation=none", "check=off"),
    *(f"trainer.max_steps={WARM + COUNTED + 2}", "trainer.val_every_steps=1000000"),
    "trainer.checkpoint_every_steps=1000000",
)


def data_seconds(settings: Settings, folder: Path) -> float | None:
    """CPU time from the loader's call to int64 ids, of one micro-batch; None for data of another kind."""
    given = settings.data.keywords if isinstance(settings.data, functools.partial) else {}
    if not {"path", "micro_batch_size"} <= given.keys():
        return None
    data = random_data(settings, folder)
    batches = iter(data.train_dataloader())
    next(batches)
    seconds = []
    for _ in range(READS):
        began = time.process_time()
        for tokens_MT in next(batches):
            tokens_MT[:, :-1].long(), tokens_MT[:, 1:].long()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def random_data(settings: Settings, folder: Path) -> TokenDataModule:
    """The configured data module, one micro-batch a step, over shards of random tokens in `folder`."""
    micro, length = int(settings.config["data"]["micro_batch_size"]), settings.model.block_size + 1
    n_steps = max(READS + 1, settings.trainer.max_steps if settings.trainer.max_steps < 1000 else 0)
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


def loop_seconds(log_every_steps: int) -> float:
    """What a training's step takes more than the same step in a bare loop, in CPU time."""
    settings = composed_alone([*TINY, f"trainer.log_every_steps={log_every_steps}"])
    with TemporaryDirectory() as folder:
        data = random_data(settings, Path(folder))
        return statistics.median(
            trained(settings, data, Path(folder) / str(i)) - bare(settings, data) for i in range(5)
        )


def bare(settings: Settings, data: TokenDataModule) -> float:
    """Seconds a step of a loop and nothing else."""
    data.trainer = None
    gpt = build_gpt(settings)
    step, _ = optimizer_step(gpt, settings.optimizer, bf16=False, compiled=False, n_micro=1)
    for number, (tokens_MT,) in enumerate(data.train_dataloader()):
        if number == WARM:
            began = time.process_time()
        if number == WARM + COUNTED:
            break
        step(tokens_MT[:, :-1].long(), tokens_MT[:, 1:].long())
    return (time.process_time() - began) / COUNTED


def trained(settings: Settings, data: TokenDataModule, folder: Path) -> float:
    """Seconds a step of a training as `task=train` does it."""
    module = LanguageModel(
        build_gpt(settings), settings.optimizer, settings.schedule, compile_trunk=False, seed=settings.seed
    )
    request = StopRequest(grace_s=settings.safety.grace_s)
    folder.mkdir()
    job = Job(folder, OmegaConf.create(), resumes=False)
    parts = TrainerParts(
        job,
        settings,
        request,
        RunRecord(folder, writes=True),
        loggers=[],
        soft=Soft(),
        tokens_per_step=data.global_batch_size * settings.model.block_size,
        data_identity=data.identity(),
        step=0,
    )
    laps = _Laps()
    with silent():
        trainer = build_trainer(parts)
        trainer.callbacks.append(laps)  # type: ignore[attr-defined]  # Lightning's list
        trainer.fit(module, datamodule=data)
    return laps.seconds / COUNTED


class _Laps(L.Callback):
    """CPU time between the first counted step's end and the last one's."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == WARM:
            self.seconds -= time.process_time()
        if trainer.global_step == WARM + COUNTED:
            self.seconds += time.process_time()
