"""Signals: noted inside a step, obeyed at once outside."""

import os
import signal

import pytest

from src.callbacks.stop import StopRequest
from src.mistakes import Interrupted


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_a_step_leaves_at_once(signum: signal.Signals) -> None:
    request = StopRequest(grace_s=60.0)
    with request.installed(), pytest.raises(Interrupted) as stop:
        os.kill(os.getpid(), signum)
    assert stop.value.signum == signum


def test_a_signal_inside_a_step_is_noted(tmp_path: object) -> None:
    request = StopRequest(grace_s=60.0)
    with request.installed():
        request.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signum == signal.SIGTERM
        with pytest.raises(Interrupted, match="SIGTERM"):
            request.check()


def test_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(grace_s=60.0).installed():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
