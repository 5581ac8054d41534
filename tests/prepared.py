"""Runs of run.py without the seconds of imports: forks of a process that has imported what a training imports.

    test process  --request-->  prepared process (this file as a program)  --fork-->  a run

A test process starts one prepared process, when it first needs it. Its fork becomes what `python run.py ...` would
be (a session of its own, working folder, argv, streams, fresh random numbers), runs it as `__main__` and ends as an
interpreter does, up to and with the handlers of `atexit`. It is handed over to the test process, so that `Popen`
waits for it and has its real exit code or signal.

What a fork cannot show, and runs that are started for real have to: an import that is missing, slow, noisy or
interrupted; what happens while modules are taken apart at the very end. `/proc/<pid>/cmdline` is this file's. As
imports may read the environment, a run that has other variables than the tests began with is not forked.
"""

import atexit
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: The longest request, in bytes.
LONGEST = 2**17
#: pytest's own word on where it is, which changes all the time.
PLACE = "PYTEST_CURRENT_TEST"
#: More threads than one cannot be forked, and numpy's products are no part of a run.
ONE_THREAD = "OPENBLAS_NUM_THREADS"


class Prepared:
    """The prepared process of this test process, from the first fork on; it leaves when nobody can ask any more.

    Args:
        env: its variables, and its forks'.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = {**env}
        self.control: socket.socket | None = None

    def suits(self, env: Mapping[str, str]) -> bool:
        """Whether forks are as processes with these variables are."""
        return sys.platform == "linux" and {**env, PLACE: ""} == {**self.env, PLACE: ""}

    def begin(self, *command: str, cwd: Path) -> subprocess.Popen[str]:
        """Begin a Python program in `cwd`: its path and its arguments."""
        return _Forked(self, command, cwd)

    def fork(self, command: tuple[str, ...], cwd: Path, stdout: int, stderr: int) -> int:
        """Have a fork run the program; returns the process, which is a child of this one."""
        self.control = self.control or self._start()
        _adopt_orphans(True)
        try:
            place = os.environ.get(PLACE, "")
            socket.send_fds(self.control, [json.dumps([command, str(cwd), place]).encode()], [stdout, stderr])
            if not (pid := self.control.recv(LONGEST)):
                raise RuntimeError("the prepared process is gone; it must not have more than one thread")
        finally:
            _adopt_orphans(False)
        return int(pid)

    def _start(self) -> socket.socket:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with tempfile.TemporaryFile() as said, theirs:
            process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={**self.env, ONE_THREAD: "1"},
                stdout=said,
                stderr=said,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # an interrupt at the keyboard is for the tests
            )
            atexit.register(process.wait)
            atexit.register(control.close)
            theirs.close()
            is_ready = control.recv(LONGEST) == b"ready"
            said.seek(0)
            if (words := said.read().decode()) or not is_ready:  # forks would not repeat them
                raise RuntimeError(f"the prepared process said at its start: {words}")
        return control


class _Forked(subprocess.Popen[str]):
    """A run as `Popen` knows it, and whose whole session is killed: only how it begins is another."""

    def __init__(self, prepared: Prepared, command: tuple[str, ...], cwd: Path) -> None:
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        self._begin = lambda: prepared.fork(command, cwd, to_out, to_err)
        try:
            super().__init__([sys.executable, *command], text=True)
        finally:
            os.close(to_out)
            os.close(to_err)
        self.stdout, self.stderr = open(out), open(err)  # noqa: SIM115  # Popen closes them

    def _execute_child(self, *_: Any) -> None:
        self.pid = self._begin()
        self._child_created = True

    def kill(self) -> None:
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)


def _adopt_orphans(yes: bool) -> None:
    pr_set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, int(yes), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def serve(control: socket.socket) -> None:
    """Fork for each request; returns in the forks only."""
    control.send(b"ready")
    while True:
        request, streams, _, _ = socket.recv_fds(control, LONGEST, 2)
        if not request:
            os._exit(0)
        assert len(os.listdir("/proc/self/task")) == 1, "a fork has but one thread, and the others' locks"
        if (between := os.fork()) == 0:
            parent = os.getpid()
            if os.fork():
                os._exit(0)  # the fork is an orphan now, and taken in by the test process
            os.setsid()
            while os.getppid() == parent:
                time.sleep(0.0005)
            with control:
                control.send(str(os.getpid()).encode())
            become(*json.loads(request), *streams)
            return
        os.waitpid(between, 0)
        for stream in streams:
            os.close(stream)


def become(command: list[str], cwd: str, place: str, stdout: int, stderr: int) -> None:
    """Make of this fork what a new process is."""
    import multiprocessing.process

    import numpy as np

    os.chdir(cwd)
    for stream, to in ((stdout, 1), (stderr, 2)):
        os.dup2(stream, to)
        os.close(stream)
    os.environ.clear()  # of what imports have set
    os.environ.update({**BEFORE, PLACE: place} if place else BEFORE)
    multiprocessing.process.ORIGINAL_DIR = cwd  # noted by its import
    np.random.seed()  # `random` does so by itself, and torch begins alike in each process
    sys.argv, sys.orig_argv = command, [sys.executable, *command]
    sys.path[0] = str(Path(command[0]).parent)


def leave() -> None:
    """The end of a fork, once its threads and its handlers of the end are through."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    BEFORE = {name: value for name, value in os.environ.items() if name not in (ONE_THREAD, PLACE)}
    code = 1  # of an exception that nobody caught
    atexit.register(leave)  # the first to be registered is the last to be called
    sys.path[0] = str(ROOT)
    import src.launch.job  # most of the time that a start takes
    import src.tasks.train  # noqa: F401

    serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
