"""Run-folder lock: one process works in a run folder, on one machine or on a file system that several share.

`.lock` in the run folder is a `SoftFileLease` of filelock; it names process, start time and host. A lock of a process
that has ended is taken over at once where the process table shows it, which is the same machine and PID namespace.
From another machine only the heartbeat shows: the holder touches the file every `HEARTBEAT_S` seconds, and after
`LEASE_S` seconds without one, measured by the waiting process, the lock is taken over. A native lock (flock) is not
enough: many shared file systems do not have it, or keep it to one machine.
"""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

from src.errors import UserError

log = logging.getLogger(__name__)

HEARTBEAT_S = 20.0
#: Longer than the attribute caches of NFS, which hide heartbeats for up to 60 s.
LEASE_S = 120.0


@contextmanager
def lock_folder(folder: Path) -> Iterator[str]:
    """Hold the lock of `folder` inside the block.

    Yields:
        One line on a lock that was taken over; empty where there was none.

    Raises:
        UserError: another live process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    lease = SoftFileLease(
        path, timeout=0, lease_duration=LEASE_S, heartbeat_interval=HEARTBEAT_S, on_compromise=_report_loss
    )
    holder = _read_holder(path)
    if _is_zombie(holder) and _read_holder(path) == holder:
        path.unlink(missing_ok=True)  # it has ended, but its parent has not noticed
    process = f"process {holder.get('pid', '(unknown)')} on {holder.get('host', '(unknown)')}"
    try:
        try:
            lease.acquire()
        except Timeout:
            if not _may_have_ended(holder, path):
                raise
            log.warning("%s is locked by %s; waiting %g s for its heartbeat", folder, process, LEASE_S)
            lease.acquire(timeout=LEASE_S + HEARTBEAT_S)
    except Timeout as error:
        raise UserError(
            f"{folder} is in use by {process}; wait for it or stop it "
            f"(kill -TERM {holder.get('pid', '<pid>')} on its machine saves its progress and exits)"
        ) from error
    try:
        yield f"the lock of {process} is taken over, which has ended" if holder else ""
    finally:
        lease.release()


def _read_holder(path: Path) -> dict[str, str]:
    """Return the fields of a lock file, such as `pid` and `host`; empty where it does not exist."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def _is_zombie(holder: dict[str, str]) -> bool:
    """Return true if the holder is a process of this machine that has ended and was not waited for."""
    if holder.get("host", "").partition("?")[0] != socket.gethostname():
        return False
    try:
        fields = Path(f"/proc/{holder['pid']}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, KeyError):
        return False
    return fields[0] in "ZX"


def _may_have_ended(holder: dict[str, str], path: Path) -> bool:
    """Return whether heartbeats are missing and no process of this machine explains the lock."""
    if holder.get("host", "").partition("?")[0] == socket.gethostname() and Path(f"/proc/{holder['pid']}").exists():
        return False  # suspended, not ended
    try:
        return time.time() - path.stat().st_mtime > 2 * HEARTBEAT_S
    except OSError:
        return True


def _report_loss(loss: LeaseCompromise) -> None:
    log.error("%s is lost (%s); another process may write into this folder", loss.lock_file, loss.reason)
