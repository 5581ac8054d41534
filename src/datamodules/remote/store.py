"""Remote folder of shards, read in ranges through fsspec with retries.

A range that fails is requested again after 1, 2, 4, ... seconds, up to `ATTEMPTS` times; the ranges before it are
kept, so a transfer continues where it broke.
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
FIRST_WAIT_S, MAX_WAIT_S = 1.0, 30.0
#: Seconds without a byte after which an HTTP transfer counts as broken.
SILENCE_S = 30.0
CHUNK_BYTES = 8 << 20
#: Errors that another attempt does not resolve.
PERMANENT_ERRORS = (FileNotFoundError, PermissionError, NotImplementedError, ImportError, IsADirectoryError)
#: The same by name, of clients that are imported where an address needs them only (botocore, huggingface_hub).
PERMANENT_NAMES = (
    *("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "UnauthorizedSSOTokenError"),
    "OfflineModeIsEnabled",
)


def is_remote(address: str) -> bool:
    """Return true for an address with a protocol, false for a local path."""
    return "://" in address.removeprefix(HEADERLESS)


@dataclass(frozen=True)
class RemoteFile:
    """File of a remote folder: its size in bytes, and its hash if a manifest or the hub states one."""

    name: str
    size: int
    sha256: str | None


class RemoteFolder:
    """Folder that fsspec can open.

    Args:
        address: hf://datasets/<owner>/<name>, s3://, gs://, https://, ...
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None

    def _fs(self) -> tuple[Any, str]:
        """Return the file system and the folder's path in it; each process opens its own, forks share none."""
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

    def read_manifest(self) -> Manifest | None:
        """Return the folder's manifest, or None if it has none."""
        raw = self.read_whole(manifest.NAME)
        return None if raw is None else Manifest.parse(raw, f"{self.address}/{manifest.NAME}")

    def read_whole(self, name: str) -> bytes | None:
        """Return the content of a small file, or None if the folder has none of the name."""

        def read() -> bytes | None:
            fs, root = self._fs()
            try:
                return bytes(fs.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

        return self._retry(read, f"{self.address}/{name}")

    def list_files(self) -> list[RemoteFile]:
        """Return the .bin files of the folder, with the hashes that the Hugging Face hub states."""

        def read() -> list[RemoteFile]:
            fs, root = self._fs()
            files = []
            for entry in fs.ls(root, detail=True):
                name = PurePosixPath(entry["name"]).name
                if name.endswith(".bin"):
                    size = entry["size"] if entry.get("size") is not None else fs.info(entry["name"])["size"]
                    lfs = entry.get("lfs") or {}
                    files.append(RemoteFile(name, int(size), lfs.get("sha256")))
            return files

        return self._retry(read, self.address)

    def read(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Return bytes `start` to `end - 1` of a file.

        Raises:
            ShardError: every attempt failed; names the position.
        """

        def read_range() -> bytes:
            fs, root = self._fs()
            path = f"{root}/{file.name}"
            if getattr(fs, "async_impl", False):
                raw = bytes(fs.cat_file(path, start=start, end=end))
            else:
                with fs.open(path, "rb", cache_type="none") as opened:
                    opened.seek(start)
                    raw = bytes(opened.read(end - start))
            if len(raw) == file.size > end - start:
                raw = raw[start:end]  # a server without ranges sends the whole file
            if len(raw) != end - start:
                raise OSError(f"{len(raw)} bytes came for {end - start}")
            return raw

        return self._retry(read_range, f"{self.address}/{file.name}", f" at byte {start} of {file.size}")

    def _retry(self, attempt: Callable[[], T], what: str, where: str = "") -> T:
        wait = FIRST_WAIT_S
        for number in range(1, ATTEMPTS + 1):
            try:
                return attempt()
            except ShardError:
                raise
            except Exception as error:  # every fsspec implementation has errors of its own
                if isinstance(error, PERMANENT_ERRORS) or type(error).__name__ in PERMANENT_NAMES:
                    raise ShardError(
                        f"{what} cannot be read ({_describe(error)}); check the address and its access"
                    ) from error
                if number == ATTEMPTS:
                    kept = ", then resume: fetched shards are kept" if where else ""  # a list or manifest comes first
                    raise ShardError(
                        f"{what} broke off{where} ({_describe(error)}), {ATTEMPTS} times in a row; "
                        f"check the network{kept}"
                    ) from error
                log.warning("%s broke off%s (%s); trying again in %g s", what, where, _describe(error), wait)
                time.sleep(wait)
                wait = min(2 * wait, MAX_WAIT_S)
        raise AssertionError("the last attempt returns or raises")


def _describe(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return f"no byte for {SILENCE_S:g} s"
    return f"{type(error).__name__}: {one_line(error)[:200]}"
