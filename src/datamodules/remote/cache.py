"""Size-limited folder of fetched shards that the processes of a machine share.

    <folder>/remote/<hash of address>/<name>               complete, verified shard
    <folder>/remote/<hash of address>/<name>.<size>.part   shard being fetched; continued after an interruption
    <folder>/remote/<hash of address>/<name>.fetch         locked by the process that fetches the shard
    <folder>/remote/<hash of address>/<name>.lock          locked, shared, by its readers; modified at each use
    <folder>/remote/<hash of address>/<name>.ok            hash, size and time of a file with verified content
    <folder>/remote/.lock                                  locked while room is made

Every lock is an flock, so a killed process holds none. Exclusive locks are filelock's. Readers share theirs, for
which filelock has a SQLite database per lock only: 0.9 ms instead of 0.1 ms, and a connection that must not be
used after the fork of a loader process. `Lease` therefore calls flock itself.

When room is needed, the least recently used shards that no process reads are removed.
"""

import fcntl
import hashlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from src.datamodules.remote.store import CHUNK_BYTES, RemoteFile, RemoteFolder
from src.datamodules.shards.format import ShardError
from src.files import format_bytes, sha256_file, write_atomic

log = logging.getLogger(__name__)

#: Suffixes of the files beside the shards.
SIDE_SUFFIXES = (".lock", ".fetch", ".ok", ".part")
#: Fetches of a file whose content stays wrong.
CONTENT_ATTEMPTS = 3
#: Seconds to wait for other ranks to release a shard, and between two attempts.
WAIT_S, POLL_S = 300.0, 0.2


@dataclass(frozen=True)
class CacheFolder:
    """Folder of fetched shards with the most bytes that they may take."""

    folder: Path
    max_bytes: int


class Lease:
    """Shared lock of a fetched shard, which is not removed until the lease is released."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = _open_lock(path)
        fcntl.flock(self._handle, fcntl.LOCK_SH)

    def touch(self) -> None:
        """Note that the shard is in use now."""
        os.utime(self._handle)

    def release(self) -> None:
        """Allow the removal of the shard."""
        fcntl.flock(self._handle, fcntl.LOCK_UN)  # a forked process may hold the same descriptor
        os.close(self._handle)


class CacheFullError(Exception):
    """Every shard in the cache is in use, so there is no room for another."""


class ShardCache:
    """Shards of one remote folder in the cache.

    Args:
        cache: the folder and its limit.
        remote: the remote folder that they are fetched from.
    """

    def __init__(self, cache: CacheFolder, remote: RemoteFolder) -> None:
        self.cache, self.remote = cache, remote
        self.folder = cache.folder / "remote" / hashlib.sha256(remote.address.encode()).hexdigest()[:16]

    def acquire(self, file: RemoteFile) -> Lease:
        """Return a lease of the shard after fetching it if needed; other processes wait for the one that fetches.

        Raises:
            ShardError: the shard cannot be fetched, its content is wrong, or the cache is too small.
        """
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                return self.try_acquire(file)
            except CacheFullError as error:
                if time.monotonic() > deadline:
                    raise ShardError(
                        f"data.cache_gib={self.cache.max_bytes / 2**30:g} is too small: every shard in "
                        f"{self.cache.folder} is in use and {file.name} ({file.size} bytes) finds no room; raise it"
                    ) from error
                time.sleep(POLL_S)

    def try_acquire(self, file: RemoteFile) -> Lease:
        """Return a lease of the shard without waiting for room.

        Raises:
            CacheFullError: the shard is not in the cache and all others are in use.
            ShardError: the shard cannot be fetched, or its content is wrong.
        """
        path = self.folder / file.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lease = Lease(path)
            try:
                if not self._is_current(path, file):
                    with FileLock(_side_file(path, "fetch")):  # other processes wait here for the one that fetches
                        if not self._is_current(path, file) and not self._is_intact(path, file):
                            self._fetch(path, file)
                lease.touch()
            except BaseException:
                lease.release()
                raise
        except OSError as error:
            raise ShardError(
                f"data.cache={self.cache.folder}: {file.name} cannot be kept there ({error.strerror}); make room, "
                "or give another folder or a smaller data.cache_gib"
            ) from error
        return lease

    def _is_current(self, path: Path, file: RemoteFile) -> bool:
        """Return true if the shard exists and was not written since its content was verified."""
        try:
            complete = path.stat().st_size == file.size
            return complete and _side_file(path, "ok").read_text() == self._stamp(path, file)
        except FileNotFoundError:
            return False

    def _is_intact(self, path: Path, file: RemoteFile) -> bool:
        """Return true if the shard exists with the right content; remove it if the content is wrong."""
        if not path.exists():
            return False
        if path.stat().st_size != file.size or file.sha256 not in (None, sha256_file(path)):
            log.warning("%s was damaged in the cache; fetching it again", path)
            path.unlink()  # processes that have it open keep the old file
            return False
        write_atomic(_side_file(path, "ok"), self._stamp(path, file))
        return True

    def _stamp(self, path: Path, file: RemoteFile) -> str:
        """Return the content of the .ok file, which changes whenever the shard is written."""
        state = path.stat()
        return f"{file.sha256} {state.st_size} {state.st_mtime_ns} {state.st_ino}"

    def _fetch(self, path: Path, file: RemoteFile) -> None:
        part = path.with_name(f"{file.name}.{file.size}.part")
        log.info("fetching %s/%s (%s)", self.remote.address, file.name, format_bytes(file.size))
        for _ in range(CONTENT_ATTEMPTS):
            self._make_room(file)
            with part.open("ab") as out:
                while (position := out.tell()) < file.size:
                    out.write(self.remote.read(file, position, min(file.size, position + CHUNK_BYTES)))
                    out.flush()
            sha256 = sha256_file(part)
            if file.sha256 in (None, sha256) and part.stat().st_size == file.size:
                part.replace(path)
                write_atomic(_side_file(path, "ok"), self._stamp(path, file))
                return
            part.unlink()
            log.warning("%s/%s came with other content; fetching it again", self.remote.address, file.name)
        raise ShardError(
            f"{self.remote.address}/{file.name}: {file.size} bytes came with sha256 {sha256[:12]}, expected "
            f"{str(file.sha256)[:12]}, {CONTENT_ATTEMPTS} times in a row; the remote file is damaged or not the one "
            "that the manifest lists"
        )

    def _make_room(self, file: RemoteFile) -> None:
        """Remove the least recently used shards until `file` fits.

        Raises:
            CacheFullError: the remaining shards are in use.
        """
        root = self.cache.folder / "remote"
        with FileLock(root / ".lock"):
            own = self.folder / f"{file.name}.{file.size}.part"
            # Hidden files are temporary: another process's write_atomic, or NFS's names of removed files still open.
            files = [p for p in root.glob("*/*") if not p.name.startswith(".") and p != own]
            shards = [p for p in files if p.suffix not in SIDE_SUFFIXES]
            parts = [p for p in files if p.suffix == ".part"]
            # A part counts with the size that it will have, which its name states.
            sizes = {p: int(p.name.split(".")[-2]) if p in parts else p.stat().st_size for p in (*shards, *parts)}
            own.touch()  # from now on it counts for other processes
            for path in (*sorted(shards, key=lambda p: _side_file(p, "lock").stat().st_mtime_ns), *parts):
                if sum(sizes.values()) + file.size <= self.cache.max_bytes:
                    return
                if _remove_unless_in_use(path):
                    del sizes[path]
            if sum(sizes.values()) + file.size > self.cache.max_bytes:
                if not own.stat().st_size:
                    own.unlink()
                raise CacheFullError


def _side_file(path: Path, suffix: str) -> Path:
    """Return the file with `suffix` beside a shard, or beside the shard that a part belongs to."""
    name = path.name.rsplit(".", 2)[0] if path.suffix == ".part" else path.name
    return path.with_name(f"{name}.{suffix}")


def _remove_unless_in_use(path: Path) -> bool:
    """Remove a shard that no process reads, or a part that no process fetches; return true if it is removed."""
    if path.suffix == ".part":
        try:
            with FileLock(_side_file(path, "fetch"), timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return False
        return True
    handle = _open_lock(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _open_lock(path: Path) -> int:
    return os.open(_side_file(path, "lock"), os.O_RDWR | os.O_CREAT, 0o644)
