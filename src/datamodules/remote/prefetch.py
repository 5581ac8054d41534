"""Remote shards as slots: fetched into the cache when asked for, the next ones meanwhile in the background."""

import fnmatch
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from src.datamodules.remote.cache import Cache, Held, Shelf
from src.datamodules.remote.store import RemoteFile, Store
from src.datamodules.shards.format import (
    BLOCK_BYTES,
    FORMATS,
    HEADER_BYTES,
    MAGIC,
    NANOGPT,
    Format,
    ShardError,
    TokenShard,
)
from src.datamodules.shards.local import HEADERLESS, NAMES, Shards, by_number, in_splits, refuse_gaps, split_of

log = logging.getLogger(__name__)

#: Shards kept mapped by one process that reads them one after the other: a batch may span two.
MAPPED = 2


def open_remote(address: str, cache: Cache, *, streamed: bool) -> Shards:
    """The shards of a remote folder, file or pattern; nothing but their list is fetched yet.

    Args:
        address: of the folder, or with names of files as its last part.
        cache: where shards will be kept.
        streamed: whether they will be read one after the other.

    Raises:
        ShardError: nothing there, or not enough room for what will be asked.
    """
    headerless = address.startswith(HEADERLESS)
    folder, _, last = address.removeprefix(HEADERLESS).rstrip("/").rpartition("/")
    pattern = last if "*" in last or last.endswith(".bin") else None
    store = Store(folder if pattern else f"{folder}/{last}")
    manifest = None if headerless else store.manifest()
    listed = manifest is not None and pattern is None
    if manifest is not None:
        files = [RemoteFile(e.name, e.bytes, e.sha256) for e in manifest.shards]
    else:
        files = [file for file in store.files() if split_of(file.name, f"{store.address}/{file.name}")]
    files = sorted(
        (f for f in files if fnmatch.fnmatch(f.name, pattern or "*")), key=lambda f: by_number(f.name)
    )
    if not files:
        raise ShardError(f"data.path={address} holds no *val*.bin and *train*.bin; {NAMES}")
    if pattern is None:
        refuse_gaps([file.name for file in files], store.address)
    needed = sum(file.size for file in files)
    if streamed:
        needed = min(needed, (MAPPED + 1) * max(file.size for file in files))
    if needed > cache.limit:
        raise ShardError(
            f"data.cache_gib={cache.limit / 2**30:g} is too small for {needed} bytes of {address}"
            + ("" if streamed else ", all of which data.order reads at once; data.order=shard_shuffled streams")
            + f"; raise it to {needed / 2**30 + 0.01:.2f}"
        )
    desk = Desk(Shelf(cache, store), headerless, MAPPED if streamed else len(files))
    form = NANOGPT if headerless else FORMATS[MAGIC] if manifest else _format(store, files[0])
    slots = [RemoteShard(desk, file, form) for file in files]
    return in_splits(store.address.rpartition("/")[2], slots, manifest.hash() if manifest and listed else None)


def _format(store: Store, file: RemoteFile) -> Format:
    """The format that a file's header says; the others are held to it when they are opened."""
    if file.size < HEADER_BYTES:
        raise ShardError(f"{store.address}/{file.name}: {file.size} bytes, less than a header; make it again")
    magic = int(np.frombuffer(store.read(file, 0, HEADER_BYTES), dtype="<i4")[0])
    if magic not in FORMATS:
        raise ShardError(
            f"{store.address}/{file.name}: byte 0 holds {magic}, no magic number of a .bin shard; perhaps a "
            "headerless file of nanoGPT, to be declared by nanogpt: before its address"
        )
    return FORMATS[magic]


class Desk:
    """The shards that one process has mapped, and a thread that fetches those it will want next.

    Args:
        shelf: where they come from.
        headerless: whether they were declared to be nanoGPT's.
        mapped: how many are kept mapped.
    """

    def __init__(self, shelf: Shelf, headerless: bool, mapped: int) -> None:
        self.shelf, self.headerless, self.mapped = shelf, headerless, mapped
        self._take_over()

    def _take_over(self) -> None:
        """Begin as this process: a fork has neither the thread nor a usable lock of its parent's."""
        self._pid = os.getpid()
        self._open: OrderedDict[str, tuple[Held, TokenShard]] = OrderedDict()
        self._wanted: list[RemoteFile] = []
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def shard(self, file: RemoteFile, n_tokens: int) -> TokenShard:
        """The shard, mapped; the one used longest ago is let go."""
        if self._pid != os.getpid():
            self._take_over()
        if file.name not in self._open:
            while len(self._open) >= self.mapped:
                self._open.popitem(last=False)[1][0].let_go()
            held = self.shelf.hold(file)
            try:
                shard = TokenShard.open(held.path, headerless=self.headerless)
                if shard.n_tokens != n_tokens:
                    raise ShardError(
                        f"{held.path}: {shard.n_tokens} tokens, its size and format say {n_tokens}"
                    )
            except BaseException:
                held.let_go()
                raise
            self._open[file.name] = held, replace(shard, sha256=file.sha256)
        self._open.move_to_end(file.name)
        return self._open[file.name][1]

    def expect(self, file: RemoteFile, order: int) -> None:
        """Fetch it in the background once those before it are here."""
        if self._pid != os.getpid():
            self._take_over()
        with self._wake:
            if order == 0:
                self._wanted = []
            if order < max(self.mapped, self.shelf.cache.limit // max(1, file.size) - 1):
                self._wanted.append(file)
            if self._thread is None:
                self._thread = threading.Thread(target=self._fetch, daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self) -> None:
        """Let go of everything and end the thread; a later use begins again."""
        if self._pid != os.getpid():
            return
        with self._wake:
            thread, self._thread, self._wanted = self._thread, None, []
            self._wake.notify()
        if thread is not None:
            thread.join()
        while self._open:
            self._open.popitem()[1][0].let_go()

    def _fetch(self) -> None:
        while True:
            with self._wake:
                while not self._wanted and self._thread is threading.current_thread():
                    self._wake.wait()
                if self._thread is not threading.current_thread():
                    return
                file = self._wanted.pop(0)
            try:
                here = self.shelf.fetch(file)
            except ShardError as error:
                here = False
                log.debug("fetching ahead failed, the reader will say so: %s", error)
            if not here:
                with self._wake:
                    self._wanted = []


@dataclass(frozen=True)
class RemoteShard:
    """One remote shard."""

    desk: Desk
    file: RemoteFile
    format: Format

    @property
    def name(self) -> str:
        """The file's name."""
        return self.file.name

    @property
    def n_tokens(self) -> int:
        """By size; the header is held to it when the shard is opened."""
        return (self.file.size - self.format.header_bytes) // np.dtype(self.format.dtype).itemsize

    def shard(self) -> TokenShard:
        """Fetched where it is not here."""
        return self.desk.shard(self.file, self.n_tokens)

    def expect(self, order: int) -> None:
        """See `Desk.expect`."""
        self.desk.expect(self.file, order)

    def close(self) -> None:
        """See `Desk.close`."""
        self.desk.close()

    def stamp(self) -> dict[str, str | int]:
        """By the hash that the store tells, or else by blocks of content, read from afar."""
        file, digest = self.file, hashlib.sha256()
        if file.sha256 is not None:
            return {"name": file.name, "tokens": self.n_tokens, "sha256": file.sha256}
        for start in sorted({0, file.size // 2, max(0, file.size - BLOCK_BYTES)}):
            digest.update(self.desk.shelf.store.read(file, start, min(file.size, start + BLOCK_BYTES)))
        return {"name": file.name, "tokens": self.n_tokens, "sha256_sampled": digest.hexdigest()}
