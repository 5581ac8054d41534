"""Evaluation of a run by perplexities and lm-eval, at steps of the training and of the final weights."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from src.callbacks.run_record import RunRecord
from src.callbacks.step_end import StepEndCallback
from src.callbacks.training_log import TrainingLog
from src.datamodules.tokenization.base import Tokenizer
from src.evaluation.suite import EvaluationSuite
from src.launch.stop_request import StopRequest
from src.models.lightning_module import LanguageModel

log = logging.getLogger(__name__)


class RunEvaluation(StepEndCallback):
    """Runs the suite at multiples of its `every_steps`, and after the last step or an early stop by a callback.

    Training is the same with and without it, bit for bit. The weights are those that are trained, not averages of a
    callback. Comes before `RowWriter`.

    Args:
        suite: the evaluations; without `every_steps` only the final weights are evaluated.
        tokenizer: tokenizer of the training data; None where it is not known and nothing is evaluated.
        record: receives the scores; where the suite has `every_steps`, those of the final weights in a row too.
        request: on a signal the evaluation of a step is skipped, so that the step can be saved, and the evaluation of
            the final weights ends the run.
        training_log: its speeds leave the evaluations out.
        tokens_per_step: tokens of a global batch.
    """

    def __init__(
        self,
        suite: EvaluationSuite,
        tokenizer: Tokenizer | None,
        record: RunRecord,
        *,
        request: StopRequest,
        training_log: TrainingLog,
        tokens_per_step: int,
    ) -> None:
        self.suite = suite
        self.tokenizer = tokenizer
        self.record = record
        self.request = request
        self.training_log = training_log
        self.tokens_per_step = tokens_per_step

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step, every = trainer.global_step, self.suite.every_steps
        if every is None or step % every or step == trainer.max_steps or trainer.should_stop:
            return
        assert isinstance(pl_module, LanguageModel)  # training builds no other module
        self.training_log.pause()
        # Ranks that share the work wait for one another, so none may skip it alone: the grace period ends it.
        between_batches = self._skip_on_signal if trainer.world_size == 1 else lambda: None
        try:
            scores = score_module(self.suite, self.tokenizer, trainer, pl_module, between_batches=between_batches)
        except _SkippedError:
            log.warning("the evaluation of step %d is left out: %s", step, self.request.reason)
            return
        self.record.note(step, {"tokens": step * self.tokens_per_step, **headline(scores)})

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.request.signum:
            return
        assert isinstance(pl_module, LanguageModel)  # training builds no other module
        step = trainer.global_step
        pl_module.follow_schedule(step - 1)
        samples = self.record.folder / "evaluations" / f"step{step:08d}" if self.record.writes else None
        scores = score_module(
            self.suite, self.tokenizer, trainer, pl_module, between_batches=self.request.check, samples=samples
        )
        self.record.update(**scores)
        numbers = headline(scores)
        for logger in trainer.loggers if numbers else []:
            logger.log_metrics(numbers, step=step)
        if numbers and self.suite.every_steps is not None:  # the last point of the curve of the steps
            self.record.note(step, {"tokens": step * self.tokens_per_step, **numbers})
            self.record.close_row()

    def _skip_on_signal(self) -> None:
        if self.request.signum:
            raise _SkippedError


class _SkippedError(Exception):
    """Signal during the evaluation of a step."""


def score_module(
    suite: EvaluationSuite,
    tokenizer: Tokenizer | None,
    trainer: L.Trainer,
    module: LanguageModel,
    *,
    between_batches: Callable[[], None],
    samples: Path | None = None,
) -> dict[str, Any]:
    """Return the suite's scores of the current weights; mode, gradients and random state stay as they were.

    Ranks share the work, so every rank must call it.
    """
    training = module.training
    module.eval()
    try:
        # Not in inference mode, in which Lightning validates: what a module caches now is used in training.
        with isolate_rng(), torch.inference_mode(False), torch.no_grad(), trainer.precision_plugin.forward_context():
            scores: dict[str, Any] = suite.run(module.gpt, tokenizer, between_batches, samples)
    finally:
        module.train(training)
    return scores


def headline(scores: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a score tree that a table or a dashboard shows, by `section/set`."""
    numbers = {}
    for section, key in (("perplexity", "ppl"), ("lm_eval", "score")):
        for name, entry in scores.get(section, {}).items():
            if key in entry:
                numbers[f"{section}/{name}"] = float(entry[key])
    return numbers
