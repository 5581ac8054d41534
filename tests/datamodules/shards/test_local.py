"""Local shards of data.path: each in its split, in order, none missing."""

import json
from pathlib import Path

import numpy as np
import pytest

from src.datamodules.open import read_sources
from src.datamodules.prepare.prepare import PrepareKeys, prepare
from src.datamodules.shards.format import ShardError, TokenShard
from src.datamodules.shards.local import merge, open_local, split_of
from tests.runs import make_shards, write_bin


def names(address: str) -> tuple[list[str], list[str]]:
    shards = open_local(address)
    return [slot.name for slot in shards.val], [slot.name for slot in shards.train]


def test_shards_of_a_folder_are_ordered_by_number(tmp_path: Path) -> None:
    for n in (9, 11, 10):
        write_bin(tmp_path / f"train_{n}.bin", np.arange(9))
    write_bin(tmp_path / "val.bin", np.arange(9))
    assert names(str(tmp_path)) == (["val.bin"], ["train_9.bin", "train_10.bin", "train_11.bin"])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("fineweb_val_000000.bin", "val"),
        ("fineweb_train_000001.bin", "train"),
        ("medieval_train_000001.bin", "train"),
        ("constraints_val.bin", "val"),
        ("MyTrain.bin", "train"),
        ("validation-3.bin", "val"),
        ("test.bin", None),
    ],
)
def test_the_words_of_a_name_state_its_split(name: str, split: str | None) -> None:
    assert split_of(name, name) == split


@pytest.mark.parametrize("name", ["train_val.bin", "trainval.bin"])
def test_a_name_with_both_splits_is_rejected(name: str) -> None:
    with pytest.raises(ShardError, match="says both val and train; rename it"):
        split_of(name, name)


def test_a_shard_missing_in_the_middle_is_named(tmp_path: Path) -> None:
    make_shards(tmp_path)
    write_bin(tmp_path / "fineweb_train_000004.bin", np.arange(9))
    with pytest.raises(ShardError, match=r"fineweb_train_000003\.bin is missing between shards 2 and 4"):
        open_local(str(tmp_path))
    assert len(names(f"{tmp_path}/*_train_*.bin")[1]) == 3


def test_files_and_patterns_are_merged(tmp_path: Path) -> None:
    make_shards(tmp_path)
    parts = [open_local(f"{tmp_path}/fineweb_val_000000.bin"), open_local(f"{tmp_path}/*train_00000[2].bin")]
    shards = merge(parts, "x")
    assert [slot.name for slot in (*shards.val, *shards.train)] == [
        "fineweb_val_000000.bin",
        "fineweb_train_000002.bin",
    ]
    with pytest.raises(ShardError, match=r"data\.path=x holds no \*val\*\.bin shard"):
        merge(parts[1:], "x")


def test_a_declared_folder_of_nanogpt_is_read(tmp_path: Path) -> None:
    for name in ("train.bin", "val.bin"):
        np.arange(50, dtype="<u2").tofile(tmp_path / name)
    assert names(f"nanogpt:{tmp_path}") == (["val.bin"], ["train.bin"])
    with pytest.raises(ShardError, match="less than the header"):
        open_local(str(tmp_path))


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="nowhere is neither a folder nor a file"):
        open_local(str(tmp_path / "nowhere"))
    (tmp_path / "test.bin").touch()
    with pytest.raises(ShardError, match=r"holds no \*val\*\.bin and \*train\*\.bin \(1 \.bin files"):
        open_local(str(tmp_path))
    write_bin(tmp_path / "test.bin", np.arange(9))
    with pytest.raises(ShardError, match=r"test\.bin: the name says neither"):
        open_local(f"{tmp_path}/*.bin")


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("Some words of a text. " * 2000)
    prepare(PrepareKeys(str(tmp_path / "a.txt"), str(tmp_path / "out"), 1, 3000, 1000))
    return tmp_path / "out"


def test_a_manifest_identifies_its_folder(prepared: Path) -> None:
    shards = open_local(str(prepared))
    assert shards.manifest is not None
    listed = json.loads((prepared / "manifest.json").read_text())["shards"]
    assert [slot.stamp()["sha256"] for slot in (*shards.val, *shards.train)] == [s["sha256"] for s in listed]


@pytest.mark.parametrize("damage", ["replaced", "missing", "shorter", "manifest"])
def test_a_folder_that_contradicts_its_manifest_is_rejected(damage: str, prepared: Path) -> None:
    path = prepared / "fineweb_train_000002.bin"
    raw = bytearray(path.read_bytes())
    if damage == "replaced":
        raw[3000] ^= 1
        path.write_bytes(raw)
        words = r"fineweb_train_000002\.bin: 3000 tokens, sampled hash .* it was changed or replaced"
    elif damage == "missing":
        path.unlink()
        words = r"fineweb_train_000002\.bin is missing, manifest\.json lists it"
    elif damage == "shorter":
        write_bin(path, np.arange(99))
        words = "99 tokens, sampled hash"
    else:
        (prepared / "manifest.json").write_text('{"shards": []}')
        words = r"manifest\.json: no manifest of task=prepare"
    with pytest.raises(ShardError, match=words):
        open_local(str(prepared))


def test_of_many_shards_a_sample_is_compared_with_the_manifest(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: list[str] = []
    fingerprint = TokenShard.fingerprint

    def count(shard: TokenShard) -> str:
        sampled.append(shard.name)
        return fingerprint(shard)

    monkeypatch.setattr(TokenShard, "fingerprint", count)
    monkeypatch.setattr("src.datamodules.shards.local.SAMPLED_SHARDS", 2)
    shards = open_local(str(prepared))
    names = [slot.name for slot in (*shards.val, *shards.train)]
    assert len(names) == 5
    assert sampled == [names[0], names[3]]
    # The sizes of the others are compared.
    write_bin(prepared / names[1], np.arange(99))
    with pytest.raises(ShardError, match="99 tokens, sampled hash"):
        open_local(str(prepared))


def test_a_list_of_weights_is_a_mixture() -> None:
    assert read_sources(["a", "b"]) == {"the data": (["a", "b"], 1.0)}
    mixed = [{"path": "a", "weight": 3}, {"path": ["b", "c"], "weight": 0.5}]
    assert read_sources(mixed) == {"a": (["a"], 3.0), "['b', 'c']": (["b", "c"], 0.5)}
    for path, words in (
        (None, "data.path is null"),
        ([{"path": "a"}], r"each source of a mixture is \{path"),
        (["a", {"path": "b", "weight": 1}], "each source of a mixture"),
        ([{"path": "a", "weight": 0}], "the weight of a must be positive, got 0"),
        ([{"path": "a", "weight": 1}] * 2, "names a twice"),
    ):
        with pytest.raises(ValueError, match=words):
            read_sources(path)
