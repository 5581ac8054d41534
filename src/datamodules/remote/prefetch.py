"""Remote shards: fetched into the cache when they are read, the next ones ahead of time by a background thread."""

import fnmatch
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from src.datamodules.remote.cache import CacheFolder, CacheFullError, Lease, ShardCache
from src.datamodules.remote.store import RemoteFile, RemoteFolder
from src.datamodules.shards.format import (
    BLOCK_BYTES,
    HEADER_BYTES,
    NANOGPT,
    Format,
    ShardError,
    ShardSlot,
    TokenShard,
    check_header,
)
from src.datamodules.shards.local import (
    HEADERLESS,
    NAMES_HINT,
    Shards,
    check_gaps,
    number_key,
    split_by_name,
    split_of,
)
from src.datamodules.tokenization.base import FILE

log = logging.getLogger(__name__)

#: Shards that a process keeps open if it reads one after the other: a batch may span two.
N_OPEN = 2


def open_remote(address: str, cache: CacheFolder, *, streamed: bool) -> Shards:
    """Return the shards of a remote folder, file or pattern; so far only their list is fetched.

    Args:
        address: of the folder, or with a file name or pattern as its last part.
        cache: the folder into which shards are fetched.
        streamed: true if the shards are read one after the other.

    Raises:
        ShardError: there is no shard, or the cache is too small for those that are read at the same time.
    """
    headerless = address.startswith(HEADERLESS)
    folder, _, last = address.removeprefix(HEADERLESS).rstrip("/").rpartition("/")
    pattern = last if "*" in last or last.endswith(".bin") else None
    remote = RemoteFolder(folder if pattern else f"{folder}/{last}")
    # A manifest names the files with their hashes; a folder without one is listed.
    manifest = None if headerless else remote.read_manifest()
    if manifest is not None:
        files = [RemoteFile(e.name, e.bytes, e.sha256) for e in manifest.shards]
    else:
        files = [f for f in remote.list_files() if split_of(f.name, f"{remote.address}/{f.name}")]
    files = sorted((f for f in files if fnmatch.fnmatch(f.name, pattern or "*")), key=lambda f: number_key(f.name))
    if not files:
        raise ShardError(f"data.path={address} holds no *val*.bin and *train*.bin; {NAMES_HINT}")
    if pattern is None:
        check_gaps([file.name for file in files], remote.address)
    _check_cache_size(address, files, cache, streamed=streamed)
    format_ = NANOGPT if headerless else manifest.shard_format if manifest else _read_format(remote, files[0])
    n_open = N_OPEN if streamed else len(files)
    prefetcher = Prefetcher(ShardCache(cache, remote), headerless, n_open, format_.end_of_text if manifest else None)
    # Opening a shard compares the tokens by its size with its header.
    n_bytes = np.dtype(format_.dtype).itemsize
    slots = [RemoteShard(file.name, (file.size - format_.header_bytes) // n_bytes, prefetcher, file) for file in files]
    whole_manifest = manifest if pattern is None else None
    manifest_hash = whole_manifest.hash() if whole_manifest else None
    found = split_by_name(remote.address.rpartition("/")[2], slots, manifest_hash)
    if manifest is None:
        return found
    raw = remote.read_whole(FILE) if "sha256" in manifest.tokenizer else None
    text = None if raw is None else raw.decode("utf-8", errors="replace")
    return replace(found, tokenizer=manifest.tokenizer, tokenizer_text=text)


def _check_cache_size(address: str, files: list[RemoteFile], cache: CacheFolder, *, streamed: bool) -> None:
    needed = sum(file.size for file in files)
    if streamed:
        needed = min(needed, (N_OPEN + 1) * max(file.size for file in files))
    if needed > cache.max_bytes:
        raise ShardError(
            f"data.cache_gib={cache.max_bytes / 2**30:g} is too small for {needed} bytes of {address}"
            + ("" if streamed else ", all of which data.order reads at once; data.order=shard_shuffled streams")
            + f"; raise it to {needed / 2**30 + 0.01:.2f}"
        )


def _read_format(remote: RemoteFolder, file: RemoteFile) -> Format:
    """Return the format that a file's header states; the other files must have the same when they are opened."""
    n_bytes = min(file.size, HEADER_BYTES) // 4 * 4
    header = np.frombuffer(remote.read(file, 0, n_bytes), dtype="<i4")
    return check_header(f"{remote.address}/{file.name}", file.size, header)[0]


class Prefetcher:
    """Shards that a process has open, and a thread that fetches the ones it reads next.

    Args:
        cache: the cache that they are fetched into.
        headerless: true for nanoGPT's files.
        n_open: shards that are kept open.
        end_of_text: id of end of text; None for the format's own.
    """

    def __init__(self, cache: ShardCache, headerless: bool, n_open: int, end_of_text: int | None = None) -> None:
        self.cache, self.headerless, self.n_open, self.end_of_text = cache, headerless, n_open, end_of_text
        self._reset()

    def _reset(self) -> None:
        """Start without shards and thread; a forked process has neither its parent's thread nor its locks."""
        self._pid = os.getpid()
        self._open: OrderedDict[str, tuple[Lease, TokenShard]] = OrderedDict()
        self._queue: list[RemoteFile] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def open(self, file: RemoteFile, n_tokens: int) -> TokenShard:
        """Return the open shard, fetched if needed; the least recently used one is released."""
        if self._pid != os.getpid():
            self._reset()
        if file.name not in self._open:
            while len(self._open) >= self.n_open:
                self._open.popitem(last=False)[1][0].release()
            lease = self.cache.acquire(file)
            try:
                shard = TokenShard.open(lease.path, headerless=self.headerless, end_of_text=self.end_of_text)
                if shard.n_tokens != n_tokens:
                    raise ShardError(
                        f"{lease.path}: {shard.n_tokens} tokens, expected {n_tokens} from its size and format"
                    )
            except BaseException:
                lease.release()
                raise
            self._open[file.name] = lease, replace(shard, sha256=file.sha256)
        self._open.move_to_end(file.name)
        return self._open[file.name][1]

    def prefetch(self, file: RemoteFile, order: int) -> None:
        """Queue a shard for the background thread as number `order` of those that are read next.

        Number 0 starts a new queue. Shards for which the cache has no room beside the open ones are left out.
        """
        if self._pid != os.getpid():
            self._reset()
        with self._changed:
            if order == 0:
                self._queue = []
            if order < max(self.n_open, self.cache.cache.max_bytes // max(1, file.size) - 1):
                self._queue.append(file)
            if self._thread is None:
                self._thread = threading.Thread(target=self._fetch_queue, daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Release all shards and end the thread; a later use starts again."""
        if self._pid != os.getpid():
            return
        with self._changed:
            thread, self._thread, self._queue = self._thread, None, []
            self._changed.notify()
        if thread is not None:
            thread.join()
        while self._open:
            self._open.popitem()[1][0].release()

    def _fetch_queue(self) -> None:
        """Fetch what is queued until `close`; after a failure wait for the next queue."""
        while True:
            with self._changed:
                while not self._queue and self._thread is threading.current_thread():
                    self._changed.wait()
                if self._thread is not threading.current_thread():
                    return
                file = self._queue.pop(0)
            try:
                self.cache.try_acquire(file).release()
            except (ShardError, CacheFullError) as error:
                log.debug("fetching ahead failed, reading will report it: %r", error)
                with self._changed:
                    self._queue = []


@dataclass(frozen=True)
class RemoteShard(ShardSlot):
    """Shard of a remote folder."""

    prefetcher: Prefetcher
    file: RemoteFile

    def load(self) -> TokenShard:
        return self.prefetcher.open(self.file, self.n_tokens)

    def prefetch(self, order: int) -> None:
        self.prefetcher.prefetch(self.file, order)

    def close(self) -> None:  # all shards of the remote folder
        self.prefetcher.close()

    def stamp(self) -> dict[str, str | int]:
        file, digest = self.file, hashlib.sha256()
        if file.sha256 is not None:
            return {"name": file.name, "tokens": self.n_tokens, "sha256": file.sha256}
        # Without a stated hash, one of blocks that are read from the remote file.
        for start in sorted({0, file.size // 2, max(0, file.size - BLOCK_BYTES)}):
            digest.update(self.prefetcher.cache.remote.read(file, start, min(file.size, start + BLOCK_BYTES)))
        return {"name": file.name, "tokens": self.n_tokens, "sha256_sampled": digest.hexdigest()}
