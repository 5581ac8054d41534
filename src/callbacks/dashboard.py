"""TensorBoard output: scalars, a layout that groups them, and sample text at each validation."""

from dataclasses import dataclass
from typing import Annotated

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from pydantic import Field
from torch.utils.tensorboard import SummaryWriter

from src.callbacks.best_effort import BestEffort, BestEffortLogger
from src.datamodules.tokenization.base import Tokenizer
from src.evaluation.generation import generate_text
from src.models.lightning_module import LanguageModel
from src.models.sharding import is_sharded

#: Layout of the tab "custom scalars": charts by group, each of one or more tags (regular expressions).
LAYOUT = {
    "loss": {"training and validation": ["Multiline", ["train/loss", "val/loss"]]},
    "optimizer": {"learning rate": ["Multiline", ["lr"]], "gradient norm": ["Multiline", ["grad_norm"]]},
    "speed": {
        "tokens/s": ["Multiline", ["tokens_per_s"]],
        "FLOP/s of a device": ["Multiline", ["flops_per_s"]],
        "MFU": ["Multiline", ["mfu"]],
        "memory in GiB": ["Multiline", ["memory_gib"]],
    },
    "evaluation": {"perplexity": ["Multiline", ["perplexity/.*"]], "lm-eval": ["Multiline", ["lm_eval/.*"]]},
}


@dataclass(frozen=True)
class PromptKeys:
    """Keys of `samples`: the prompt, continued at each validation, and the number of new tokens (0: no samples)."""

    prompt: str
    tokens: Annotated[int, Field(ge=0, le=100_000, description="0 writes no samples")]  # each takes one forward

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("samples.prompt must not be empty; samples.tokens=0 writes no samples")


class Dashboard(L.Callback):
    """Writes the layout once, and a greedy continuation of the prompt at each validation.

    Rank 0 alone generates, or all ranks where they share the weights. Without a known tokenizer nothing is written.

    Args:
        samples: prompt and length.
        tokenizer: tokenizer of the training data; None where it is not known.
        best_effort: suppresses TensorBoard's errors.
    """

    def __init__(self, samples: PromptKeys, tokenizer: Tokenizer | None, *, best_effort: BestEffort) -> None:
        self.best_effort = best_effort
        self.tokenizer = tokenizer
        self.samples = samples

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with self.best_effort.attempt("TensorBoardLogger"):
            for writer in find_writers(trainer):
                writer.add_custom_scalars(LAYOUT)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)  # training builds no other module
        writers: list[SummaryWriter] = []
        with self.best_effort.attempt("TensorBoardLogger"):
            writers = find_writers(trainer)
        if self.samples.tokens == 0 or self.tokenizer is None:
            return
        if not writers and not is_sharded(pl_module.gpt):
            return
        with trainer.precision_plugin.forward_context():
            text = generate_text(pl_module.gpt, self.tokenizer, self.samples.prompt, self.samples.tokens)
        with self.best_effort.attempt("TensorBoardLogger"):
            for writer in writers:
                writer.add_text("sample", f"{self.samples.prompt}**{text}**", trainer.global_step)


def find_writers(trainer: L.Trainer) -> list[SummaryWriter]:
    """Return the event writers of the trainer's TensorBoard loggers."""
    found = (logger.wrapped if isinstance(logger, BestEffortLogger) else logger for logger in trainer.loggers)
    return [logger.experiment for logger in found if isinstance(logger, TensorBoardLogger)]
