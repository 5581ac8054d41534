"""Evaluation after training: perplexities and lm-eval of the final weights."""

from typing import Any

import lightning as L
import torch

from src.callbacks.run_record import RunRecord
from src.callbacks.stop import StopRequest
from src.evaluation.suite import EvaluationSuite
from src.models.lightning_module import LanguageModel


class FinalEvaluation(L.Callback):
    """Runs the evaluation suite after the last step, or after a callback stopped training early.

    Args:
        suite: the evaluations.
        record: receives the scores.
        request: a signal ends the evaluation between two batches; a stopped run is not evaluated.
    """

    def __init__(self, suite: EvaluationSuite, record: RunRecord, *, request: StopRequest) -> None:
        self.suite = suite
        self.record = record
        self.request = request

    @torch.no_grad()
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.request.signum:
            return
        assert isinstance(pl_module, LanguageModel)  # training builds no other module
        pl_module.follow_schedule(trainer.global_step - 1)
        pl_module.eval()
        with trainer.precision_plugin.forward_context():
            scores: dict[str, Any] = self.suite.run(pl_module.gpt, self.request.check)
        pl_module.train()
        self.record.update(**scores)
        for logger in trainer.loggers if headline(scores) else []:
            logger.log_metrics(headline(scores), step=trainer.global_step)


def headline(scores: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a score tree that a table or a dashboard shows, by `section/set`."""
    numbers = {}
    for section, key in (("perplexity", "ppl"), ("lm_eval", "score")):
        for name, entry in scores.get(section, {}).items():
            if key in entry:
                numbers[f"{section}/{name}"] = float(entry[key])
    return numbers
