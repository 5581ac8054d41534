"""Property: a mutated shard is read as its bytes state, or rejected in one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.datamodules.base import BatchSpec
from src.datamodules.fineweb import FineWebDataModule
from src.datamodules.prepare.prepare import PrepareKeys, prepare
from src.datamodules.shards.format import ShardError, TokenShard
from src.datamodules.shards.local import open_local
from tests.datamodules.support import DATA_KEYS

N, VOCAB = 300, 500
TOKENS = np.random.default_rng(0).integers(0, VOCAB, N)


def raw(kind: str) -> bytes:
    """Return a valid file of a format, written independently of src."""
    header = np.zeros(256, dtype="<i4")
    if kind == "nanogpt":
        return TOKENS.astype("<u2").tobytes()
    header[:3] = (20240520, 1, N) if kind == "llm.c" else (20240801, 7, N)
    return header.tobytes() + TOKENS.astype("<u2" if kind == "llm.c" else "<u4").tobytes()


def reference(data: bytes, *, headerless: bool) -> list[int] | None:
    """Return the tokens of a file by the definition of the formats, or None if it is invalid."""
    if headerless:
        ok = len(data) > 0 and len(data) % 2 == 0
        marked = len(data) >= 4 and int.from_bytes(data[:4], "little") in (20240520, 20240801)
        return None if marked or not ok else np.frombuffer(data, "<u2").tolist()
    if len(data) < 1024:
        return None
    magic, version, n = (int.from_bytes(data[i : i + 4], "little", signed=True) for i in (0, 4, 8))
    width = {(20240520, 1): 2, (20240801, 7): 4}.get((magic, version))
    if width is None or n <= 0 or len(data) != 1024 + width * n:
        return None
    return np.frombuffer(data[1024:], f"<u{width}").tolist()


CUT = st.tuples(st.just("cut"), st.integers(0, 2300))
GROW = st.tuples(st.just("grow"), st.binary(min_size=1, max_size=2000))
FLIP = st.tuples(st.just("flip"), st.integers(0, 2300), st.integers(1, 255))
WORD = st.tuples(
    st.just("word"),
    st.integers(0, 3),
    st.sampled_from([0, 1, 7, -1, N, N - 1, N + 1, 2 * N, 2**31 - 1, -(2**31), 20240520, 20240801]),
)
SWAP = st.tuples(st.just("swap"), st.sampled_from(["llm.c", "llama", "nanogpt"]))
DROP = st.tuples(st.just("drop"), st.integers(0, 1100), st.integers(1, 1100))
CHANGES = st.lists(st.one_of(CUT, GROW, FLIP, WORD, SWAP, DROP), max_size=3)


def mutated(data: bytes, changes: list[Any]) -> bytes:
    for change in changes:
        kind, *values = change
        if kind == "cut":
            data = data[: values[0]]
        elif kind == "grow":
            data += values[0]
        elif kind == "flip" and values[0] < len(data):
            data = data[: values[0]] + bytes([data[values[0]] ^ values[1]]) + data[values[0] + 1 :]
        elif kind == "word" and len(data) >= 16:
            at = 4 * values[0]
            data = data[:at] + int(values[1]).to_bytes(4, "little", signed=True) + data[at + 4 :]
        elif kind == "swap":
            data = raw(values[0])
        elif kind == "drop":
            data = data[: values[0]] + data[values[0] + values[1] :]
    return data


QUIET = settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("kind", ["llm.c", "llama", "nanogpt"])
def test_a_mutated_shard_is_read_as_stated_or_rejected(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    outcomes = {True: 0, False: 0}

    @QUIET
    @given(changes=CHANGES)
    def judge(changes: list[Any]) -> None:
        data = mutated(raw(kind), changes)
        path.write_bytes(data)
        headerless = kind == "nanogpt"
        expected = reference(data, headerless=headerless)
        got = said = None
        try:
            got = TokenShard.open(path, headerless=headerless).tokens.tolist()
        except ShardError as error:
            said = str(error)
        assert got == expected
        assert said is None or (said.startswith(f"{path}: ") and "\n" not in said)
        outcomes[expected is None] += 1

    judge()
    assert min(outcomes.values()) > 50


def test_a_mutated_folder_yields_its_windows_or_is_rejected(tmp_path: Path) -> None:
    """All the way to batches: also ids above the vocabulary, shards that are too short, and a replaced split."""
    outcomes = {"read": 0, "rejected": 0}
    (tmp_path / "val.bin").write_bytes(raw("llm.c"))

    @settings(QUIET, max_examples=500)
    @given(changes=CHANGES, split=st.sampled_from(["train", "val"]))
    def judge(changes: list[Any], split: str) -> None:
        for name in ("train", "val"):
            (tmp_path / f"{name}.bin").write_bytes(mutated(raw("llm.c"), changes) if name == split else raw("llm.c"))
        says = {name: reference((tmp_path / f"{name}.bin").read_bytes(), headerless=False) for name in ("train", "val")}
        keys = {**DATA_KEYS, "path": str(tmp_path), "order": "sequential", "val_tokens": 64}
        data = FineWebDataModule(BatchSpec(16, VOCAB, 1, 2), **keys)
        train, held = says["train"] or [], says["val"] or []
        good = min(len(train) - 16, len(held) - 64) > 0 and max(train) < VOCAB and max(held[:65]) < VOCAB
        got = None
        try:
            data.setup()
            got = data.train_batch(0, 0, 1).flatten(0, 1).tolist()
            val = next(data.val_batches(0, 1)).tolist()
            data.identity()
        except ShardError:
            outcomes["rejected"] += 1
        assert good == (got is not None)
        if got is not None:
            outcomes["read"] += 1
            n = len(train) // 17
            assert got == [train[i % n * 17 : i % n * 17 + 17] for i in range(8)]
            assert val == [held[i * 16 : i * 16 + 17] for i in range(2)]

    judge()
    assert min(outcomes.values()) > 20


def test_a_mutated_prepared_folder_is_rejected(tmp_path: Path) -> None:
    """A manifest admits exactly the original bytes, since files of this size are hashed as a whole."""
    (tmp_path / "a.txt").write_text("one two three four " * 300)
    prepare(PrepareKeys(str(tmp_path / "a.txt"), str(tmp_path / "out"), 1, 500, 200))
    path = tmp_path / "out" / "fineweb_train_000001.bin"
    original = path.read_bytes()

    @settings(QUIET, max_examples=300)
    @given(changes=CHANGES.filter(bool))
    def judge(changes: list[Any]) -> None:
        data = mutated(original, changes)
        path.write_bytes(data)
        made = FineWebDataModule(
            BatchSpec(16, 50304, 1, 2), **{**DATA_KEYS, "path": str(tmp_path / "out"), "val_tokens": 64}
        )
        if data == original:
            made.setup()
        else:
            with pytest.raises(ShardError, match="fineweb_train_000001"):
                made.setup()

    judge()


def test_a_mutated_manifest_is_rejected_or_lists_the_same_shards(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three four " * 300)
    prepare(PrepareKeys(str(tmp_path / "a.txt"), str(tmp_path / "out"), 1, 500, 200))
    path = tmp_path / "out" / "manifest.json"
    original = path.read_bytes()
    want = open_local(str(tmp_path / "out"))

    @settings(QUIET, max_examples=500)
    @given(changes=CHANGES)
    def judge(changes: list[Any]) -> None:
        path.write_bytes(mutated(original, changes))
        try:
            got = open_local(str(tmp_path / "out"))
        except ShardError:
            return
        assert [slot.name for slot in got.train] == [slot.name for slot in want.train]

    judge()
