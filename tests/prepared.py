"""Runs of run.py without the seconds of imports: forks of a process that has imported what training imports.

    test process  --request-->  prepared process (this file as a program)  --fork-->  a run

A test process starts one prepared process when it first needs one. A fork sets itself up like a new
`python run.py ...` (own session, working folder, argv, streams, random numbers), runs the program as `__main__` and
ends like an interpreter, `atexit` handlers included. The fork becomes a child of the test process, so that `Popen`
waits for it and gets its exit code or signal.

A run that may launch ranks begins with a fork that is the prepared process of its ranks: torchelastic's `Popen` of
`python -m src.launch.worker` becomes a fork, too, and a child of the run.

Some cases need a real process: an import that is missing, slow, noisy or interrupted, and the teardown of modules at
the end. `/proc/<pid>/cmdline` is that of this file. As imports may read the environment, a run with other variables
than the prepared process is not forked. PYTHONPATH is an exception (its folders hold no module that is imported
already), as are variables of `tests/robust/faults` and those that torchelastic gives to ranks.
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
#: Longest request in bytes.
LONGEST = 2**17
#: Variable of pytest with the current test, which changes all the time.
CURRENT_TEST = "PYTEST_CURRENT_TEST"
#: Module that is a rank's program.
WORKER = "src.launch.worker"
#: Name of the process of a rank that is a fork; its number follows.
FORKED_RANK = "forked rank "
#: Folder on the PYTHONPATH of a process with faults, and its variables that are read when one occurs.
FAULTS = str(ROOT / "tests" / "robust" / "faults")
READ_AT_A_FAULT = {"FAULT_FILES", "FAULT_AFTER", "FAULT_ERRNO", "FAULT_FREE"}
#: A process with several threads cannot be forked; no run uses numpy's matrix products.
ONE_THREAD = "OPENBLAS_NUM_THREADS"


class Prepared:
    """Prepared process of this test process; it starts at the first fork and ends with the test process.

    Args:
        env: environment variables of the process and its forks.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = {**env}
        self.control: socket.socket | None = None

    def suits(self, env: Mapping[str, str]) -> bool:
        """Return whether a fork equals a process with these variables."""
        differing = {name for name in {*env, *self.env} if env.get(name) != self.env.get(name)}
        return sys.platform == "linux" and differing <= {CURRENT_TEST, "PYTHONPATH", *READ_AT_A_FAULT}

    def begin(self, *command: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a Python program in `cwd`, given by its path and arguments.

        Args:
            command: path of the program and its arguments.
            cwd: working folder.
            env: environment variables that suit; None for those of the prepared process.
        """
        return _Forked(self, command, cwd, self.env if env is None else env)

    def fork(self, command: tuple[str, ...], cwd: Path, env: Mapping[str, str], stdout: int, stderr: int) -> int:
        """Run the program in a fork; return its process id, a child of this process."""
        self.control = self.control or self._start()
        theirs = {name: value for name, value in env.items() if name != CURRENT_TEST}
        if CURRENT_TEST in os.environ:
            theirs[CURRENT_TEST] = os.environ[CURRENT_TEST]
        return ask_for_fork(self.control, command, cwd, theirs, stdout, stderr)

    def _start(self) -> socket.socket:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with tempfile.TemporaryFile() as output, theirs:
            process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={**self.env, ONE_THREAD: "1"},
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C stops the tests, not this process
            )
            atexit.register(process.wait)
            atexit.register(control.close)
            theirs.close()
            is_ready = control.recv(LONGEST) == b"ready"
            output.seek(0)
            if (words := output.read().decode()) or not is_ready:  # forks would not print it again
                raise RuntimeError(f"the prepared process printed at its start: {words}")
        return control


class _Forked(subprocess.Popen[str]):
    """`Popen` of a fork; `kill` kills its whole session."""

    def __init__(self, prepared: Prepared, command: tuple[str, ...], cwd: Path, env: Mapping[str, str]) -> None:
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        self._begin = lambda: prepared.fork(command, cwd, env, to_out, to_err)
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


def ask_for_fork(
    control: socket.socket, command: tuple[str, ...], cwd: Path, env: Mapping[str, str], stdout: int, stderr: int
) -> int:
    """Run a program in a fork of the prepared process at the other end of `control`; return the id of the new child.

    Args:
        control: socket of the prepared process.
        command: path of the program, or -m and its module, and the arguments.
        cwd: working folder.
        env: environment variables.
        stdout: file descriptor of the output.
        stderr: file descriptor of the errors.
    """
    _adopt_orphans(True)
    try:
        socket.send_fds(control, [json.dumps([command, str(cwd), dict(env)]).encode()], [stdout, stderr])
        if not (pid := control.recv(LONGEST)):
            raise RuntimeError("the prepared process has ended; it must not have more than one thread")
    finally:
        _adopt_orphans(False)
    return int(pid)


def _adopt_orphans(yes: bool) -> None:
    pr_set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, int(yes), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _name_process(name: str) -> None:
    pr_set_name = 15
    ctypes.CDLL(None).prctl(pr_set_name, name.encode(), 0, 0, 0)


def fork_on_request(control: socket.socket) -> None:
    """Fork for each request; return in the forks only."""
    control.send(b"ready")
    while True:
        request, streams, _, _ = socket.recv_fds(control, LONGEST, 2)
        if not request:
            os._exit(0)
        assert len(os.listdir("/proc/self/task")) == 1, "a fork has one thread, and the locks of the others"
        if (between := os.fork()) == 0:
            parent = os.getpid()
            if os.fork():
                os._exit(0)  # the fork is an orphan now; the test process adopts it
            os.setsid()
            while os.getppid() == parent:
                time.sleep(0.0005)
            with control:
                control.send(str(os.getpid()).encode())
            set_up_fork(*json.loads(request), *streams)
            return
        os.waitpid(between, 0)
        for stream in streams:
            os.close(stream)


def set_up_fork(command: list[str], cwd: str, env: dict[str, str], stdout: int, stderr: int) -> None:
    """Set up this fork like a new process."""
    import multiprocessing.process

    import numpy as np

    os.chdir(cwd)
    for stream, to in ((stdout, 1), (stderr, 2)):
        os.dup2(stream, to)
        os.close(stream)
    os.environ.clear()  # remove what imports have set
    os.environ.update(env)
    multiprocessing.process.ORIGINAL_DIR = cwd  # set when it is imported
    np.random.seed()  # `random` reseeds itself; torch has one seed in every process
    sys.argv, sys.orig_argv = command, [sys.executable, *command]
    sys.path[0] = cwd if command[0] == "-m" else str(Path(command[0]).parent)
    sys.path[1:1] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder not in ("", *sys.path)]
    if FAULTS in sys.path:
        runpy.run_path(f"{FAULTS}/sitecustomize.py")  # as Python does at its start


def may_launch_ranks(command: list[str]) -> bool:
    """Return whether a run may launch ranks on this machine."""
    return any(
        word in key for key in command for word in ("trainer.devices=", "trainer.restarts=", "trainer=ddp2", "resume=")
    )


def fork_ranks_from_here() -> None:
    """Let this run fork its ranks from a process that is as this one is now, with one thread; return in all of them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        fork_on_request(theirs)
        return
    theirs.close()
    assert ours.recv(LONGEST) == b"ready"

    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    def start(args: tuple[str, ...], env: Mapping[str, str], **kwargs: Any) -> subprocess.Popen[str]:
        if args[1:3] == ("-m", WORKER):
            return _Rank(ours, args[1:], env)
        return subprocess.Popen(args, env=env, **kwargs)

    subprocess_handler.Popen = start  # type: ignore[assignment, misc]  # a function is called as the class is


class _Rank(subprocess.Popen[str]):
    """`Popen` of a rank that is a fork; its output is that of this process."""

    def __init__(self, control: socket.socket, command: tuple[str, ...], env: Mapping[str, str]) -> None:
        self._begin = lambda: ask_for_fork(control, command, Path.cwd(), env, 1, 2)
        super().__init__([sys.executable, *command], text=True)

    def _execute_child(self, *_: Any) -> None:
        self.pid = self._begin()
        self._child_created = True


def end_fork() -> None:
    """End a fork after its threads and `atexit` handlers have run."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    code = 1  # exit code of an uncaught exception
    atexit.register(end_fork)  # handlers run in reverse order
    sys.path[0] = str(ROOT)
    import src.launch.job  # most of the time that a start takes
    import src.tasks.train  # noqa: F401

    fork_on_request(socket.socket(fileno=int(sys.argv[1])))
    if may_launch_ranks(sys.argv):
        fork_ranks_from_here()
    try:
        if sys.argv[0] == "-m":
            sys.argv = sys.argv[1:]
            if sys.argv[0] == WORKER:
                _name_process(FORKED_RANK + os.environ["RANK"])
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
