"""Signals: recorded inside a step, effective at once outside."""

import os
import signal
from collections.abc import Callable

import lightning as L
import pytest
import torch
from torch import distributed

from src.callbacks.stop import StopOnSignal
from src.errors import Interrupted
from src.launch import stop_request
from src.launch.stop_request import StopRequest


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_a_step_exits_at_once(signum: signal.Signals) -> None:
    request = StopRequest(grace_s=60.0)
    with request.installed(), pytest.raises(Interrupted) as stop:
        os.kill(os.getpid(), signum)
    assert stop.value.signum == signum


def test_a_signal_inside_a_step_is_recorded(tmp_path: object) -> None:
    request = StopRequest(grace_s=60.0)
    with request.installed():
        request.deferred = True
        for _ in range(2):  # from SLURM and from a launcher
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.signum == signal.SIGTERM
        with pytest.raises(Interrupted, match="SIGTERM"):
            request.check()


@pytest.mark.parametrize(
    "begin", [lambda r: r.agree(signal.SIGTERM), lambda r: r.check_time(0.0)], ids=["rank", "time"]
)
def test_the_first_signal_to_a_rank_that_stops_already_does_not_end_it(
    begin: Callable[[StopRequest], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr(stop_request, "REPEATED_S", 0.0)
    request = StopRequest(grace_s=60.0)
    with request.installed():
        request.deferred = True
        begin(request)
        reason = request.reason
        os.kill(os.getpid(), signal.SIGUSR1)  # the scheduler's, while the checkpoint is written
        assert (request.signum, request.reason, exits) == (signal.SIGTERM, reason, [])
        os.kill(os.getpid(), signal.SIGUSR1)
        assert exits == [143]


def test_a_signal_between_an_agreed_stop_and_its_end_does_not_end_this_rank_alone() -> None:
    """The last checkpoint is still being written when the training loop ends."""
    request = StopRequest(grace_s=60.0)
    with request.installed():
        request.check_time(0.0)
        request.agree(request.signum)
        request.deferred = False
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="max_time is over") as stop:
            request.check()
    assert (stop.value.signum, stop.value.agreed) == (signal.SIGTERM, True)


class _TwoRanks(L.Trainer):
    world_size = 2


def test_a_signal_while_the_ranks_agree_on_none_stops_them_after_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = StopRequest(grace_s=60.0)
    stop = StopOnSignal(request, max_s=None, timeout_s=1.0)
    trainer = _TwoRanks(logger=False, enable_checkpointing=False, enable_progress_bar=False)

    def reduce_and_receive_a_signal(flag: torch.Tensor, **_: object) -> None:
        if not request.signum:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(distributed, "new_group", lambda **_: "a group")
    monkeypatch.setattr(distributed, "all_reduce", reduce_and_receive_a_signal)
    with request.installed():
        stop.on_train_start(trainer, L.LightningModule())
        stop.on_step_end(trainer, L.LightningModule())
        assert not trainer.should_stop  # the other ranks do not know of it yet
        stop.on_step_end(trainer, L.LightningModule())
        assert trainer.should_stop
        assert request.signum == signal.SIGTERM


def test_submitits_handler_requeues_a_job_that_has_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    requeued: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda signum, frame: requeued.append(signum))
    try:
        for executor, expected in (("", []), ("slurm", [signal.SIGUSR2])):
            if executor:
                monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
            request = StopRequest(grace_s=60.0)
            with request.installed():
                request.deferred = True
                os.kill(os.getpid(), signal.SIGUSR2)
                assert (request.signum, requeued) == (signal.SIGUSR2, [])  # the step is finished first
            assert requeued == expected
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(grace_s=60.0).installed():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
