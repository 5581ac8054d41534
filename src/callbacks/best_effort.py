"""Best-effort output: pictures, dashboards and loggers may fail; the run continues with one warning.

The record does not depend on them: metrics.jsonl, result.json and checkpoints fail loudly.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import Logger

from src.errors import one_line

log = logging.getLogger(__name__)


class BestEffort:
    """Suppresses errors and warns once for each part that failed."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    @contextmanager
    def attempt(self, part: str) -> Iterator[None]:
        """Run the block; an error in it ends the block and nothing else."""
        try:
            yield
        except Exception as error:
            if part not in self._failed:
                self._failed.add(part)
                log.warning(
                    "%s failed and may be incomplete; the run continues: %s: %s",
                    part,
                    type(error).__name__,
                    one_line(error),
                )

    def wrap_loggers(self, loggers: Iterable[Logger]) -> list[Logger]:
        """Return the loggers that can start, each as a `BestEffortLogger`."""
        wrapped: list[Logger] = []
        for logger in loggers:
            with self.attempt(type(logger).__name__):
                # This opens its files or its connection; Lightning would stop here.
                getattr(logger, "experiment", None)
                wrapped.append(BestEffortLogger(logger, self))
        return wrapped


def _read_from_wrapped(name: str) -> Any:  # a property of any type
    return property(lambda self: getattr(self.wrapped, name))


def _attempt_on_wrapped(method: str) -> Any:  # a method of any signature
    def call(self: "BestEffortLogger", *args: Any, **kwargs: Any) -> None:
        with self._best_effort.attempt(type(self.wrapped).__name__):
            getattr(self.wrapped, method)(*args, **kwargs)

    return call


class BestEffortLogger(Logger):
    """Logger that passes every call on to another logger, and an error there on to `BestEffort`.

    Args:
        logger: the other logger, `wrapped`; its further attributes are this logger's, too.
        best_effort: reports its errors.
    """

    def __init__(self, logger: Logger, best_effort: BestEffort) -> None:
        super().__init__()
        self.wrapped = logger
        self._best_effort = best_effort

    def __getattr__(self, name: str) -> Any:  # whatever the other logger has
        if name == "wrapped":  # asked for before __init__, by copy
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    # What Logger defines itself, so that __getattr__ is not asked for it.
    name = _read_from_wrapped("name")
    version = _read_from_wrapped("version")
    save_dir = _read_from_wrapped("save_dir")
    root_dir = _read_from_wrapped("root_dir")
    log_dir = _read_from_wrapped("log_dir")
    group_separator = _read_from_wrapped("group_separator")
    log_metrics = _attempt_on_wrapped("log_metrics")
    log_hyperparams = _attempt_on_wrapped("log_hyperparams")
    log_graph = _attempt_on_wrapped("log_graph")
    save = _attempt_on_wrapped("save")
    after_save_checkpoint = _attempt_on_wrapped("after_save_checkpoint")
    finalize = _attempt_on_wrapped("finalize")
