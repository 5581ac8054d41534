"""Shards in an S3 server on loopback: the batches of local ones, faults of the server, and access that is missing.

Needs moto and s3fs (pip install '.[s3]' 'moto[s3,server]').
"""

import importlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from src.datamodules.base import BatchSpec
from src.datamodules.fineweb import FineWebDataModule
from src.datamodules.prepare.prepare import PrepareKeys, prepare
from src.datamodules.remote import store
from src.datamodules.shards.format import ShardError
from tests.datamodules.support import DATA_KEYS

pytest.importorskip("moto.server", reason="needs moto[s3,server]")
pytest.importorskip("s3fs", reason="needs s3fs (pip install '.[s3]')")
pytestmark = pytest.mark.filterwarnings("default")  # of moto, botocore and aiohttp

ADDRESS = "s3://bucket/shards"


class S3Server:
    """Server of moto on a fixed port; the objects outlive a stop."""

    def __init__(self) -> None:
        self._class = importlib.import_module("moto.server").ThreadedMotoServer
        self._server = self._class(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    def start_again(self, after_s: float) -> threading.Thread:
        """Start on the same port after a while."""

        def start() -> None:
            time.sleep(after_s)
            self._server = self._class(ip_address="127.0.0.1", port=self.port, verbose=False)
            self._server.start()

        thread = threading.Thread(target=start)
        thread.start()
        return thread


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text(" ".join(str(n * 7919 % 99991) for n in range(9000)))
    prepare(PrepareKeys(str(tmp_path / "a.txt"), str(tmp_path / "out"), 1, 3000, 1500))
    return tmp_path / "out"


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.2)
    found = S3Server()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{found.port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    remote = new_client()
    remote.makedirs("bucket", exist_ok=True)  # moto keeps its objects as long as this process lives
    remote.put(f"{folder}/", "bucket/shards/", recursive=True)
    new_client()
    yield found
    found.stop()
    new_client()


def new_client() -> Any:
    """Return a client with the credentials of the environment; fsspec keeps earlier ones."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return fsspec.filesystem("s3")


def module(path: str, cache: Path) -> FineWebDataModule:
    values = {**DATA_KEYS, "path": path, "cache": str(cache), "order": "shard_shuffled"}
    made = FineWebDataModule(BatchSpec(16, 50304, 1, 20), **values)
    made.setup()
    return made


def batches(data: FineWebDataModule, first: int = 0, end: int = 20) -> list[Any]:
    return [data.train_batch(step, 0, 1).int().tolist() for step in range(first, end)]


def test_a_server_that_dies_and_returns_costs_no_token(folder: Path, server: S3Server, tmp_path: Path) -> None:
    want = batches(module(str(folder), tmp_path))
    far = module(ADDRESS, tmp_path / "cache")
    got = batches(far, 0, 2)
    server.stop()
    again = server.start_again(after_s=2.0)
    got += batches(far, 2)
    again.join()
    far.teardown()
    assert got == want


def test_a_damaged_object_is_rejected_with_both_hashes(server: S3Server, tmp_path: Path) -> None:
    remote = fsspec.filesystem("s3")
    raw = remote.cat_file("bucket/shards/fineweb_val_000000.bin")
    remote.pipe("bucket/shards/fineweb_val_000000.bin", raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(ShardError, match=r"fineweb_val_000000\.bin: 4024 bytes came with sha256 \w+, expected \w+"):
        module(ADDRESS, tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.bin")) == []


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "none"])
def test_missing_access_is_one_sentence_at_once(
    code: str, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError
    from s3fs import S3FileSystem

    if code == "none":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
    else:  # moto accepts every key, so the answer of a real server is put in its place
        answer = {"Error": {"Code": code, "Message": "The provided token has expired."}}

        async def refuse(self: Any, method: str, *args: Any, **keys: Any) -> None:
            from s3fs.errors import translate_boto_error

            raise translate_boto_error(ClientError(answer, method))

        monkeypatch.setattr(S3FileSystem, "_call_s3", refuse)
    new_client()
    monkeypatch.setattr(store.time, "sleep", lambda s: pytest.fail("another attempt does not help"))
    with pytest.raises(ShardError, match=r"s3://bucket/shards/manifest\.json cannot be read \(.*access"):
        module(ADDRESS, tmp_path / "cache")
