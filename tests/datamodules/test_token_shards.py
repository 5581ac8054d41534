"""Batches: the same global batch for every world size, every window once, a fixed validation set."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.datamodules import token_shards
from src.datamodules.base import BatchSpec
from src.datamodules.fineweb import FineWebDataModule
from src.datamodules.shards.format import ShardError, TokenShard
from src.datamodules.shards.manifest import Manifest, ShardEntry
from src.datamodules.tokenizer import END_OF_TEXT, RANKS_SHA256, gpt2_encoding
from src.files import sha256_file
from tests.datamodules.support import DATA_KEYS
from tests.runs import make_shards, write_bin


def data(folder: Path, *, seed: int = 1, steps: int = 50, block_size: int = 16, **keys: Any) -> FineWebDataModule:
    values = {**DATA_KEYS, "path": str(folder), **keys}
    module = FineWebDataModule(BatchSpec(block_size, 512, seed, steps), **values)
    module.setup()
    return module


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("d") / "shards", tokens=6000)


def test_repeated_batches_are_the_first_ones_of_the_run(shards: Path) -> None:
    keys = {**DATA_KEYS, "path": str(shards), "global_batch_size": 4, "micro_batch_size": 2}
    module = FineWebDataModule(BatchSpec(16, 512, 1, 50, repeats=2), **keys)
    module.setup()
    whole = data(shards, global_batch_size=4, micro_batch_size=2)
    for step in range(5):
        assert torch.equal(module.train_batch(step, 0, 1), whole.train_batch(step % 2, 0, 1))
        assert torch.equal(module.train_batch(step, 1, 2), whole.train_batch(step % 2, 1, 2))


def test_an_epoch_visits_every_window_once(shards: Path) -> None:
    module = data(shards, global_batch_size=2, micro_batch_size=2)
    n = len(module.train_windows[0])
    seen = torch.cat([module.train_batch(k, 0, 1).flatten(0, 1) for k in range(-(-n // 2))])[:n].int()
    expected = module.train_windows[0].read(np.arange(n))
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, expected.tolist()))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_data_found_while_training_is_the_same_sentence_from_a_worker(workers: int, tmp_path: Path) -> None:
    module = data(make_shards(tmp_path), workers=workers)
    batches = iter(module.train_dataloader())
    next(batches)
    for path in tmp_path.glob("*train*"):
        os.truncate(path, 1624)
    with pytest.raises(ShardError, match=r"^\S+\.bin: cut to 1624 bytes while in use; restore it$"):
        list(batches)


def test_a_validation_shard_cut_while_training_changes_no_validation(tmp_path: Path) -> None:
    module = data(make_shards(tmp_path))
    before = torch.cat(list(module.val_batches(0, 1)))
    for path in tmp_path.glob("*val*"):
        os.truncate(path, 1024)
    assert torch.equal(torch.cat(list(module.val_batches(0, 1))), before)


def test_wide_ids_come_as_int32(tmp_path: Path) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240801, 7, 2000
    for split in ("val", "train"):
        ids = np.arange(100_000, 102_000, dtype="<u4")
        (tmp_path / f"a_{split}_000000.bin").write_bytes(header.tobytes() + ids.tobytes())
    keys = {**DATA_KEYS, "path": str(tmp_path)}
    module = FineWebDataModule(BatchSpec(16, 128256, 1, 5), **keys)
    module.setup()
    batch = module.train_batch(0, 0, 1)
    assert batch.dtype == torch.int32
    assert batch.min() >= 100_000
    assert next(module.val_batches(0, 1)).dtype == torch.int32


def test_validation_predicts_each_token_once_whatever_the_world_size(shards: Path) -> None:
    module = data(shards)
    for world in (1, 2, 3):
        rows = torch.cat([b for rank in range(world) for b in module.val_batches(rank, world)]).int()
        targets = sorted(map(tuple, rows[:, 1:].tolist()))
        stream = torch.from_numpy(np.array(module.shards["the data"].val[0].load().tokens[:513])).int()
        assert targets == sorted(map(tuple, stream[1:].view(32, 16).tolist()))


def test_a_new_epoch_is_logged_once(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = data(shards, steps=150)
    with caplog.at_level("INFO"):
        for _ in module.train_dataloader():
            pass
    n = len(module.train_windows[0])
    lines = [r.getMessage() for r in caplog.records if "epoch" in r.getMessage()]
    assert lines == [f"epoch {e} of the data begins in step {(e - 1) * n // 8 + 1}" for e in (2, 3)]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"val_tokens": 8}, "data.val_tokens must be at least model.block_size=16, got 8"),
        ({"val_tokens": 5000}, "needs 4993 validation tokens"),
        ({"block_size": 7000, "val_tokens": 7000}, "not one window of model.block_size \\+ 1 = 7001"),
    ],
)
def test_values_out_of_bounds_are_rejected_with_the_key(keys: dict[str, Any], words: str, shards: Path) -> None:
    with pytest.raises(ValueError, match=words):
        data(shards, **keys)


def test_ids_above_the_vocabulary_are_rejected_before_the_run(tmp_path: Path) -> None:
    make_shards(tmp_path)
    write_bin(tmp_path / "fineweb_train_000002.bin", np.full(1000, 700))
    with pytest.raises(ShardError, match=r"has id 700, model\.vocab_size is 512"):
        data(tmp_path)


def test_ids_above_the_vocabulary_are_rejected_where_no_scan_has_been_and_in_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_shards, "SCANNED_TOKENS", 0)
    for split, number in (("val", 0), ("train", 1)):
        write_bin(tmp_path / f"fineweb_{split}_{number:06d}.bin", np.arange(1000) % 512)
    write_bin(tmp_path / "fineweb_train_000001.bin", np.full(1000, 700))
    module = data(tmp_path)
    with pytest.raises(ShardError, match=r"train_000001\.bin.* has id 700, model\.vocab_size is 512"):
        module.train_batch(0, 0, 1)
    write_bin(tmp_path / "fineweb_val_000000.bin", np.full(1000, 700))
    with pytest.raises(ShardError, match=r"val_000000\.bin.* has id 700, model\.vocab_size is 512"):
        data(tmp_path)


def test_the_identity_depends_on_the_content_not_the_folder(shards: Path, tmp_path: Path) -> None:
    here, again = data(shards).identity(), data(make_shards(tmp_path / "shards", tokens=6000)).identity()
    other = data(make_shards(tmp_path / "other" / "shards", tokens=6001)).identity()
    assert here == again
    assert here["hash"] != other["hash"]
    assert here["train_tokens"] == 9000


def write_manifest(folder: Path, tokenizer: dict[str, Any]) -> None:
    entries = []
    for path in sorted(folder.glob("*.bin")):
        shard = TokenShard.open(path)
        split = "val" if "_val_" in path.name else "train"
        facts = (shard.n_tokens, path.stat().st_size, sha256_file(path), shard.fingerprint(), "a")
        entries.append(ShardEntry(path.name, split, *facts))
    (folder / "manifest.json").write_text(Manifest({}, tokenizer, 1, 1, {}, tuple(entries)).dump())


def test_bytes_of_the_validation_targets_follow_from_the_tokenizer_that_the_manifest_states(tmp_path: Path) -> None:
    text = " world" * 8 + "é" * 8  # 6 bytes in one token, 2 bytes in one token
    ids = gpt2_encoding().encode(text)
    assert len(ids) == 16
    write_bin(tmp_path / "fineweb_val_000000.bin", np.array([END_OF_TEXT, *ids, END_OF_TEXT, *ids[:14]]))
    write_bin(tmp_path / "fineweb_train_000001.bin", np.arange(1000))

    def opened() -> FineWebDataModule:
        keys = {**DATA_KEYS, "path": str(tmp_path), "val_tokens": 31}
        module = FineWebDataModule(BatchSpec(31, 50304, 1, 5), **keys)
        module.setup()
        return module

    assert opened().bytes_per_token() == {}  # nothing states a tokenizer
    write_manifest(tmp_path, {"name": "gpt2", "ranks_sha256": RANKS_SHA256})
    # Targets are all tokens but the first: 8 * 6 + 8 * 2 bytes, an end of text without bytes, then 14 tokens.
    assert opened().bytes_per_token() == {"val": (64 + 0 + 8 * 6 + 6 * 2) / 31}
    write_manifest(tmp_path, {"name": "another", "ranks_sha256": "0" * 64})
    assert opened().bytes_per_token() == {}


def test_without_a_number_all_validation_tokens_up_to_a_million_are_read(shards: Path, tmp_path: Path) -> None:
    whole = data(shards, val_tokens=None)
    assert len(whole.val_windows) == 2999 // 16
    assert whole.identity()["hash"] == data(shards, val_tokens=2999 // 16 * 16).identity()["hash"]
    write_bin(tmp_path / "fineweb_val_000000.bin", np.zeros(2**20 + 5000))
    write_bin(tmp_path / "fineweb_train_000001.bin", np.zeros(1000))
    assert data(tmp_path, val_tokens=None).val_windows[:, 1:].size == 2**20


def test_named_sets_are_read_from_their_own_shards(shards: Path, tmp_path: Path) -> None:
    write_bin(tmp_path / "wiki_val.bin", np.arange(100) % 512)
    module = data(shards, val_sets={"wiki": str(tmp_path / "wiki_val.bin")})
    sets = module.validation_sets()
    assert list(sets) == ["val", "val/wiki"]
    assert np.array_equal(sets["val/wiki"][:, 1:].ravel(), np.arange(1, 97))  # fewer than val_tokens: all windows
    assert module.identity()["hash"] == data(shards).identity()["hash"]
    assert module.identity()["val_sets"]["wiki"]["val_tokens"] == 96
    with pytest.raises(ShardError, match=r"data\.val_sets\.wiki=\S+ is neither a folder nor a file"):
        data(shards, val_sets={"wiki": str(tmp_path / "missing.bin")})
    with pytest.raises(ValueError, match=r"data\.val_sets: a name has letters, digits, _ and - only, got 'a/b'"):
        data(shards, val_sets={"a/b": "x"})


def test_documents_begin_with_the_end_of_text_that_manifest_or_format_states(tmp_path: Path) -> None:
    ids = np.arange(1000) % 100
    for split, number in (("val", 0), ("train", 1)):
        write_bin(tmp_path / f"fineweb_{split}_{number:06d}.bin", ids)
    assert data(tmp_path).document_mark() is None
    words = (
        r"^data\.document_attention=true needs documents that begin with token 50256 \(end of text\), which does not "
        r"occur in the 512 validation tokens of data\.path; give shards with it, or data\.document_attention=false$"
    )
    with pytest.raises(ShardError, match=words):
        data(tmp_path, document_attention=True)
    write_manifest(tmp_path, {"n_vocab": 100, "end_of_text": 7})
    module = data(tmp_path, document_attention=True)
    assert module.document_mark() == 7
    assert module.identity()["document_attention"]
    other = data(tmp_path)
    assert "document_attention" not in other.identity()
    assert other.identity()["hash"] != module.identity()["hash"]


def test_sources_with_different_ends_of_text_have_no_common_documents(tmp_path: Path) -> None:
    for name, mark in (("a", 7), ("b", 8)):
        (tmp_path / name).mkdir()
        for split, number in (("val", 0), ("train", 1)):
            write_bin(tmp_path / name / f"fineweb_{split}_{number:06d}.bin", np.arange(1000) % 100)
        write_manifest(tmp_path / name, {"n_vocab": 100, "end_of_text": mark})
    mixture = [{"path": str(tmp_path / name), "weight": 1} for name in ("a", "b")]
    with pytest.raises(
        ShardError, match=r"^data\.path mixes shards of different ids of end of text: 7 in .*8 in .*one$"
    ):
        data(tmp_path, path=mixture, document_attention=True)
