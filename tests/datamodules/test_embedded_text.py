"""Embedded text: real and whole, built once, built again after damage, replaced by a path."""

from pathlib import Path

import pytest

from src.datamodules.base import BatchSpec
from src.datamodules.embedded_text import EmbeddedTextDataModule
from src.datamodules.fineweb import FineWebDataModule
from src.datamodules.tokenizer import gpt2_encoding
from tests.datamodules.support import DATA_KEYS
from tests.runs import make_shards


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedTextDataModule:
    keys = {**DATA_KEYS, "path": None, "cache": str(tmp_path_factory.mktemp("cache")), "val_tokens": 16384}
    module = EmbeddedTextDataModule(BatchSpec(128, 50304, 1, 5), **keys)
    module.prepare_data()
    module.setup()
    return module


def test_the_embedded_text_is_real_and_whole(embedded: EmbeddedTextDataModule) -> None:
    place = embedded.shards["the data"]
    shards = [slot.load() for slot in (*place.val, *place.train)]
    ends = sum(int((s.tokens == 50256).sum()) for s in shards)
    assert ends == 233
    assert sum(len(s.tokens) for s in shards) == 2_073_924 + 233
    assert all(s.tokens[0] == 50256 for s in shards)
    text = gpt2_encoding().decode(shards[1].tokens[1:40].tolist())
    assert "Senate" in text
    assert "House of Representatives" in text


def test_the_embedded_shards_are_built_once(embedded: EmbeddedTextDataModule) -> None:
    before = {p: p.stat().st_mtime_ns for p in embedded.folder.iterdir()}
    embedded.prepare_data()
    assert {p: p.stat().st_mtime_ns for p in embedded.folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "no sums"])
def test_damaged_embedded_shards_are_built_again(damage: str, embedded: EmbeddedTextDataModule) -> None:
    before = {p.name: p.read_bytes() for p in embedded.folder.iterdir()}
    path = embedded.folder / "fineweb_train_000001.bin"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "flip":
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    elif damage == "gone":
        path.unlink()
    else:
        (embedded.folder / "sha256.json").unlink()
    embedded.prepare_data()
    assert {p.name: p.read_bytes() for p in embedded.folder.iterdir()} == before
    assert len(list(embedded.folder.parent.iterdir())) == 1


def test_a_path_replaces_the_embedded_text(tmp_path: Path) -> None:
    shards, cache = make_shards(tmp_path / "shards"), tmp_path / "cache"
    keys = {**DATA_KEYS, "path": str(shards), "cache": str(cache)}
    module = EmbeddedTextDataModule(BatchSpec(16, 512, 1, 5), **keys)
    module.prepare_data()
    module.setup()
    plain = FineWebDataModule(BatchSpec(16, 512, 1, 5), **keys)
    plain.setup()
    assert module.identity()["hash"] == plain.identity()["hash"]
    assert not cache.exists()


def test_own_shards_with_fewer_validation_tokens_than_the_bound_are_read_whole_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    keys = {**DATA_KEYS, "path": str(make_shards(tmp_path)), "cache": str(tmp_path)}  # 3,000 tokens

    def opened(val_tokens: int) -> EmbeddedTextDataModule:
        module = EmbeddedTextDataModule(BatchSpec(16, 512, 1, 5), **{**keys, "val_tokens": val_tokens})
        module.setup()
        return module

    assert opened(2992).identity()["val_tokens"] == 2992  # 187 windows, as many as there are
    assert caplog.messages == []
    few = opened(16384)
    assert few.identity()["val_tokens"] == 2992
    (line,) = caplog.messages
    assert "fewer validation tokens than data.val_tokens=16384: validating on 2992" in line
    assert (few.val_windows == opened(2992).val_windows).all()
    with pytest.raises(ValueError, match="needs 4993 validation tokens"):
        FineWebDataModule(BatchSpec(16, 512, 1, 5), **{**keys, "val_tokens": 5000}).setup()
