"""What TensorBoard shows: scalars, a layout that groups them, and sample text at each validation."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch import loggers
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from src.callbacks.best_effort import Soft
from src.callbacks.training_log import TrainingLog
from src.datamodules.tokenizer import END_OF_TEXT, N_VOCAB, gpt2_encoding
from src.models.gpt import GPT
from src.models.lightning_module import LanguageModel

#: The tab "custom scalars": charts by group, each of one or more tags (regular expressions).
LAYOUT = {
    "loss": {"training and validation": ["Multiline", ["train/loss", "val/loss"]]},
    "optimizer": {"learning rate": ["Multiline", ["lr"]], "gradient norm": ["Multiline", ["grad_norm"]]},
    "speed": {"tokens/s": ["Multiline", ["tokens_per_s"]]},
    "evaluation": {
        "perplexity": ["Multiline", ["perplexity/.*"]],
        "lm-eval": ["Multiline", ["lm_eval/.*"]],
    },
}


#: Of one sample; each is a forward of its own.
MOST_TOKENS = 100_000


@dataclass(frozen=True)
class SampleKeys:
    """The keys of `samples`: what the model continues at each validation, and by how many tokens (0: not at all)."""

    prompt: str
    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise ValueError(f"samples.tokens must not be negative, got {self.tokens}; 0 leaves samples out")
        if self.tokens > MOST_TOKENS:
            raise ValueError(f"samples.tokens must be at most {MOST_TOKENS}, got {self.tokens}")
        if not self.prompt:
            raise ValueError("samples.prompt must not be empty; samples.tokens=0 leaves samples out")


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Lightning's, a row as one event instead of one for each of its scalars, which costs less to write."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Shown as Lightning's would be; its own writes what is no number, or where the writer has no file."""
        file = getattr(self.experiment, "file_writer", None)
        if file is None or not all(isinstance(value, float | int) for value in metrics.values()):
            super().log_metrics(metrics, step)
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        file.add_summary(Summary(value=values), step)


class Dashboard(L.Callback):
    """Writes the layout once and a greedy continuation of the prompt whenever the run validates.

    Rank 0 alone generates. A vocabulary smaller than GPT-2's has no text, so nothing is written.

    Args:
        samples: prompt and length.
        every_steps: optimizer steps between samples, as between validations.
        log: has the pause taken out of its speed.
        soft: lets TensorBoard's failures pass.
    """

    def __init__(self, samples: SampleKeys, *, every_steps: int, log: TrainingLog, soft: Soft) -> None:
        self.soft = soft
        self.samples = samples
        self.every_steps = every_steps
        self.train_log = log

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with self.soft.attempt("TensorBoardLogger"):
            for writer in _writers(trainer):
                writer.add_custom_scalars(LAYOUT)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        step = trainer.global_step
        if step % self.every_steps and step != trainer.max_steps:
            return
        assert isinstance(pl_module, LanguageModel)  # tasks/train.py builds nothing else
        writers: list[SummaryWriter] = []
        with self.soft.attempt("TensorBoardLogger"):
            writers = _writers(trainer)
        if not writers or self.samples.tokens == 0 or pl_module.gpt.config.vocab_size < N_VOCAB:
            return
        began = time.monotonic()
        pl_module.eval()
        with trainer.precision_plugin.forward_context():
            text = continuation(pl_module.gpt, self.samples.prompt, self.samples.tokens)
        pl_module.train()
        with self.soft.attempt("TensorBoardLogger"):
            for writer in writers:
                writer.add_text("sample", f"{self.samples.prompt}**{text}**", step)
        self.train_log.pause(time.monotonic() - began)


def _writers(trainer: L.Trainer) -> list[SummaryWriter]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, loggers.TensorBoardLogger)]


@torch.no_grad()
def continuation(gpt: GPT, prompt: str, n_tokens: int) -> str:
    """The likeliest next token, `n_tokens` times or up to end of text; the same weights give the same text."""
    encoding = gpt2_encoding()
    device = next(gpt.parameters()).device
    tokens: list[int] = encoding.encode_ordinary(prompt)
    start = len(tokens)
    while len(tokens) - start < n_tokens:
        idx_BT = torch.tensor([tokens[-gpt.config.block_size :]], device=device)
        x_D = gpt.hidden(idx_BT)[0, -1]
        logits_V = torch.nn.functional.linear(x_D, gpt.embedding.get_lm_head_weight())
        token = int(logits_V[:N_VOCAB].argmax())  # never a padding id
        if token == END_OF_TEXT:
            break
        tokens.append(token)
    text: str = encoding.decode(tokens[start:])
    return text
