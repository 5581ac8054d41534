"""State of one training run in one process, and the model that its settings describe.

`session.py` passes a `Run` through the phases of a training; callbacks and the trainer are built from it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from lightning.pytorch.loggers import Logger

from src.callbacks.best_effort import BestEffort
from src.callbacks.run_record import RunRecord
from src.datamodules.base import TokenDataModule
from src.datamodules.tokenization.base import Tokenizer
from src.datamodules.tokenization.open import or_gpt2
from src.launch.job import Job
from src.launch.stop_request import StopRequest
from src.models.formats.pretrained import load_weights
from src.models.gpt import GPT
from src.settings.read import Settings


class Resume(NamedTuple):
    """Verified checkpoint that a run continues from.

    Args:
        path: the checkpoint file.
        step: optimizer steps that its weights have behind them.
        checkpoint: its content, until the trainer has restored it; None where it is read later.
    """

    path: Path
    step: int
    checkpoint: dict[str, Any] | None = None


class Rollback(TypedDict):
    """One rollback: after step `at` the run returned to step `to` and skipped `at - to` batches."""

    at: int
    to: int
    reason: str


def skipped_batches(rollbacks: Iterable[Rollback]) -> tuple[tuple[int, int], ...]:
    """Return (step, number of batches skipped from that step on) of each rollback, as data modules take it."""
    return tuple((event["to"], event["at"] - event["to"]) for event in rollbacks)


@dataclass
class Run:
    """One process's part in one training run.

    Args:
        job: the Hydra job: folder, configuration, rank.
        settings: the validated configuration.
        stop: the stop request of this process (signals and `trainer.max_time`).
        data: the data module, set up.
        record: metrics.jsonl and result.json; rank 0 writes them.
        best_effort: runs what the training can do without.
        resume: the checkpoint to continue from; None starts at step 0.
        branches: `resume` is another run's checkpoint, and the folder is still empty.
        loggers: loggers beside TensorBoard; none on ranks other than 0.
        logger_ids: id under which each of them knows the run, by the logger's option.
        rollbacks: rollbacks so far, oldest first.
    """

    job: Job
    settings: Settings
    stop: StopRequest
    data: TokenDataModule
    record: RunRecord
    best_effort: BestEffort
    resume: Resume | None = None
    branches: bool = False
    loggers: list[Logger] = field(default_factory=list)
    logger_ids: dict[str, str] = field(default_factory=dict)
    rollbacks: list[Rollback] = field(default_factory=list)

    @property
    def first_step(self) -> int:
        """Return the number of optimizer steps that the run has behind it when it starts."""
        return self.resume.step if self.resume else 0

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens of one optimizer step over all ranks."""
        return self.data.global_batch_size * self.settings.model.block_size

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer that the model is evaluated with: the data's, or GPT-2's where it states none."""
        return or_gpt2(self.data.tokenizer(), self.settings.model.vocab_size)

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the run's checkpoints."""
        return self.job.folder / "checkpoints"


def build_gpt(settings: Settings) -> GPT:
    """Build the configured model with its initial weights."""
    return GPT(
        settings.model,
        residual=settings.residual,
        norm=settings.norm,
        embedding=settings.embedding,
        recurrence=settings.recurrence,
        mlp=settings.mlp,
        seed=settings.seed,
    )


def build_initial_gpt(run: Run) -> GPT:
    """Build the model that training starts from: `init_from`'s weights, or initial ones.

    Raises:
        ValueError: `init_from` holds another model.
    """
    gpt = build_gpt(run.settings)
    if run.job.config.init_from is not None and run.resume is None:  # else the run's checkpoint has all weights
        load_weights(gpt, Path(run.job.config.init_from))
    return gpt
