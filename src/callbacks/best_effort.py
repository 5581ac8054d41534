"""What a run can do without: pictures, dashboards, other loggers. Where they fail it goes on, with one warning.

The record does not depend on them; metrics.jsonl, result.json and checkpoints fail loudly.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import Logger

from src.errors import one_line

log = logging.getLogger(__name__)

#: What a logger is told in the course of a run.
METHODS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize")


class Soft:
    """Lets failures pass, and says so once for each thing that failed."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Do the block; an error in it ends the block and nothing else."""
        try:
            yield
        except Exception as error:
            if what not in self._told:
                self._told.add(what)
                log.warning(
                    "%s failed and may be incomplete; the run goes on: %s: %s",
                    what,
                    type(error).__name__,
                    one_line(error),
                )

    def softened(self, loggers: Iterable[Logger]) -> list[Logger]:
        """Those loggers that can begin (Lightning would stop at one that cannot), their later failures let pass."""
        able = []
        for logger in loggers:
            what = type(logger).__name__
            with self.attempt(what):
                getattr(logger, "experiment", None)  # opens its files, or its connection
                for name in METHODS:
                    setattr(logger, name, self._guarded(what, getattr(logger, name)))
                able.append(logger)
        return able

    def _guarded(self, what: str, method: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> None:
            with self.attempt(what):
                method(*args, **kwargs)

        return call
