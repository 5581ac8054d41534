"""Evaluation during training, at multiples of `evaluation.every_steps`."""

import logging

import lightning as L

from src.callbacks.final_evaluation import headline, score_module
from src.callbacks.run_record import RunRecord
from src.callbacks.step_end import StepEndCallback
from src.callbacks.training_log import TrainingLog
from src.datamodules.tokenization.base import Tokenizer
from src.evaluation.suite import EvaluationSuite
from src.launch.stop_request import StopRequest
from src.models.lightning_module import LanguageModel

log = logging.getLogger(__name__)


class StepEvaluation(StepEndCallback):
    """Adds the suite's scores to the step's row; training is the same with and without it, bit for bit.

    The last step is left to `FinalEvaluation`. The weights are those that are trained, not averages of a callback.

    Args:
        suite: the evaluations; without `every_steps` there are none during training.
        tokenizer: tokenizer of the training data; None where it is not known and nothing is evaluated.
        record: receives the scores.
        request: on a signal a single rank gives up the evaluation, so that the step can be saved.
        training_log: its speeds leave the evaluation out.
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
        # Ranks that share the work wait for one another, so they give up nothing: the grace period ends it.
        give_up = self._give_up if trainer.world_size == 1 else lambda: None
        try:
            scores = score_module(self.suite, self.tokenizer, trainer, pl_module, give_up)
        except _GivenUpError:
            log.warning("the evaluation of step %d is left out: %s", step, self.request.reason)
            return
        self.record.note(step, {"tokens": step * self.tokens_per_step, **headline(scores)})

    def _give_up(self) -> None:
        if self.request.signum:
            raise _GivenUpError


class _GivenUpError(Exception):
    """Signal during an evaluation, which is given up."""
