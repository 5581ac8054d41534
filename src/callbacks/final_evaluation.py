"""End-of-run evaluation: perplexities and lm-eval on the weights that training ended with."""

import logging
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from src.callbacks.run_record import RunRecord
from src.evaluation.suite import EvaluationSuite
from src.models.lightning_module import LanguageModel

log = logging.getLogger(__name__)


class FinalEvaluation(L.Callback):
    """Runs the suite once training has reached its last step, and only then.

    Args:
        suite: what to score.
        record: takes the scores.
        between_batches: called between batches of the evaluation.
    """

    def __init__(
        self, suite: EvaluationSuite, record: RunRecord, *, between_batches: Callable[[], None]
    ) -> None:
        self.suite = suite
        self.record = record
        self.between_batches = between_batches

    @torch.no_grad()
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step < trainer.max_steps:
            return
        assert isinstance(pl_module, LanguageModel)  # tasks/train.py builds nothing else
        self.between_batches()
        pl_module.follow_schedule(trainer.max_steps - 1)
        pl_module.eval()
        with trainer.precision_plugin.forward_context():
            scores: dict[str, Any] = self.suite.run(pl_module.gpt, self.between_batches)
        pl_module.train()
        self.record.update(**scores)
        for logger in trainer.loggers if headline(scores) else []:
            logger.log_metrics(headline(scores), step=trainer.max_steps)


def headline(scores: dict[str, Any]) -> dict[str, float]:
    """The numbers of a score tree that a table or a dashboard shows, by `section/set`."""
    numbers = {}
    for section, key in (("perplexity", "ppl"), ("lm_eval", "score")):
        for name, entry in scores.get(section, {}).items():
            if key in entry:
                numbers[f"{section}/{name}"] = float(entry[key])
    return numbers
