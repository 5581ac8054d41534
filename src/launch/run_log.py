"""Log of a job: run.log in its folder with everything, the console with the messages of this project.

A job that was rejected before it did anything leaves no folder.
"""

import logging
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger(__name__)

#: What a job writes before its task does anything.
TRACES = (".hydra", "run.log")


class RunLogHandler(logging.FileHandler):
    """Handler of run.log that reports an error of the file system (a full disk) once, on the console."""

    def __init__(self, path: Path, console: logging.Handler) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._console = console
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # the name of the base class
        """Report the first error; the job continues without a complete run.log."""
        if self._failed:
            return
        self._failed = True
        text = f"run.log cannot be written and is incomplete: {sys.exc_info()[1]}"
        self._console.handle(logging.makeLogRecord({**record.__dict__, "msg": text, "args": ()}))


class ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Handler of standard error: messages of this project from INFO on, those of libraries from ERROR on."""

    def __init__(self, level: int) -> None:
        super().__init__(sys.stderr)
        self.setLevel(level)
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record; progress bars are cleared before it and drawn again after it."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is printed."""
        return (record.name.startswith("src") or record.levelno >= logging.ERROR) and bool(super().filter(record))


@contextmanager
def open_log(folder: Path, rank: int) -> Iterator[None]:
    """Log into `folder`/run.log and to the console inside the block; ranks above 0 only print what is critical."""
    root = logging.getLogger()
    handlers, level, hook = root.handlers[:], root.level, threading.excepthook
    console = ConsoleHandler(logging.CRITICAL if rank else logging.INFO)
    ours: list[logging.Handler] = [console]
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        ours.append(RunLogHandler(folder / "run.log", console))
    root.handlers = ours
    root.setLevel(logging.INFO)
    logging.getLogger("src").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_error
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in ours:
            handler.close()
        root.handlers, root.level = handlers, level
        threading.excepthook = hook


def _log_thread_error(args: threading.ExceptHookArgs) -> None:
    # The caller that waits for the thread (a logger's, mostly) reports the error to the user.
    log.debug("a thread failed: %s", args.exc_value)


def remove_traces(folder: Path) -> bool:
    """Remove what a job wrote before its task; return false, with nothing removed, if there is anything else."""
    for empty in ("checkpoints", "figures"):
        with suppress(OSError):
            (folder / empty).rmdir()
    if any(path.name not in TRACES and not path.name.startswith(".lock") for path in folder.iterdir()):
        return False
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    (folder / "run.log").unlink(missing_ok=True)
    return True


def remove_empty(folder: Path, *beside: str) -> None:
    """Remove a folder that holds nothing but the files `beside`, and those above it that only hold runs."""
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} != {*beside}:
            return
        for name in beside:
            (folder / name).unlink()
        folder.rmdir()
        if folder.parent.parent.name == "multirun":
            folder.parent.rmdir()
            folder.parent.parent.rmdir()
