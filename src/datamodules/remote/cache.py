"""A size-limited folder of fetched shards that the processes of a machine share.

    <folder>/remote/<hash of address>/<name>               a whole, verified shard
    <folder>/remote/<hash of address>/<name>.<size>.part   one on its way; goes on where it broke
    <folder>/remote/<hash of address>/<name>.fetch         locked by the process that fetches it
    <folder>/remote/<hash of address>/<name>.lock          locked, shared, by those who read it; touched by use
    <folder>/remote/<hash of address>/<name>.ok            hash, size, time of a file whose content was verified

Locks are the kernel's (flock), so a killed process holds none. Where room is needed the least recently used
shard goes, unless somebody holds it.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from src.datamodules.remote.store import CHUNK_BYTES, RemoteFile, Store
from src.datamodules.shards.format import ShardError
from src.files import sha256_file, write_atomic

log = logging.getLogger(__name__)

#: Suffixes of what lies beside the shards.
BESIDE = (".lock", ".fetch", ".ok", ".part")
#: Fetches of a file whose content stays wrong.
CONTENT_ATTEMPTS = 3
#: How long to wait for other ranks to let go of a shard.
PATIENCE_S, POLL_S = 300.0, 0.2


@dataclass(frozen=True)
class Cache:
    """Where fetched shards are kept, and how many bytes of them."""

    folder: Path
    limit: int

    def of(self, store: Store) -> Path:
        """The folder of one store's shards."""
        key = hashlib.sha256(store.address.encode()).hexdigest()[:16]
        return self.folder / "remote" / key


class Held:
    """A fetched shard, kept from being removed until let go."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle

    def let_go(self) -> None:
        """Allow its removal."""
        os.close(self._handle)


class NoRoomError(Exception):
    """Everything in the cache is in use."""


class Shelf:
    """One store's shards in the cache.

    Args:
        cache: the folder and its limit.
        store: what they are fetched from.
    """

    def __init__(self, cache: Cache, store: Store) -> None:
        self.cache, self.store = cache, store
        self.folder = cache.of(store)

    def hold(self, file: RemoteFile) -> Held:
        """The shard, fetched unless it is here; one process fetches, the others wait for it.

        Raises:
            ShardError: it cannot be fetched, stays other than it should be, or the cache is too small.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._held(file)
            except NoRoomError as error:
                if time.monotonic() > deadline:
                    raise ShardError(
                        f"data.cache_gib={self.cache.limit / 2**30:g} is too small: every shard in "
                        f"{self.cache.folder} is in use and {file.name} ({file.size} bytes) finds no room; raise it"
                    ) from error
                time.sleep(POLL_S)

    def fetch(self, file: RemoteFile) -> bool:
        """Have the shard here if there is room for it; whether it is."""
        try:
            self._held(file).let_go()
        except NoRoomError:
            return False
        return True

    def _held(self, file: RemoteFile) -> Held:
        path = self.folder / file.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = Held(path, _lock(_beside(path, "lock"), fcntl.LOCK_SH))
            try:
                if not self._known(path, file):
                    with _locked(_beside(path, "fetch")):  # others wait here while one fetches
                        if not self._known(path, file) and not self._verified(path, file):
                            self._fetch(path, file)
                os.utime(_beside(path, "lock"))
            except BaseException:
                held.let_go()
                raise
        except OSError as error:
            raise ShardError(
                f"data.cache={self.cache.folder}: {file.name} cannot be kept there ({error.strerror}); make room, "
                "or give another folder or a smaller data.cache_gib"
            ) from error
        return held

    def _known(self, path: Path, file: RemoteFile) -> bool:
        """Whether the shard is here and nobody wrote it since its content was verified."""
        try:
            whole = path.stat().st_size == file.size
            return whole and _beside(path, "ok").read_text() == self._stamp(path, file)
        except FileNotFoundError:
            return False

    def _verified(self, path: Path, file: RemoteFile) -> bool:
        """Whether the shard is here and its content right; one that is not is removed."""
        if not path.exists():
            return False
        if path.stat().st_size != file.size or file.sha256 not in (None, sha256_file(path)):
            log.warning("%s was damaged in the cache; fetching it again", path)
            path.unlink()  # whoever has it mapped keeps what he has
            return False
        write_atomic(_beside(path, "ok"), self._stamp(path, file))
        return True

    def _stamp(self, path: Path, file: RemoteFile) -> str:
        """What a verified file's state is told by."""
        state = path.stat()
        return f"{file.sha256} {state.st_size} {state.st_mtime_ns} {state.st_ino}"

    def _fetch(self, path: Path, file: RemoteFile) -> None:
        part = path.with_name(f"{file.name}.{file.size}.part")
        log.info("fetching %s/%s (%d MB)", self.store.address, file.name, file.size // 10**6)
        for _ in range(CONTENT_ATTEMPTS):
            self._make_room(file)
            with part.open("ab") as out:
                while (at := out.tell()) < file.size:
                    out.write(self.store.read(file, at, min(file.size, at + CHUNK_BYTES)))
                    out.flush()
            found = sha256_file(part)
            if file.sha256 in (None, found) and part.stat().st_size == file.size:
                part.replace(path)
                write_atomic(_beside(path, "ok"), self._stamp(path, file))
                return
            part.unlink()
            log.warning("%s/%s came with other content; fetching it again", self.store.address, file.name)
        raise ShardError(
            f"{self.store.address}/{file.name}: {file.size} bytes came with sha256 {found[:12]}, expected "
            f"{str(file.sha256)[:12]}, {CONTENT_ATTEMPTS} times in a row; the store's copy is damaged or not the "
            "manifest's"
        )

    def _make_room(self, file: RemoteFile) -> None:
        """Remove what was used longest ago until `file` fits.

        Raises:
            NoRoomError: the rest is in use.
        """
        root = self.cache.folder / "remote"
        with _locked(root / ".lock"):
            shards = [p for p in root.glob("*/*") if p.suffix not in BESIDE]
            own = self.folder / f"{file.name}.{file.size}.part"
            parts = [p for p in root.glob("*/*.part") if p != own]
            sizes = {
                p: int(p.name.split(".")[-2]) if p in parts else p.stat().st_size for p in (*shards, *parts)
            }
            own.touch()  # counts from now on
            for path in (*sorted(shards, key=lambda p: _beside(p, "lock").stat().st_mtime_ns), *parts):
                if sum(sizes.values()) + file.size <= self.cache.limit:
                    return
                if _removed(path):
                    del sizes[path]
            if sum(sizes.values()) + file.size > self.cache.limit:
                if not own.stat().st_size:
                    own.unlink()
                raise NoRoomError


def _beside(path: Path, lock: str) -> Path:
    """The file whose lock speaks for a shard, or for one on its way."""
    name = path.name.rsplit(".", 2)[0] if path.suffix == ".part" else path.name
    return path.with_name(f"{name}.{lock}")


def _removed(path: Path) -> bool:
    """Remove a shard, or a part of one, unless somebody holds it."""
    try:
        handle = _lock(
            _beside(path, "fetch" if path.suffix == ".part" else "lock"), fcntl.LOCK_EX | fcntl.LOCK_NB
        )
    except BlockingIOError:
        return False
    path.unlink(missing_ok=True)
    os.close(handle)
    return True


def _lock(path: Path, how: int) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, how)
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)
