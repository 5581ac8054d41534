"""One process in a run folder: `.lock` names the process that works there.

A lock of a process that is gone is taken over. On this machine that is known: the process's number and start time,
and the boot they belong to. Of another machine (or container) only signs of life are seen: its lock is touched every
`BEAT_S` seconds, and counts as left behind once it was not for `LEASE_S`.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.files import write_atomic

BEAT_S = 20.0
LEASE_S = 300.0


class FolderInUseError(RuntimeError):
    """Another live process works in the folder."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[str]:
    """Hold `folder` inside the block, which is given what there is to say about it.

    Raises:
        FolderInUseError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    own, said = _identity(os.getpid()), ""
    with (folder / ".lock.turn").open("w") as turn:  # looking and taking are one, among processes that ask
        fcntl.flock(turn, fcntl.LOCK_EX)
        holder = _holder(path)
        if holder is not None and holder != own:
            if _alive(holder, path):
                raise FolderInUseError(
                    f"{folder} is in use by process {holder['pid']} on {holder['host']}; "
                    f"wait for it or stop it (kill -TERM {holder['pid']} there makes it save and leave)"
                )
            said = f"the lock of process {holder['pid']}, which is gone, is taken over"
        write_atomic(path, json.dumps(own) + "\n")
    done = threading.Event()
    threading.Thread(target=_beat, args=(path, done), daemon=True).start()
    try:
        yield said
    finally:
        done.set()
        if _holder(path) == own:
            path.unlink(missing_ok=True)


def _identity(pid: int) -> dict[str, str | int]:
    return {
        "pid": pid,
        "started": _started(pid),
        "host": socket.gethostname(),
        "place": _read(Path("/proc/sys/kernel/random/boot_id")) + _link(Path("/proc/self/ns/pid")),
    }


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot; empty where it is gone or only waits to be reaped."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _holder(path: Path) -> dict[str, str | int] | None:
    try:
        found: dict[str, str | int] = json.loads(_read(path))
    except json.JSONDecodeError:
        return None
    return found


def _alive(holder: dict[str, str | int], path: Path) -> bool:
    here = _identity(os.getpid())
    pid = int(holder["pid"])
    if holder["host"] == here["host"] and holder["place"] == here["place"] and here["started"]:
        return bool(holder["started"]) and _started(pid) == holder["started"]
    return time.time() - path.stat().st_mtime < LEASE_S


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        try:
            os.utime(path)
        except OSError:
            return
