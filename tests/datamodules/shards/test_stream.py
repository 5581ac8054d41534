"""Streams: every window once an epoch in every order, by position alone, and mixtures by weight."""

import inspect
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from src.bounds import validate
from src.datamodules.base import BatchSpec
from src.datamodules.fineweb import FineWebDataModule
from src.datamodules.shards.format import TokenShard
from src.datamodules.shards.stream import ORDERS, Mixture, WindowStream
from src.datamodules.shards.windows import DocumentWindows, Windows
from tests.datamodules.support import DATA_KEYS
from tests.runs import make_shards, write_bin


def shards(folder: Path, sizes: tuple[int, ...] = (103, 40, 7, 66)) -> list[TokenShard]:
    """Write shards whose tokens count upwards from 0, so that a window shows its position."""
    found, first = [], 0
    for i, n in enumerate(sizes):
        write_bin(folder / f"train_{i}.bin", np.arange(first, first + n))
        found.append(TokenShard.open(folder / f"train_{i}.bin"))
        first += n
    return found


def stream(folder: Path, order: str, seed: int = 1) -> WindowStream:
    kind, visit = ORDERS[order]
    return WindowStream("it", (Windows if kind is DocumentWindows else kind)(shards(folder), 8, 512), visit, seed)


@pytest.mark.parametrize("order", list(ORDERS))
def test_an_epoch_has_every_window_once_and_positions_are_independent(order: str, tmp_path: Path) -> None:
    it = stream(tmp_path, order)
    n = len(it.windows)
    assert n == 12 + 5 + 0 + 8
    whole = it.read(np.arange(3 * n))[:, 0]
    for epoch in range(3):
        assert len(set(whole[epoch * n : (epoch + 1) * n].tolist())) == n
    for p in (0, 5, n - 1, n, 2 * n + 3):
        assert stream(tmp_path, order).read(np.array([p]))[0, 0] == whole[p]
    assert Mixture([it], [1]).epochs(n - 1) == {"it": 0}
    assert Mixture([it], [1]).epochs(n) == {"it": 1}


def test_sequential_reads_in_the_order_of_the_files(tmp_path: Path) -> None:
    it = stream(tmp_path, "sequential")
    starts = it.read(np.arange(26))[:, 0].tolist()
    assert starts == [*range(0, 96, 8), *range(103, 143, 8), *range(150, 214, 8), 0]


def test_shard_shuffled_reads_one_shard_after_the_other(tmp_path: Path) -> None:
    it = stream(tmp_path, "shard_shuffled")
    n = len(it.windows)
    orders = set()
    for seed in range(5):
        starts = stream(tmp_path, "shard_shuffled", seed).read(np.arange(n))[:, 0].astype(int)
        shard_of = np.searchsorted([103, 143, 150], starts, side="right")
        turns = [s for i, s in enumerate(shard_of) if i == 0 or s != shard_of[i - 1]]
        assert sorted(turns) == [0, 1, 3]
        assert (np.diff(starts) < 0).any()
        orders.add(tuple(starts.tolist()))
    assert len(orders) == 5


def test_document_aligned_windows_begin_at_documents(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 500, 2000)
    tokens[rng.choice(2000, 150, replace=False)] = 50256
    write_bin(tmp_path / "train.bin", tokens)
    windows = DocumentWindows([TokenShard.open(tmp_path / "train.bin")], 16, 50257)
    found = windows.read(np.arange(len(windows)))
    assert (found[:, 0] == 50256).all()
    expected, at = [], 0
    while at + 16 <= 2000:
        if tokens[at] == 50256:
            expected.append(tokens[at : at + 16].tolist())
            at += 16
        else:
            at += 1
    assert found.tolist() == expected


def test_a_mixture_gives_each_source_its_share_evenly_and_in_its_own_order(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    streams = [stream(tmp_path / name, "shuffled", seed) for seed, name in enumerate("abc")]
    for i, it in enumerate(streams):
        it.name = "abc"[i]
        it.windows.read = lambda windows, i=i: np.stack([windows + 1000 * i] * 8, 1).astype(np.uint16)  # type: ignore[method-assign, misc]
    mixture = Mixture(streams, [6, 3, 1])
    got = mixture.read(np.arange(3000))[:, 0].astype(int)
    counts = Counter((got // 1000).tolist())
    assert counts == {0: 1800, 1: 900, 2: 300}
    # Slot k of q stands at (k + 1/2) / q: 1/12, 3/12, ... of the first, 1/6, 3/6, 5/6 of the second, 1/2 of the third.
    assert (got[:10] // 1000).tolist() == [0, 1, 0, 0, 1, 2, 0, 0, 1, 0]
    for first in range(0, 3000, 10):
        part = Counter((got[first : first + 10] // 1000).tolist())
        assert abs(part[0] - 6) <= 1
        assert abs(part[1] - 3) <= 1
    for i, it in enumerate(streams):
        own = got[got // 1000 == i]
        assert np.array_equal(own, it.read(np.arange(len(own)))[:, 0])
    assert np.array_equal(mixture.read(np.arange(1234, 1300))[:, 0], got[1234:1300])
    assert mixture.epochs(2999) == {"a": 1799 // 25, "b": 899 // 25, "c": 299 // 25}
    assert mixture.epochs(0) == {"a": 0, "b": 0, "c": 0}


def test_weights_are_kept_to_a_thousandth() -> None:
    quotas = Mixture([None] * 3, [1, 1, 1]).quotas  # type: ignore[list-item]
    assert sorted(quotas.tolist()) == [333, 333, 334]


def test_a_source_without_a_slot_is_rejected() -> None:
    sources: list[Any] = [SimpleNamespace(name="big"), SimpleNamespace(name="small")]
    with pytest.raises(ValueError, match="the weight of small is below 1/1000 of the sum; raise it or leave it out"):
        Mixture(sources, [1.0, 0.0004])
    assert Mixture(sources, [1.0, 0.001]).quotas.tolist() == [999, 1]


def module(path: Any, *, steps: int = 20, **keys: Any) -> FineWebDataModule:
    made = FineWebDataModule(BatchSpec(16, 512, 1, steps), **{**DATA_KEYS, "path": path, **keys})
    made.setup()
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    a, b = (tmp_path_factory.mktemp(name) / name for name in "ab")
    return str(make_shards(a, tokens=6000)), str(make_shards(b, tokens=3000, vocab_size=400))


@pytest.mark.parametrize("order", list(ORDERS))
def test_a_mixture_is_the_same_global_batch_for_every_number_of_ranks(
    order: str, folders: tuple[str, str], tmp_path: Path
) -> None:
    if order == "document_aligned":
        for i, name in enumerate(("a", "b")):
            for split in ("val_000000", "train_000001"):
                path = tmp_path / name / f"x_{split}.bin"
                path.parent.mkdir(exist_ok=True)
                write_bin(path, np.where(np.arange(3000) % (23 + i) == 0, 50256, np.arange(3000) % 400))
        folders = str(tmp_path / "a"), str(tmp_path / "b")
    path = [{"path": folders[0], "weight": 3}, {"path": folders[1], "weight": 1}]
    it = module(path, order=order) if order != "document_aligned" else None
    if it is None:
        spec = BatchSpec(16, 50304, 1, 20)
        it = FineWebDataModule(spec, **{**DATA_KEYS, "path": path, "order": order})
        it.setup()
    for step in (0, 19):
        whole = it.train_batch(step, 0, 1).flatten(0, 1).int()
        parts = [it.train_batch(step, rank, 4).flatten(0, 1).int() for rank in range(4)]
        assert torch.equal(torch.cat(parts), whole)
    assert len(it.val_windows) == 24 + 8
    assert it.identity()["weights"] == {folders[0]: 3.0, folders[1]: 1.0}


def test_the_identity_follows_order_and_weights(folders: tuple[str, str]) -> None:
    a, b = ({"path": folder, "weight": 1} for folder in folders)
    found = [
        module(folders[0]),
        module(folders[0], order="sequential"),
        module([a, b]),
        module([a, {**b, "weight": 2}]),
        module([b, a]),
        module(list(folders)),
    ]
    assert len({it.identity()["hash"] for it in found}) == len(found)


def test_more_epochs_than_allowed_are_rejected_before_the_run(folders: tuple[str, str]) -> None:
    n = len(module(folders[0]).train_windows[0])
    assert n // 8 == 66
    module(folders[0], steps=66, epochs=1)
    with pytest.raises(ValueError, match=r"data\.epochs=1, but trainer\.max_steps=67 .* needs epoch 2 of the data"):
        module(folders[0], steps=67, epochs=1)
    module(folders[0], steps=67, epochs=2)
    path = [{"path": folder, "weight": 1} for folder in folders]
    with pytest.raises(ValueError, match=rf"needs epoch 2 of {folders[1]}"):
        module(path, steps=70, epochs=1)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("order", "random", "shuffled, shard_shuffled, sequential or document_aligned, got 'random'"),
        ("epochs", 0, "int >= 1 or null, got 0"),
        ("cache_gib", 0.0, "float > 0 and <= 1e[+]09, got 0.0"),
        ("workers", -1, "int >= 0 and <= 1024, got -1"),
    ],
)
def test_keys_out_of_bounds_are_named(key: str, value: object, words: str) -> None:
    annotation = inspect.signature(FineWebDataModule, eval_str=True).parameters[key].annotation
    with pytest.raises(ValueError, match=f"data.{key} must be {words}"):
        validate(f"data.{key}", value, annotation)


def test_identical_files_are_fingerprinted_once(folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = TokenShard.fingerprint
    monkeypatch.setattr(TokenShard, "fingerprint", lambda self: (calls.append(self.name), original(self))[1])
    it = module(folders[0])
    assert it.identity() == it.identity()
    assert len(calls) == 3
