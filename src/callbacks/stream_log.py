"""Probe of the residual stream at each validation: rows in stream.jsonl, pictures in figures/ and TensorBoard.

A probe costs a forward and a backward of one sequence. Drawing costs more, so it is skipped while it has taken more
than `share` of the run's time; the last validation always draws.
"""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from src.callbacks.best_effort import BestEffort
from src.callbacks.dashboard import find_writers
from src.files import drop_rows_after
from src.models.documents import number_documents
from src.models.gpt import GPT
from src.models.lightning_module import LanguageModel
from src.models.sharding import is_sharded
from src.models.stream_probe import StreamProbe, probe_stream, round_values, summarize_parameters
from src.reporting.figures import save_figure
from src.reporting.stream_figures import draw_mixing_map, draw_scalars, draw_sizes

#: Largest number of rows of a figure.
MAX_ROWS = 512


class StreamLog(L.Callback):
    """Probes the first validation sequence on rank 0, in training mode and the run's precision.

    Ranks that share the weights probe along, each its own first sequence; rank 0's counts.

    Args:
        folder: the run folder.
        share: share of the run's time that drawing may take before the last validation.
        best_effort: suppresses errors of writing and drawing.
    """

    def __init__(self, folder: Path, *, share: float, best_effort: BestEffort) -> None:
        self.best_effort = best_effort
        self.folder, self.share = folder, share
        self._tokens_T: Tensor | None = None
        self._began = time.monotonic()
        self._drawing = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.monotonic()
        if trainer.is_global_zero:
            with self.best_effort.attempt("stream.jsonl"):
                drop_rows_after(self.folder / "stream.jsonl", trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        assert isinstance(pl_module, LanguageModel)  # training builds no other module
        if not (trainer.is_global_zero or is_sharded(pl_module.gpt)):
            return
        tokens_1T = self._first_sequence(trainer, pl_module.gpt.config.block_size).to(pl_module.device)
        pl_module.train()
        with trainer.precision_plugin.forward_context():
            document_1T = number_documents(tokens_1T[:, :-1], pl_module.document_mark)
            stream = probe_stream(pl_module.gpt, tokens_1T[:, :-1], tokens_1T[:, 1:], document_1T)
        pl_module.eval()
        scalars = summarize_parameters(pl_module.gpt)
        if not trainer.is_global_zero:  # it took part in the forward and the backward
            return
        with self.best_effort.attempt("stream.jsonl"):
            self._write(step, stream, scalars)
        for logger in trainer.loggers:
            logger.log_metrics(_summarize(stream), step=step)
        is_last = step == trainer.max_steps
        if is_last or self._drawing < self.share * (time.monotonic() - self._began):
            with self.best_effort.attempt("figures of the stream"):
                self._draw(trainer, pl_module.gpt, step, stream, scalars)

    def _first_sequence(self, trainer: L.Trainer, block_size: int) -> Tensor:
        """Return the first validation sequence, [1, T + 1]; the same in every run."""
        if self._tokens_T is None:
            loaders = trainer.val_dataloaders
            assert loaders is not None  # this is called after a validation
            # The first set's; the data module returns a list. A rank may have no sequence.
            first: Tensor = next(iter(loaders[0]), torch.zeros(1, block_size + 1))
            self._tokens_T = first[0].long()
        return self._tokens_T.unsqueeze(0)

    def _write(self, step: int, stream: StreamProbe, scalars: dict[str, Tensor]) -> None:
        row: dict[str, Any] = {"step": step}
        for name, value in stream._asdict().items():
            row[name] = round_values(value) if isinstance(value, Tensor) else value
        row["learned"] = {name: round_values(values) for name, values in scalars.items() if len(values) <= MAX_ROWS}
        with (self.folder / "stream.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _draw(self, trainer: L.Trainer, gpt: GPT, step: int, stream: StreamProbe, scalars: dict[str, Tensor]) -> None:
        began = time.monotonic()
        labels = [f"{site.kind} {site.block}" for site in gpt.active_sites]
        sources = [
            "x0" if s.site < 0 else f"+ {gpt.active_sites[s.site].block}" if s.addition else labels[s.site]
            for s in stream.sources
        ]
        first_reader = [s.first_reader for s in stream.sources]
        origin = (
            f"measured; explain at least {stream.explained_K.min():.1%} of any input"
            if stream.measured
            else "the strategy's own"
        )
        size = {
            "stream, as read": stream.read_rms_K.tolist(),
            "branch, as written": stream.branch_rms_S.tolist(),
            "gradient of what is written": stream.gradient_rms_S.tolist(),
        }
        figures = {
            "mixing": draw_mixing_map(
                stream.mixing_KJ.tolist(),
                [*labels, "end"],
                sources,
                first_reader,
                f"weights at step {step} ({origin})",
            ),
            "sizes": draw_sizes(size, f"stream, branches and gradients at step {step}"),
        }
        curves = {name: v.tolist() for name, v in scalars.items() if 1 < len(v) <= MAX_ROWS}
        if curves:
            figures["learned"] = draw_scalars(curves, f"learned by depth at step {step}")
        for name, figure in figures.items():
            save_figure(figure, self.folder / "figures" / f"stream_{name}.png")
            for writer in find_writers(trainer):
                writer.add_figure(f"stream/{name}", figure, step)
        self._drawing += time.monotonic() - began


def _summarize(stream: StreamProbe) -> dict[str, float]:
    return {
        "stream/read_rms_first": float(stream.read_rms_K[0]),
        "stream/read_rms_end": float(stream.read_rms_K[-1]),
        "stream/branch_rms_max": float(stream.branch_rms_S.max()),
        "stream/gradient_rms_max": float(stream.gradient_rms_S.max()),
        "stream/gradient_rms_min": float(stream.gradient_rms_S.min()),
    }
