"""Preparation: the bytes follow from documents and keys alone, despite bad documents, kills and a full disk.

Covers `progress.py` too.
"""

import errno
import gzip
import hashlib
import json
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from omegaconf import OmegaConf
from pyarrow import parquet

from src.datamodules.prepare import documents
from src.datamodules.prepare import writer as shard_writer
from src.datamodules.prepare.columns import Column
from src.datamodules.prepare.discovery import reject_output_inside
from src.datamodules.prepare.prepare import PrepareKeys, prepare, prepare_task
from src.datamodules.prepare.sources import HubSource, open_source
from src.datamodules.prepare.tokenize_pool import encode
from src.datamodules.shards.format import ShardError, TokenShard
from src.datamodules.shards.local import open_local
from src.datamodules.shards.manifest import Manifest
from src.datamodules.tokenization.byte_level import ByteLevelTokenizer
from src.datamodules.tokenization.train import train_bpe
from src.datamodules.tokenizer import END_OF_TEXT, gpt2_encoding
from src.errors import UserError
from src.settings.sections import read_section

TEXTS = [
    f"Document {i} says:\n\n" + f"the {i * 7} cats' naïve 猫 <|endoftext|> walk. " * (i % 13 + 1) for i in range(120)
]


def expected(texts: list[str] = TEXTS) -> np.ndarray[Any, Any]:
    """Return the tokens by tiktoken's own plain encoding."""
    return np.array([t for text in texts for t in (END_OF_TEXT, *gpt2_encoding().encode_ordinary(text))])


def jsonl(path: Path, texts: list[str] = TEXTS) -> Path:
    raw = "".join(json.dumps({"text": t, "id": f"doc{i}"}) + "\n" for i, t in enumerate(texts)).encode()
    packed = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": lambda r: pa.compress(r, "zstd", asbytes=True),
    }
    path.write_bytes(packed.get(path.suffix, bytes)(raw))
    return path


def prepared(source: Path | str, output: Path, *, processes: int = 1, **changes: int) -> Manifest:
    sizes = {"shard_tokens": 3000, "val_tokens": 1000, **changes}
    return prepare(PrepareKeys(str(source), str(output), processes, **sizes))


def stream(folder: Path) -> np.ndarray[Any, Any]:
    paths = sorted(folder.glob("*.bin"), key=lambda p: p.name.split("_")[2])
    return np.concatenate([TokenShard.open(path).tokens for path in paths])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "CHUNK_BYTES", 2000)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    prepared(jsonl(folder / "texts.jsonl"), folder / "out")
    return folder / "out"


def test_shards_hold_every_document_after_an_end_of_text_token(whole: Path) -> None:
    assert np.array_equal(stream(whole), expected())
    assert (expected() == END_OF_TEXT).sum() == len(TEXTS)
    assert sorted(p.name for p in whole.iterdir()) == [
        "bad_documents.jsonl",
        "fineweb_train_000001.bin",
        "fineweb_train_000002.bin",
        "fineweb_train_000003.bin",
        "fineweb_train_000004.bin",
        "fineweb_train_000005.bin",
        "fineweb_val_000000.bin",
        "manifest.json",
    ]


def test_the_manifest_lists_every_shard(whole: Path) -> None:
    manifest = Manifest.parse((whole / "manifest.json").read_bytes(), "manifest.json")
    assert manifest.documents == len(TEXTS)
    assert manifest.tokens == len(expected())
    assert [s.tokens for s in manifest.shards] == [1000, 3000, 3000, 3000, 3000, len(expected()) - 13000]
    starts = np.flatnonzero(expected() == END_OF_TEXT)
    first = 0
    for shard in manifest.shards:
        raw = (whole / shard.name).read_bytes()
        assert shard.bytes == len(raw)
        assert shard.sha256 == hashlib.sha256(raw).hexdigest()
        assert shard.first_document == f"doc{np.searchsorted(starts, first, side='right') - 1}"
        first += shard.tokens


@pytest.mark.slow
def test_the_number_of_processes_changes_no_byte(whole: Path, tmp_path: Path) -> None:
    prepared(jsonl(tmp_path / "texts.jsonl"), tmp_path / "out", processes=3)
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".parquet", "disk"])
def test_every_format_yields_the_same_tokens(suffix: str, whole: Path, tmp_path: Path) -> None:
    source = tmp_path / f"texts{suffix}"
    table = pa.table({"text": TEXTS, "id": [f"doc{i}" for i in range(len(TEXTS))]})
    if suffix == ".parquet":
        parquet.write_table(table, source, row_group_size=50)
    elif suffix == "disk":
        from datasets import Dataset

        Dataset(table).save_to_disk(source)
    else:
        jsonl(source)
    prepared(source, tmp_path / "out")
    got, want = contents(tmp_path / "out"), contents(whole)
    assert got.pop("manifest.json") != want.pop("manifest.json")  # another source
    assert got == want


def test_a_folder_and_a_pattern_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    jsonl(texts / "b.jsonl.xz", TEXTS[40:])
    (texts / "c.txt").write_text("Last.")
    (texts / "README.md").write_text("no document")
    jsonl(texts / "a.jsonl", TEXTS[:40])
    prepared(texts, tmp_path / "out")
    assert np.array_equal(stream(tmp_path / "out"), expected([*TEXTS, "Last."]))
    prepared(f"{texts}/*.jsonl*", tmp_path / "out2")
    assert np.array_equal(stream(tmp_path / "out2"), expected())


def test_cutting_a_long_text_file_changes_no_token(tmp_path: Path) -> None:
    text = " ".join(t.replace("<|endoftext|>", "\n\n   it's") for t in TEXTS)
    (tmp_path / "a.txt").write_text(text)
    manifest = prepared(tmp_path / "a.txt", tmp_path / "out")
    assert manifest.documents == 1
    assert len(list(open_source(str(tmp_path / "a.txt")).chunks({}))) > 10
    assert np.array_equal(stream(tmp_path / "out"), expected([text]))


def test_documents_without_text_are_counted_named_and_left_out(tmp_path: Path) -> None:
    good = [json.dumps({"text": t}).encode() for t in TEXTS]
    bad = {
        3: (b'{"text": "caf\xe9"}', "not UTF-8"),
        4: (b'{"text": ""}', "empty"),
        9: (b'{"text": null, "id": "n"}', "null"),
        10: (b'{"text": "cut', "not JSON"),
        30: (b'{"texts": "x"}', "no field text"),
        31: (b'{"text": 5}', "text is not a string"),
        32: (rb'{"text": "\ud800"}', "not UTF-8"),
        len(good) + 7: (b"", "empty"),
    }
    lines = list(good)
    for at, (raw, _) in sorted(bad.items()):
        lines.insert(at, raw)
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    manifest = prepared(tmp_path / "t.jsonl", tmp_path / "out")
    assert np.array_equal(stream(tmp_path / "out"), expected())
    assert manifest.documents == len(TEXTS)
    assert manifest.bad_documents == {
        "empty": 2,
        "no field text": 1,
        "not JSON": 1,
        "not UTF-8": 2,
        "null": 1,
        "text is not a string": 1,
    }
    listed = [json.loads(line) for line in (tmp_path / "out" / "bad_documents.jsonl").read_text().splitlines()]
    names = [f"t.jsonl:{at + 1}" if at != 9 else "n" for at in sorted(bad)]
    assert listed == [
        {"document": name, "reason": reason}
        for name, (_, reason) in zip(names, dict(sorted(bad.items())).values(), strict=True)
    ]


def test_bad_text_in_tables_and_files_is_counted(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    rows = pa.array([b"good", b"\xff\xfe", None, b""], pa.binary())
    strings = pa.StringArray.from_buffers(4, *rows.buffers()[1:], rows.buffers()[0])
    parquet.write_table(pa.table({"text": strings}), texts / "a.parquet")
    (texts / "b.txt").write_bytes(b"long " * 1000 + b"\xff")
    (texts / "c.txt").write_bytes(b"")
    jsonl(texts / "d.jsonl")
    manifest = prepared(texts, tmp_path / "out")
    assert manifest.bad_documents == {"empty": 2, "not UTF-8": 2, "null": 1}
    assert np.array_equal(stream(tmp_path / "out"), expected(["good", *TEXTS]))


class Killed(BaseException):
    """Stand-in for kill -9: no handler cleans up after it."""


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.xz", ".txt", ".parquet", "disk"])
def test_a_preparation_killed_anywhere_continues_to_the_same_bytes(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / f"texts{suffix}"
    bad = [*TEXTS[:50], "", "", *TEXTS[50:], ""]
    if suffix == ".txt":
        source.write_text(" ".join(TEXTS))
    elif suffix == ".parquet":
        parquet.write_table(pa.table({"text": bad}), source, row_group_size=20)
    elif suffix == "disk":
        from datasets import Dataset

        Dataset(pa.table({"text": bad})).save_to_disk(source)
    else:
        jsonl(source, bad)
    # Tokenize in this process, so that a kill can happen anywhere.
    monkeypatch.setattr(
        "src.datamodules.prepare.prepare.encode_chunks", lambda chunks, n, path: ((c, encode(c, path)) for c in chunks)
    )
    keys = {"val_tokens": 501, "shard_tokens": 997}
    prepared(source, tmp_path / "whole", **keys)
    want, kills = contents(tmp_path / "whole"), 0
    for name in ("close", "write"):
        original, at = getattr(shard_writer.ShardFile, name), 0
        while True:
            at += 1 if name == "close" else 17
            countdown = [at]

            def kill(self: Any, *args: Any, original: Any = original, left: list[int] = countdown) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    raise Killed
                return original(self, *args)

            with monkeypatch.context() as patch:
                patch.setattr(shard_writer.ShardFile, name, kill)
                patch.setattr(shard_writer.ShardFile, "discard", lambda self: self._file.close())
                try:
                    prepared(source, tmp_path / "out", **keys)
                except Killed:
                    kills += 1
            if countdown[0] > 0:
                break
    assert kills > 5
    prepared(source, tmp_path / "out", **keys)
    assert contents(tmp_path / "out") == want


def test_a_kill_between_shard_and_journal_changes_no_byte(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, writes = jsonl(tmp_path / "texts.jsonl"), [0]
    original = shard_writer.Journal.write

    def kill(self: Any, folder: Path) -> None:
        writes[0] += 1
        if writes[0] == 3:
            raise Killed
        original(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.Journal, "write", kill)
        with pytest.raises(Killed):
            prepared(source, tmp_path / "out")
    assert (tmp_path / "out" / "fineweb_train_000001.bin").exists()
    prepared(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_a_full_disk_is_one_sentence_and_keeps_complete_shards(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = jsonl(tmp_path / "texts.jsonl")
    original, left = shard_writer.ShardFile._put, [7000]

    def put(self: Any, raw: bytes) -> None:
        left[0] -= len(raw)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, raw)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.ShardFile, "_put", put)
        with pytest.raises(UserError, match="the disk is full; complete shards are kept, make room and run again"):
            prepared(source, tmp_path / "out")
    with pytest.raises(ShardError, match="its preparation is not finished; run task=prepare again"):
        open_local(str(tmp_path / "out"))
    kept = contents(tmp_path / "out")
    assert kept["fineweb_val_000000.bin"] == contents(whole)["fineweb_val_000000.bin"]
    assert not [name for name in kept if name.endswith(".part")]
    prepared(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_preparing_again_changes_nothing_and_other_keys_are_rejected(whole: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "texts.jsonl")
    before = {p: p.stat().st_mtime_ns for p in whole.iterdir()}
    prepared(source, whole)
    assert {p: p.stat().st_mtime_ns for p in whole.iterdir()} == before
    with pytest.raises(UserError, match="shard_tokens was 3000, is 2000; give another folder"):
        prepared(source, whole, shard_tokens=2000)
    jsonl(source, TEXTS[1:])
    with pytest.raises(UserError, match="holds another preparation: revision was"):
        prepared(source, whole)


def test_a_folder_with_foreign_shards_is_not_touched(tmp_path: Path) -> None:
    source, out = jsonl(tmp_path / "t.jsonl"), tmp_path / "out"
    out.mkdir()
    (out / "train.bin").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"holds train\.bin of something else"):
        prepared(source, out)
    assert contents(out) == {"train.bin": b"precious"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "holds nothing to read; give a file, folder or pattern"),
        (lambda p: p.rmdir(), "does not exist; give a file, folder or pattern"),
        (lambda p: (p / "a.md").write_text("x"), "holds nothing to read"),
        (lambda p: (p / "a.parquet").write_text("x" * 99), r"a\.parquet: damaged"),
        (
            lambda p: parquet.write_table(pa.table({"txt": ["a"]}), p / "a.parquet"),
            "give prepare.text_field=txt",
        ),
        (
            lambda p: (p / "a.jsonl").write_text('{"content": "x"}\n'),
            "give prepare.text_field=content",
        ),
        (
            lambda p: (p / "a.jsonl").write_text('{"text": "x"}\n'),
            "has 2 tokens and prepare.val_tokens=1000 takes",
        ),
        (lambda p: (p / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n')[:-9]), "gz: damaged"),
        (lambda p: (p / "a.jsonl.xz").write_bytes(b"plain"), "xz: damaged"),
        (lambda p: (p / "a.jsonl.zst").write_bytes(b"plain"), "zst: cannot be read"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(make: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    with pytest.raises(UserError, match=words):
        prepared(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("key", ["processes", "shard_tokens", "val_tokens"])
def test_keys_out_of_bounds_are_named(key: str) -> None:
    values = {"source": "a", "output": "b", "processes": 1, "shard_tokens": 9, "val_tokens": 9, key: 0}
    with pytest.raises(ValueError, match=rf"prepare\.{key} must be .*int >= 1"):
        read_section("prepare", OmegaConf.create(values), PrepareKeys)
    with pytest.raises(ValueError, match=key):
        PrepareKeys(**values)


def test_a_document_over_the_limit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 3000)
    jsonl(tmp_path / "t.jsonl", [*TEXTS[:60], "word " * 5000, *TEXTS[60:]])
    manifest = prepared(tmp_path / "t.jsonl", tmp_path / "out")
    assert manifest.bad_documents == {"longer than 64 MiB": 1}
    assert np.array_equal(stream(tmp_path / "out"), expected())


def test_the_hub_is_streamed_at_a_fixed_revision_and_continued_at_any_chunk(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    table = pa.table({"text": TEXTS, "id": [f"doc{i}" for i in range(len(TEXTS))]})
    for part in range(3):
        (tmp_path / "hub").mkdir(exist_ok=True)
        parquet.write_table(table.slice(40 * part, 40), tmp_path / "hub" / f"train-{part}.parquet", row_group_size=16)
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, **keys: Any) -> Any:
        asked.append((name, config, keys.pop("revision")))
        return original("parquet", data_files=str(tmp_path / "hub" / "*.parquet"), **keys)

    class Api:
        def dataset_info(self, name: str, revision: str | None) -> Any:
            return type("Info", (), {"sha": "c0ffee"})()

    original = datasets.load_dataset
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("src.datamodules.prepare.sources.ROWS_AT_ONCE", 10)
    prepared("hf://datasets/HuggingFaceFW/fineweb:sample-10BT", tmp_path / "out")
    assert asked == [("HuggingFaceFW/fineweb", "sample-10BT", "c0ffee")]
    assert np.array_equal(stream(tmp_path / "out"), stream(whole))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"]["revision"] == "c0ffee"
    source = HubSource.open("hf://datasets/HuggingFaceFW/fineweb:sample-10BT", Column())
    chunks = list(source.chunks({}))
    rows = [row for chunk in chunks for row in chunk.rows]
    assert rows == [t.encode() for t in TEXTS]
    for i in (1, 5, 11):
        again = HubSource.open("hf://datasets/HuggingFaceFW/fineweb:sample-10BT", Column())
        cursor = json.loads(json.dumps(chunks[i].cursor))
        assert [row for chunk in again.chunks(cursor) for row in chunk.rows] == rows[chunks[i].first_row - 1 :]


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def dataset_info(self, name: str, revision: str | None) -> Any:
            raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(UserError, match=r"could not be opened \(ConnectionError: no route\); check the name"):
        open_source("hf://datasets/a/b")
    with pytest.raises(UserError, match="must be hf://datasets/<owner>/<name>"):
        open_source("hf://datasets/a")


def test_another_tokenizer_travels_with_its_shards(tmp_path: Path) -> None:
    texts = jsonl(tmp_path / "texts.jsonl")
    (tmp_path / "small.json").write_text(text := train_bpe(iter(TEXTS), 300))
    tokenizer = ByteLevelTokenizer("small", text)
    manifest = prepare(
        PrepareKeys(str(texts), str(tmp_path / "out"), 1, 3000, 1000, tokenizer=str(tmp_path / "small.json"))
    )
    assert manifest.tokenizer == tokenizer.statement()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == text
    wanted = [t for document in TEXTS for t in (tokenizer.end_of_text, *tokenizer.encode(document))]
    assert stream(tmp_path / "out").tolist() == wanted
    shards = open_local(str(tmp_path / "out"))
    found = shards.open_tokenizer()
    assert found is not None
    assert found.statement() == tokenizer.statement()
    opened = [slot.load() for slot in (*shards.val, *shards.train)]
    assert sum(len(shard.document_starts()) for shard in opened) == len(TEXTS)
    assert {shard.format.name for shard in opened} == {"llm.c"}
    with pytest.raises(UserError, match=r"holds another preparation: tokenizer was small .*, is gpt2"):
        prepare(PrepareKeys(str(texts), str(tmp_path / "out"), 1, 3000, 1000))
    (tmp_path / "out" / "tokenizer.json").write_text(text + " ")
    with pytest.raises(ShardError, match=r"its tokenizer\.json is not the stated one"):
        open_local(str(tmp_path / "out")).open_tokenizer()


@pytest.mark.parametrize("tasks", [1, 2])
def test_ids_beyond_uint16_have_shards_of_uint32(tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = json.loads(train_bpe(iter(TEXTS), 300))
    tree["model"]["vocab"]["Ġthe"] = 70_000  # the most frequent token has an id that uint16 cannot hold
    (tmp_path / "wide.json").write_text(json.dumps(tree))
    for module in ("parts", "prepare"):
        name = f"src.datamodules.prepare.{module}.encode_chunks"
        monkeypatch.setattr(name, lambda chunks, n, path: ((c, encode(c, path)) for c in chunks))
    source = jsonl(tmp_path / "texts.jsonl")
    prepare(
        PrepareKeys(
            str(source), str(tmp_path / "out"), 1, 3000, 1000, tokenizer=str(tmp_path / "wide.json"), tasks=tasks
        )
    )
    tokenizer = ByteLevelTokenizer("wide", (tmp_path / "wide.json").read_text())
    wanted = [t for document in TEXTS for t in (tokenizer.end_of_text, *tokenizer.encode(document))]
    assert max(wanted) == 70_000
    assert stream(tmp_path / "out").tolist() == wanted
    shards = open_local(str(tmp_path / "out"))
    assert {(slot.load().format.name, slot.load().format.end_of_text) for slot in shards.train} == {("Llama-3", 0)}


def test_a_tokenizer_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    texts = jsonl(tmp_path / "texts.jsonl")
    with pytest.raises(UserError, match=r"prepare\.tokenizer=gpt3 is neither gpt2, a file or folder"):
        prepare(PrepareKeys(str(texts), str(tmp_path / "out"), 1, 3000, 1000, tokenizer="gpt3"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", [None, 0])
@pytest.mark.parametrize(
    ("output", "words"), [("texts", "is prepare.source="), ("texts/deep/shards", "lies inside prepare.source=")]
)
def test_an_output_inside_the_source_is_an_error_before_anything_is_written(
    output: str, words: str, task: int | None, tmp_path: Path
) -> None:
    """Its manifest and list of bad documents would be documents when the preparation is run again."""
    (tmp_path / "texts").mkdir()
    jsonl(tmp_path / "texts/a.jsonl")
    keys = PrepareKeys(str(tmp_path / "texts"), str(tmp_path / output), 1, 3000, 1000, task=task)
    with pytest.raises(UserError, match=f"{words}.*; give a folder outside"):
        prepare(keys) if task is None else prepare_task(keys)
    assert [path.name for path in (tmp_path / "texts").rglob("*")] == ["a.jsonl"]


def test_a_hidden_folder_of_the_source_may_hold_the_shards(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    jsonl(tmp_path / "texts/a.jsonl")
    first = prepared(tmp_path / "texts", tmp_path / "texts/.shards")
    assert prepared(tmp_path / "texts", tmp_path / "texts/.shards") == first


def test_a_saved_data_set_may_hold_the_shards_made_of_it(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset(pa.table({"text": ["one text", "another text"]})).save_to_disk(tmp_path / "set")
    reject_output_inside("prepare", str(tmp_path / "set"), tmp_path / "set/shards")
