"""A folder of shards on a remote store, read by ranges through fsspec, patiently.

A range that fails is asked for again after 1, 2, 4, ... seconds, at most `ATTEMPTS` times in a row; what
came before it is kept, so a transfer goes on where it broke.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from src.datamodules.shards import manifest
from src.datamodules.shards.format import ShardError
from src.datamodules.shards.local import HEADERLESS
from src.datamodules.shards.manifest import Manifest
from src.errors import one_line

log = logging.getLogger(__name__)

T = TypeVar("T")
ATTEMPTS = 6
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
#: Seconds without a byte after which an HTTP transfer counts as broken.
SILENCE_S = 30.0
CHUNK_BYTES = 8 << 20
#: Errors that another attempt does not mend.
FINAL = (FileNotFoundError, PermissionError, NotImplementedError, ImportError, IsADirectoryError)


def is_remote(address: str) -> bool:
    """Whether an address names a store rather than a local path."""
    return "://" in address.removeprefix(HEADERLESS)


@dataclass(frozen=True)
class RemoteFile:
    """A file of the store: its size, and its hash where somebody says it."""

    name: str
    size: int
    sha256: str | None


class Store:
    """A remote folder.

    Args:
        address: any that fsspec knows: hf://datasets/<owner>/<name>, s3://, gs://, https://, ...
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None

    def _fs(self) -> tuple[Any, str]:
        """The file system and the folder's path in it; each process opens its own (forks share none)."""
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            options: dict[str, Any] = {}
            if self.address.startswith(("http://", "https://")):
                import aiohttp

                timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
                options = {"client_kwargs": {"timeout": timeout}}
            try:
                fs, root = fsspec.core.url_to_fs(self.address, **options)
            except (ValueError, ImportError) as error:
                raise ShardError(
                    f"data.path={self.address}: {one_line(error)}; give an address that fsspec can open here"
                ) from error
            self._opened = os.getpid(), fs, root.rstrip("/")
        return self._opened[1], self._opened[2]

    def manifest(self) -> Manifest | None:
        """The folder's manifest, where it has one."""
        where = f"{self.address}/{manifest.NAME}"

        def read() -> bytes | None:
            fs, root = self._fs()
            try:
                return bytes(fs.cat_file(f"{root}/{manifest.NAME}"))
            except FileNotFoundError:
                return None

        raw = self._patiently(read, where)
        return None if raw is None else Manifest.parse(raw, where)

    def files(self) -> list[RemoteFile]:
        """The .bin files of the folder, with the hashes that the Hugging Face hub tells."""

        def listed() -> list[RemoteFile]:
            fs, root = self._fs()
            found = []
            for entry in fs.ls(root, detail=True):
                name = PurePosixPath(entry["name"]).name
                if name.endswith(".bin"):
                    size = entry["size"] if entry.get("size") is not None else fs.info(entry["name"])["size"]
                    told = entry.get("lfs") or {}
                    found.append(RemoteFile(name, int(size), told.get("sha256")))
            return found

        return self._patiently(listed, self.address)

    def read(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Bytes start to end - 1 of a file.

        Raises:
            ShardError: it stays broken; says where.
        """

        def ranged() -> bytes:
            fs, root = self._fs()
            path = f"{root}/{file.name}"
            if getattr(fs, "async_impl", False):
                raw = bytes(fs.cat_file(path, start=start, end=end))
            else:
                with fs.open(path, "rb", cache_type="none") as opened:
                    opened.seek(start)
                    raw = bytes(opened.read(end - start))
            if len(raw) == file.size > end - start:
                raw = raw[start:end]  # a server that knows no ranges gives all of it
            if len(raw) != end - start:
                raise OSError(f"{len(raw)} bytes came for {end - start}")
            return raw

        return self._patiently(ranged, f"{self.address}/{file.name}", f" at byte {start} of {file.size}")

    def _patiently(self, attempt: Callable[[], T], what: str, where: str = "") -> T:
        wait = FIRST_WAIT_S
        for tried in range(1, ATTEMPTS + 1):
            try:
                return attempt()
            except ShardError:
                raise
            except FINAL as error:
                raise ShardError(
                    f"{what} cannot be read ({_named(error)}); check the address and its access"
                ) from error
            except Exception as error:  # every store has errors of its own
                if tried == ATTEMPTS:
                    raise ShardError(
                        f"{what} broke off{where} ({_named(error)}), {ATTEMPTS} times in a row; check the network, "
                        "then resume: what was fetched is kept"
                    ) from error
                log.warning("%s broke off%s (%s); again in %g s", what, where, _named(error), wait)
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
        raise AssertionError("the last attempt returns or raises")


def _named(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return f"nothing came for {SILENCE_S:g} s"
    return f"{type(error).__name__}: {one_line(error)[:200]}"
