"""Shards: read as written, or rejected with file, position, value and expected value."""

import os
from pathlib import Path

import numpy as np
import pytest

from src.datamodules.shards.format import OpenFiles, ShardError, TokenShard, write_shard
from src.datamodules.shards.windows import Windows
from tests.runs import write_bin


def shard(folder: Path, n: int = 1000) -> Path:
    path = folder / "fineweb_train_000001.bin"
    write_bin(path, np.arange(n) % 500)
    return path


def test_a_published_shard_is_read_as_written(tmp_path: Path) -> None:
    tokens = TokenShard.open(shard(tmp_path)).tokens
    assert tokens.dtype == np.uint16
    assert np.array_equal(tokens, np.arange(1000) % 500)


def test_written_shards_have_the_published_format(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.arange(7, dtype=np.uint16))
    write_bin(tmp_path / "b.bin", np.arange(7))
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw[:-1], "truncated, 3023 bytes where a header of 1000 tokens asks for 3024"),
        (lambda raw: raw[:1024], "truncated, 1024 bytes"),
        (lambda raw: raw[:100], "100 bytes, less than the header of 1024"),
        (lambda raw: b"", "0 bytes, less than the header"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
        (lambda raw: raw + b"\0", "longer than its header says, 3025 bytes"),
        (lambda raw: raw[1024:] * 4, "if it is a headerless file of nanoGPT, declare it by nanogpt:"),
        (lambda raw: np.int32(20240801).tobytes() + raw[4:], "byte 4 holds version 1, expected 7"),
        (lambda raw: raw[:4] + np.int32(9).tobytes() + raw[8:], "byte 4 holds version 9, expected 1"),
        (lambda raw: raw[:8] + np.int32(0).tobytes() + raw[12:1024], "its header says 0 tokens"),
        (lambda raw: raw[:8] + np.int32(-5).tobytes() + raw[12:], "header of -5 tokens"),
    ],
)
def test_a_bad_shard_is_rejected_by_name(change: object, words: str, tmp_path: Path) -> None:
    path = shard(tmp_path)
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ShardError, match="fineweb_train_000001") as error:
        TokenShard.open(path)
    assert words in str(error.value)


def test_a_shard_truncated_while_in_use_is_an_error_message_not_a_crash(tmp_path: Path) -> None:
    windows = Windows([TokenShard.open(shard(tmp_path))], 10, vocab_size=512)
    assert windows.read(np.array([90])).shape == (1, 10)
    with (tmp_path / "fineweb_train_000001.bin").open("r+b") as file:
        file.truncate(1100)
    with pytest.raises(ShardError, match="cut to 1100 bytes while in use"):
        windows.read(np.array([90]))


def test_more_shards_are_read_than_files_may_be_open(tmp_path: Path) -> None:
    files = OpenFiles(max_open=3)
    paths = [tmp_path / f"train_{i}.bin" for i in range(20)]
    for i, path in enumerate(paths):
        write_bin(path, np.arange(8) + i)
    before = len(os.listdir("/proc/self/fd"))
    shards = [TokenShard.open(path, files=files) for path in paths]
    assert len(os.listdir("/proc/self/fd")) == before + 3
    windows = Windows(shards, 4, 512)
    assert windows.read(np.arange(0, 40, 2))[:, 0].tolist() == list(range(20))
    assert len(os.listdir("/proc/self/fd")) == before + 3
    del windows, shards, files
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_shard_replaced_between_two_reads_is_an_error(tmp_path: Path) -> None:
    files = OpenFiles(max_open=1)
    first = TokenShard.open(shard(tmp_path), files=files)
    write_bin(tmp_path / "other_train.bin", np.arange(1000) % 400)
    TokenShard.open(tmp_path / "other_train.bin", files=files)  # closes the first
    (tmp_path / "other_train.bin").rename(tmp_path / first.name)
    with pytest.raises(ShardError, match=r"fineweb_train_000001\.bin: replaced while in use; restore"):
        first.read(0, 4)


def test_an_id_outside_the_vocabulary_is_named_with_its_position(tmp_path: Path) -> None:
    path = tmp_path / "x_train.bin"
    write_bin(path, np.array([1, 2, 3, 4, 5, 600, 7, 8]))
    windows = Windows([TokenShard.open(path)], 4, vocab_size=512)
    assert windows.read(np.array([0])).tolist() == [[1, 2, 3, 4]]
    with pytest.raises(ShardError, match=r"token 5 \(byte 1034\) has id 600, model.vocab_size is 512"):
        windows.read(np.array([0, 1]))


def test_windows_are_disjoint_and_stay_in_their_shard(tmp_path: Path) -> None:
    shards = []
    for i, n in enumerate((10, 3, 9)):
        write_bin(tmp_path / f"{i}.bin", np.arange(n) + 100 * i)
        shards.append(TokenShard.open(tmp_path / f"{i}.bin"))
    windows = Windows(shards, 4, 512)
    assert len(windows) == 4
    assert windows.read(np.array([3, 0, 1, 2])).tolist() == [
        [204, 205, 206, 207],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [200, 201, 202, 203],
    ]


def test_a_fingerprint_depends_on_the_content_not_the_folder(tmp_path: Path) -> None:
    paths = [tmp_path / f / "fineweb_train_000001.bin" for f in ("a", "b", "c")]
    for i, path in enumerate(paths):
        path.parent.mkdir()
        write_bin(path, (np.arange(6_000_000) + (i == 2)) % 500)
    first, second, third = (TokenShard.open(path).fingerprint() for path in paths)
    assert first == second != third


def test_llama_3_shards_hold_32_bit_ids(tmp_path: Path) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240801, 7, 6
    tokens = np.array([128000, 5, 100_000, 128000, 7, 8], dtype="<u4")
    path = tmp_path / "fineweb_train_000001.bin"
    path.write_bytes(header.tobytes() + tokens.tobytes())
    shard = TokenShard.open(path)
    assert np.array_equal(shard.tokens, tokens)
    assert shard.document_starts().tolist() == [0, 3]
    read = Windows([shard], 3, 128256).read(np.array([1, 0]))
    assert read.tolist() == [[128000, 7, 8], [128000, 5, 100_000]]
    with pytest.raises(ShardError, match=r"token 2 \(byte 1032\) has id 100000, model.vocab_size is 128"):
        TokenShard.open(path).check_ids(1, tokens[1:3], 128)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ShardError, match="truncated, 1046 bytes where a header of 6 tokens asks for 1048"):
        TokenShard.open(path)


def test_a_headerless_file_is_read_if_it_is_declared(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    np.array([9, 8, 50256, 7, 50256], dtype="<u2").tofile(path)
    shard = TokenShard.open(path, headerless=True)
    assert shard.tokens.tolist() == [9, 8, 50256, 7, 50256]
    assert shard.document_starts().tolist() == [0, 3]
    with pytest.raises(ShardError, match="10 bytes, less than the header"):
        TokenShard.open(path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ShardError, match="11 bytes are not a whole number of uint16 tokens"):
        TokenShard.open(path, headerless=True)
    write_bin(path, np.arange(9))
    with pytest.raises(ShardError, match=r"the magic number of llm\.c, but it was declared headerless; leave out"):
        TokenShard.open(path, headerless=True)
