"""Remote shards: fetched once, right or rejected on any connection, within the limit of the cache.

Covers `prefetch.py` too.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled

from src.datamodules.base import BatchSpec
from src.datamodules.fineweb import FineWebDataModule
from src.datamodules.prepare.prepare import PrepareKeys, prepare
from src.datamodules.remote import cache as cache_module
from src.datamodules.remote import store as remote
from src.datamodules.remote.cache import CacheFolder, CacheFullError, ShardCache
from src.datamodules.remote.store import RemoteFolder
from src.datamodules.shards.format import ShardError
from tests.datamodules.bad_server import BadServer, serving
from tests.datamodules.support import DATA_KEYS
from tests.ranks import FORKS
from tests.runs import make_shards

SHARD = 1024 + 2 * 3000
MADE: list[FineWebDataModule] = []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    (folder / "a.txt").write_text(" ".join(str(n) for n in rng.integers(0, 10**6, 9000)))
    prepare(PrepareKeys(str(folder / "a.txt"), str(folder / "out"), 1, 3000, 1500))
    return folder / "out"


@pytest.fixture
def server(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadServer]:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(remote, "MAX_WAIT_S", 0.02)
    monkeypatch.setattr(remote, "SILENCE_S", 0.5)
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(cache_module, "CHUNK_BYTES", 1000)
    with serving(prepared) as found:
        yield found
        fsspec.get_filesystem_class("http").clear_instance_cache()


def module(path: Any, cache: Path, *, steps: int = 20, **keys: Any) -> FineWebDataModule:
    values = {**DATA_KEYS, "path": path, "cache": str(cache), "order": "shard_shuffled", **keys}
    made = FineWebDataModule(BatchSpec(16, 50304, 1, steps), **values)
    MADE.append(made)
    made.setup()
    return made


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().teardown()


def batches(data: FineWebDataModule, steps: int = 20) -> list[Any]:
    return [data.train_batch(step, 0, 1).int().tolist() for step in range(steps)]


def test_remote_shards_give_the_batches_and_identity_of_local_ones(
    prepared: Path, server: BadServer, tmp_path: Path
) -> None:
    local, far = module(str(prepared), tmp_path), module(server.address, tmp_path)
    assert batches(far) == batches(local)
    assert torch.equal(next(far.val_batches(0, 1)).int(), next(local.val_batches(0, 1)).int())
    a, b = local.identity(), far.identity()
    assert a["hash"] == b["hash"]
    assert a["manifest"] == b["manifest"] != [None]


@pytest.mark.parametrize("fault", ["drop", "cut", "corrupt", "error", "whole", "slow"])
def test_a_server_that_misbehaves_now_and_then_changes_no_token(
    fault: str, prepared: Path, server: BadServer, tmp_path: Path
) -> None:
    server.faults = ["", fault, "", "", fault, fault] if fault != "slow" else ["", fault]
    assert batches(module(server.address, tmp_path), 3) == batches(module(str(prepared), tmp_path), 3)
    assert server.faults == []


def test_a_broken_transfer_continues_where_it_broke(server: BadServer, tmp_path: Path) -> None:
    server.faults = ["", "", "drop"]
    module(server.address, tmp_path)
    assert server.sent["fineweb_val_000000.bin"] == 1024 + 2 * 1500 + 1000  # one chunk twice


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("drop", r"fineweb_val_000000\.bin broke off at byte 0 of 4024 .*6 times in a row; check the network"),
        ("error", r"broke off at byte 0 of 4024 .*500"),
        ("cut", r"broke off at byte 0 of 4024 \(OSError: 500 bytes came for 1000\)"),
    ],
)
def test_a_transfer_that_stays_broken_is_named(fault: str, words: str, server: BadServer, tmp_path: Path) -> None:
    server.always = fault
    with pytest.raises(ShardError, match=words):
        module(server.address, tmp_path)


def test_content_that_stays_wrong_is_rejected_with_both_hashes(server: BadServer, tmp_path: Path) -> None:
    server.always = "corrupt"
    words = r"4024 bytes came with sha256 \w{12}, expected \w{12}, 3 times in a row"
    with pytest.raises(ShardError, match=words):
        module(server.address, tmp_path)
    assert list(tmp_path.rglob("*.bin")) == []


def test_a_damaged_copy_in_the_cache_is_fetched_again(prepared: Path, server: BadServer, tmp_path: Path) -> None:
    want = batches(module(server.address, tmp_path))
    for path in tmp_path.rglob("*.bin"):
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    assert batches(module(server.address, tmp_path)) == want


def test_a_verified_copy_is_not_hashed_again(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches(module(server.address, tmp_path), 2)
    MADE[0].teardown()
    hashed = []
    monkeypatch.setattr(cache_module, "sha256_file", lambda path: hashed.append(path.name) or "")
    module(server.address, tmp_path)
    assert hashed == []


def test_nothing_is_fetched_twice(server: BadServer, prepared: Path, tmp_path: Path) -> None:
    for _ in range(2):
        data = module(server.address, tmp_path)
        batches(data)
        data.teardown()
        for name, n in server.sent.items():
            if name.endswith(".bin"):
                assert n == (prepared / name).stat().st_size


def in_cache(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.suffix in (".bin", ".part") else 0
        except FileNotFoundError:
            continue
    return total


def test_the_cache_keeps_to_its_limit(prepared: Path, server: BadServer, tmp_path: Path) -> None:
    limit = 3 * SHARD + 100
    data = module(server.address, tmp_path, cache_gib=limit / 2**30)
    n = len(data.train_windows[0]) // 8
    want = batches(module(str(prepared), tmp_path), 2 * n)
    for step in range(2 * n):
        assert data.train_batch(step, 0, 1).int().tolist() == want[step]
        assert in_cache(tmp_path) <= limit
    assert sum(n for name, n in server.sent.items() if name.endswith(".bin")) > limit


def test_the_next_shard_is_fetched_in_the_background(server: BadServer, tmp_path: Path) -> None:
    data = module(server.address, tmp_path, cache_gib=1.0)
    data.train_batch(0, 0, 1)
    deadline = time.monotonic() + 20
    while len(list(tmp_path.rglob("*.bin"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"cache_gib": 2 * SHARD / 2**30}, r"data\.cache_gib=\S+ is too small for 21072 bytes .*raise it to"),
        ({"cache_gib": 4 * SHARD / 2**30, "order": "shuffled"}, r"all of which data\.order reads at once"),
    ],
)
def test_a_cache_that_is_too_small_is_rejected(
    keys: dict[str, Any], words: str, server: BadServer, tmp_path: Path
) -> None:
    with pytest.raises(ShardError, match=words):
        module(server.address, tmp_path, **keys)


def test_a_leased_shard_is_not_removed(server: BadServer, tmp_path: Path) -> None:
    store = RemoteFolder(server.address)
    manifest = store.read_manifest()
    assert manifest is not None
    files = [remote.RemoteFile(e.name, e.bytes, e.sha256) for e in manifest.shards]
    shelf = ShardCache(CacheFolder(tmp_path, 2 * SHARD), store)
    held = [shelf.acquire(file) for file in files[1:3]]
    with pytest.raises(CacheFullError):
        shelf.try_acquire(files[3])
    held[0].release()
    shelf.acquire(files[3]).release()
    assert not (shelf.folder / files[1].name).exists()
    assert (shelf.folder / files[2].name).exists()
    held[1].release()


def test_temporary_files_of_other_processes_are_neither_counted_nor_removed(server: BadServer, tmp_path: Path) -> None:
    store = RemoteFolder(server.address)
    manifest = store.read_manifest()
    assert manifest is not None
    first, second = (remote.RemoteFile(e.name, e.bytes, e.sha256) for e in manifest.shards[1:3])
    cache = ShardCache(CacheFolder(tmp_path, SHARD), store)
    cache.acquire(first).release()
    others = [cache.folder / f".{first.name}.ok.987654321.part", cache.folder / ".nfs00000000000104c300000001"]
    for path in others:
        path.write_text("x" * 100)
    cache.acquire(second).release()
    assert [path.exists() for path in others] == [True, True]
    assert not (cache.folder / first.name).exists()


def _rank(address: str, cache: str, rank: int, out: str) -> None:
    data = module(address, Path(cache), workers=0)
    found = [data.train_batch(step, rank, 2).int() for step in range(20)]
    torch.save(torch.stack(found), f"{out}/{rank}.pt")
    quiet = 0
    while quiet < 20:  # what is fetched ahead would be cut off here, and fetched again by the other
        quiet = 0 if any(Path(cache).rglob("*.part")) else quiet + 1
        time.sleep(0.01)
    os._exit(0)


@pytest.mark.slow
def test_the_ranks_of_a_machine_share_one_copy(prepared: Path, server: BadServer, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    keys = (server.address, str(tmp_path / "cache"))
    ranks = [FORKS.Process(target=_rank, args=(*keys, rank, str(tmp_path / "out"))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    for name, n in server.sent.items():
        if name.endswith(".bin"):
            assert n == (prepared / name).stat().st_size
    found = torch.cat([torch.load(tmp_path / "out" / f"{rank}.pt") for rank in range(2)], dim=1)
    assert found.flatten(1, 2).tolist() == [
        [row for micro in batch for row in micro] for batch in batches(module(str(prepared), tmp_path))
    ]


@pytest.mark.slow
def test_worker_processes_stream_too(prepared: Path, server: BadServer, tmp_path: Path) -> None:
    data = module(server.address, tmp_path, workers=2)
    found = [batch.int().tolist() for batch in data.train_dataloader()]
    assert found == batches(module(str(prepared), tmp_path))


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_other_stores_are_read_through_fsspec(protocol: str, tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "shards", tokens=6000)
    address = f"file://{folder}" if protocol == "file" else "memory://place/shards"
    if protocol == "memory":
        fsspec.filesystem("memory").put(str(folder), "/place/shards", recursive=True)
    for order in ("shuffled", "sequential", "document_aligned"):
        if order == "document_aligned":
            with pytest.raises(ShardError, match="no end-of-text token 50256"):
                module(address, tmp_path / "cache", order=order)
            continue
        far = module(address, tmp_path / "cache", order=order)
        near = module(str(folder), tmp_path, order=order)
        assert batches(far) == batches(near)
        assert [s["tokens"] for s in far.identity()["shards"]["train"]] == [6000, 3000]
    only = module([f"{address}/fineweb_val_000000.bin", f"{address}/*_000002.bin"], tmp_path / "cache")
    assert only.identity()["train_tokens"] == 3000


def test_an_address_that_cannot_be_opened_is_one_sentence(tmp_path: Path, server: BadServer) -> None:
    for address, words in (
        ("nope://x/y", "nope://x/y: Protocol not known: nope; give an address that fsspec can open"),
        (f"{server.address}/nowhere", "cannot be read .FileNotFoundError"),
        ("memory://nothing/here", "cannot be read .FileNotFoundError"),
    ):
        with pytest.raises(ShardError, match=words):
            module(address, tmp_path)


def test_offline_mode_is_not_tried_again_and_nothing_is_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    monkeypatch.setattr(time, "sleep", calls.append)

    def fail(error: Exception) -> Any:
        raise error

    folder = RemoteFolder("memory://x")
    monkeypatch.setattr(folder, "_fs", lambda: fail(OfflineModeIsEnabled("offline")))
    with pytest.raises(ShardError, match=r"cannot be read \(OfflineModeIsEnabled"):
        folder.read_manifest()
    assert calls == []
    monkeypatch.setattr(folder, "_fs", lambda: fail(ConnectionError("reset")))
    with pytest.raises(ShardError, match=r"6 times in a row; check the network$"):
        folder.list_files()


def test_hashes_stated_by_the_hub_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
            return [
                {"name": f"{path}/fineweb_val_000000.bin", "size": 9, "lfs": {"sha256": "ab" * 32}},
                {"name": f"{path}/README.md", "size": 5},
            ]

    store = RemoteFolder("hf://datasets/kjj0/fineweb10B-gpt2")
    monkeypatch.setattr(store, "_fs", lambda: (Hub(), "datasets/kjj0/fineweb10B-gpt2"))
    assert store.list_files() == [remote.RemoteFile("fineweb_val_000000.bin", 9, "ab" * 32)]
