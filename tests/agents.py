"""Agents of torchrun on the loopback of this machine, and the processes that they start."""

import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.runs import ROOT, environment

#: Of an agent; without the last one, torch 2.13 gives a node that joins later no address of its store.
AGENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def start_agent(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start a torchrun agent in a session of its own; `arguments` are its options, then run.py's."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=cwd,
        env={**environment(), **AGENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def workers_of(cwd: Path) -> list[int]:
    """Return the processes of run.py that work below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            is_worker = str(ROOT / "run.py").encode() in words and b"torch.distributed.run" not in words
            if is_worker and (path / "cwd").resolve() == cwd:
                found.append(int(path.name))
        except OSError:
            continue
    return found


def wait_for_port(port: int) -> None:
    """Wait until a process of this machine listens on a port."""
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
