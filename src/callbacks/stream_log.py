"""At validation, a look at the stream: rows in stream.jsonl, and pictures in figures/ and on the dashboard.

Looking costs a forward and a backward of one sequence. Drawing costs more, so it waits while it has taken more
than `share` of the run's time; the last validation always draws.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from src.callbacks.best_effort import Soft
from src.callbacks.training_log import TrainingLog
from src.datamodules.base import TokenDataModule
from src.files import read_rows, write_atomic
from src.models.gpt import GPT
from src.models.lightning_module import LanguageModel
from src.models.stream_probe import StreamProbe, probe_stream, summarize_parameters
from src.reporting.figures import save
from src.reporting.stream_figures import mixing_map, scalars_by_depth, sizes

log = logging.getLogger(__name__)

#: More rows than this are no picture.
MAX_ROWS = 512


class StreamLog(L.Callback):
    """Rank 0 looks at the first validation sequence, as it is trained on: in the run's precision.

    Args:
        folder: the run folder.
        every_steps: optimizer steps between looks, those of the validations.
        log_rows: has the pause taken out of its speed.
        share: of the run's time that drawing may take before the end.
        soft: lets failures to write and to draw pass.
    """

    def __init__(
        self, folder: Path, *, every_steps: int, log_rows: TrainingLog, share: float, soft: Soft
    ) -> None:
        self.soft = soft
        self.folder, self.every_steps, self.train_log, self.share = folder, every_steps, log_rows, share
        self._tokens_T: Tensor | None = None
        self._began = time.monotonic()
        self._drawing = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.monotonic()
        if trainer.is_global_zero:
            with self.soft.attempt("stream.jsonl"):
                self._keep_until(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        step = trainer.global_step
        last = step == trainer.max_steps
        if not trainer.is_global_zero or (step % self.every_steps and not last):
            return
        assert isinstance(pl_module, LanguageModel)  # tasks/train.py builds nothing else
        began = time.monotonic()
        tokens_1T = self._probe(trainer).to(pl_module.device)
        with trainer.precision_plugin.forward_context():
            stream = probe_stream(pl_module.gpt, tokens_1T[:, :-1], tokens_1T[:, 1:])
        scalars = summarize_parameters(pl_module.gpt)
        with self.soft.attempt("stream.jsonl"):
            self._write(step, stream, scalars)
        for logger in trainer.loggers:
            logger.log_metrics(_summary(stream), step=step)
        if last or self._drawing < self.share * (time.monotonic() - self._began):
            with self.soft.attempt("figures of the stream"):
                self._draw(trainer, pl_module.gpt, step, stream, scalars)
        self.train_log.pause(time.monotonic() - began)

    def _probe(self, trainer: L.Trainer) -> Tensor:
        """The first validation sequence, [1, T + 1]; the same in every run."""
        if self._tokens_T is None:
            data = trainer.datamodule  # type: ignore[attr-defined]  # set by fit; Lightning does not declare it
            assert isinstance(data, TokenDataModule)  # likewise
            first: Tensor = next(iter(data.val_dataloader()))
            self._tokens_T = first[0].long()
        return self._tokens_T.unsqueeze(0)

    def _write(self, step: int, stream: StreamProbe, scalars: dict[str, Tensor]) -> None:
        row: dict[str, Any] = {"step": step}
        for name, value in stream._asdict().items():
            row[name] = _rounded(value) if isinstance(value, Tensor) else value
        row["learned"] = {name: _rounded(values) for name, values in scalars.items() if len(values) <= MAX_ROWS}
        with (self.folder / "stream.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _keep_until(self, step: int) -> None:
        path = self.folder / "stream.jsonl"
        if path.exists():
            whole = [json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step]
            write_atomic(path, "".join(whole))

    def _draw(
        self, trainer: L.Trainer, gpt: GPT, step: int, stream: StreamProbe, scalars: dict[str, Tensor]
    ) -> None:
        began = time.monotonic()
        labels = [f"{site.kind} {site.block}" for site in gpt.active_sites]
        sources = [
            "x0" if s.site < 0 else f"+ {gpt.active_sites[s.site].block}" if s.addition else labels[s.site]
            for s in stream.sources
        ]
        first_reader = [s.first_reader for s in stream.sources]
        how = (
            f"measured; explain at least {stream.explained_K.min():.1%} of any input"
            if stream.measured
            else "the strategy's own"
        )
        size = {
            "stream, as read": stream.read_rms_K.tolist(),
            "branch, as written": stream.branch_rms_S.tolist(),
            "gradient by the branch": stream.gradient_rms_S.tolist(),
        }
        figures = {
            "mixing": mixing_map(
                stream.mixing_KJ.tolist(),
                [*labels, "end"],
                sources,
                first_reader,
                f"weights at step {step} ({how})",
            ),
            "sizes": sizes(size, f"stream, branches and gradients at step {step}"),
        }
        shown = {name: v.tolist() for name, v in scalars.items() if 1 < len(v) <= MAX_ROWS}
        if shown:
            figures["learned"] = scalars_by_depth(shown, f"learned by depth at step {step}")
        for name, figure in figures.items():
            self._show(trainer, f"stream_{name}", figure, step)
        self._drawing += time.monotonic() - began

    def _show(self, trainer: L.Trainer, name: str, figure: Figure, step: int) -> None:
        save(figure, self.folder / "figures" / f"{name}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(name.replace("_", "/", 1), figure, step)


def _summary(stream: StreamProbe) -> dict[str, float]:
    return {
        "stream/read_rms_first": float(stream.read_rms_K[0]),
        "stream/read_rms_end": float(stream.read_rms_K[-1]),
        "stream/branch_rms_max": float(stream.branch_rms_S.max()),
        "stream/gradient_rms_max": float(stream.gradient_rms_S.max()),
        "stream/gradient_rms_min": float(stream.gradient_rms_S.min()),
    }


def _rounded(values: Tensor) -> Any:
    """Nested lists of six significant digits; a matrix keeps its shape."""
    if values.dim() > 1:
        return [_rounded(row) for row in values]
    return [float(f"{v:.6g}") for v in values.tolist()]
