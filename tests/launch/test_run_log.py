"""Log of a job: run.log has everything, the console the messages of this project."""

import logging
import sys
import threading
import warnings
from pathlib import Path

import pytest
from tqdm import tqdm

from src.launch.run_log import open_log


def test_run_log_has_everything_and_the_console_the_messages_of_this_project(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_log(tmp_path / "r", rank=0):
        logging.getLogger("src.x").info("ours")
        logging.getLogger("src.x").debug("detail")
        logging.getLogger("library").info("theirs")
        logging.getLogger("library").error("their error")
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("a warning", stacklevel=1)
    text = (tmp_path / "r/run.log").read_text()
    for words in ("INFO src.x: ours", "DEBUG src.x: detail", "INFO library: theirs", "a warning"):
        assert words in text
    assert capsys.readouterr().err.splitlines() == ["ours", "their error"]


def test_a_message_gets_a_line_of_its_own_beside_a_progress_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_log(tmp_path, rank=0), tqdm(total=5, file=sys.stderr) as bar:
        bar.update()
        logging.getLogger("src.x").warning("a message")
    cleared, _, after = capsys.readouterr().err.partition("a message\n")
    assert cleared.endswith(" \r")
    assert "1/5" in after


def test_a_further_rank_writes_no_file_and_prints_what_is_critical(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_log(tmp_path, rank=1):
        logging.getLogger("src.x").error("an error")
        logging.getLogger("src.x").critical("critical")
    assert capsys.readouterr().err == "critical\n"
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    with open_log(tmp_path, rank=0):
        (handler,) = (h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler))
        monkeypatch.setattr(handler, "format", fail)
        for _ in range(2):
            logging.getLogger("src.x").debug("lost")
    assert capsys.readouterr().err == "run.log cannot be written and is incomplete: disk full\n"


def test_handlers_and_hooks_are_those_of_before_after_the_block(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level, threading.excepthook
    with open_log(tmp_path, rank=0):
        assert root.handlers != before[0]
    assert (root.handlers, root.level, threading.excepthook) == before
