"""Errors in one line, and exit codes of interruptions."""

import signal

import pytest

from src.errors import Interrupted, UserError, exit_code, one_line


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_an_interruption_has_its_exit_code(signum: int, code: int) -> None:
    assert exit_code(signum) == code


def test_a_message_is_one_line_or_the_name_of_the_class() -> None:
    assert one_line(UserError("a\n  b")) == "a b"
    assert one_line(KeyError()) == "KeyError"


def test_an_interruption_passes_through_handlers_of_exceptions() -> None:
    assert not issubclass(Interrupted, Exception)
    assert str(Interrupted(signal.SIGTERM)) == "stopped by SIGTERM"
    assert str(Interrupted(signal.SIGTERM, "trainer.max_time")) == "trainer.max_time"
