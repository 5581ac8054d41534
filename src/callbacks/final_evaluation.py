"""Evaluation of a run: perplexities and lm-eval during training and of the final weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from src.callbacks.run_record import RunRecord
from src.datamodules.tokenization.base import Tokenizer
from src.evaluation.suite import EvaluationSuite
from src.launch.stop_request import StopRequest
from src.models.lightning_module import LanguageModel


class FinalEvaluation(L.Callback):
    """Runs the evaluation suite after the last step, or after a callback stopped training early.

    Args:
        suite: the evaluations.
        tokenizer: tokenizer of the training data; None where it is not known and nothing is evaluated.
        record: receives the scores; where the suite has `every_steps`, in a row of metrics.jsonl too.
        request: a signal ends the evaluation between two batches; a stopped run is not evaluated.
        tokens_per_step: tokens of a global batch.
    """

    def __init__(
        self,
        suite: EvaluationSuite,
        tokenizer: Tokenizer | None,
        record: RunRecord,
        *,
        request: StopRequest,
        tokens_per_step: int,
    ) -> None:
        self.suite = suite
        self.tokenizer = tokenizer
        self.record = record
        self.request = request
        self.tokens_per_step = tokens_per_step

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.request.signum:
            return
        assert isinstance(pl_module, LanguageModel)  # training builds no other module
        step = trainer.global_step
        pl_module.follow_schedule(step - 1)
        samples = self.record.folder / "evaluations" / f"step{step:08d}" if self.record.writes else None
        scores = score_module(self.suite, self.tokenizer, trainer, pl_module, self.request.check, samples)
        self.record.update(**scores)
        numbers = headline(scores)
        for logger in trainer.loggers if numbers else []:
            logger.log_metrics(numbers, step=step)
        if numbers and self.suite.every_steps is not None:  # the last point of the curve that training noted
            self.record.note(step, {"tokens": step * self.tokens_per_step, **numbers})
            self.record.close_row()


def score_module(
    suite: EvaluationSuite,
    tokenizer: Tokenizer | None,
    trainer: L.Trainer,
    module: LanguageModel,
    between_batches: Callable[[], None],
    samples: Path | None = None,
) -> dict[str, Any]:
    """Return the suite's scores of the weights in place; mode, gradients and random state stay as they were.

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
