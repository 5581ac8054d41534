"""Verification: good data pass, and each planted fault is reported under its name."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from src.datamodules.prepare import verify as verification
from src.datamodules.prepare.prepare import PrepareKeys, prepare
from src.datamodules.prepare.verify import verify
from src.datamodules.shards.local import open_local
from tests.runs import write_bin


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, output = tmp_path_factory.mktemp("texts"), tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(" ".join(str(n) for n in rng.integers(0, 10**6, 800)))
    prepare(PrepareKeys(str(folder), str(output / "out"), 1, 20_000, 20_000))
    return output / "out"


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "BLOCK", 7000)


def faults(folder: Path, vocab_size: int = 50257) -> dict[str, list[str]]:
    return {name: v.faults for name, v in verify(open_local(str(folder)), vocab_size).items() if v.faults}


def tokens(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    return np.fromfile(path, dtype="<u2", offset=1024).copy()


def test_prepared_data_pass_with_their_figures(prepared: Path) -> None:
    found = verify(open_local(str(prepared)), 50257)
    assert [v.faults for v in found.values()] == [[]] * 5
    n_files = len(open_local(str(prepared)).train) + 1
    assert found["hashes"].figures == {"files": n_files, "by_manifest": n_files}
    figures = found["documents"].figures
    assert figures["val_documents"] + figures["train_documents"] == 40
    assert figures["val_tokens"] == 20_000
    assert found["overlap"].figures["sampled"] > 100
    assert found["ids"].figures["highest"] == 50256


def test_a_change_outside_the_sampled_blocks_is_found_by_the_hash(prepared: Path) -> None:
    shards = open_local(str(prepared))
    path = prepared / "fineweb_train_000001.bin"
    raw = path.read_bytes()
    path.write_bytes(raw[:-2] + b"\x05\x00")
    try:
        assert "the manifest says" in verify(shards, 50257)["hashes"].faults[0]
    finally:
        path.write_bytes(raw)


def test_ids_above_the_vocabulary_are_found_at_any_position(copy: Path) -> None:
    path = copy / "fineweb_train_000002.bin"
    ids = tokens(path)
    ids[15_000] = 50300
    write_bin(path, ids)
    assert f"token 15000 (byte {1024 + 30_000}) has id 50300" in faults(copy)["ids"][0]
    assert faults(copy, vocab_size=50304) == {}


def test_missing_and_empty_documents_are_found(copy: Path) -> None:
    for path in copy.glob("*train*.bin"):
        ids = tokens(path)
        ids[ids == 50256] = 7
        write_bin(path, ids)
    assert "no end-of-text token in" in faults(copy)["documents"][0]
    ids = tokens(copy / "fineweb_val_000000.bin")
    ids[100:120] = 50256
    write_bin(copy / "fineweb_val_000000.bin", ids[1:])
    found = faults(copy)["documents"]
    assert "expected end-of-text 50256 before the first document" in found[0]
    assert "19 of" in found[1]
    assert "the documents between them are empty" in found[1]


def test_a_duplicate_shard_is_found(copy: Path) -> None:
    shutil.copy(copy / "fineweb_train_000001.bin", copy / "fineweb_train_000003.bin")
    assert "the same tokens as fineweb_train_000001.bin" in faults(copy)["duplicates"][0]


def test_validation_text_inside_the_training_text_is_found(copy: Path) -> None:
    path = copy / "fineweb_train_000002.bin"
    ids = tokens(path)
    ids[777:5777] = tokens(copy / "fineweb_val_000000.bin")[3000:8000]
    write_bin(path, ids)
    (fault,) = faults(copy)["overlap"]
    share = float(fault.split("%")[0])
    assert 20 < share < 30  # 5,000 of 20,000 tokens
