"""Token files of other projects give the shards that their texts give.

The files are written here by the formats' definitions: datatrove's `TokenizedFile`, OLMo's memory map, Megatron's
`IndexedDataset` (commits in `src/datamodules/prepare/token_files.py`).
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from src.datamodules.prepare import token_files
from src.datamodules.prepare.prepare import PrepareKeys, prepare
from src.datamodules.prepare.sources import open_source
from src.datamodules.prepare.tokenize_pool import encode
from src.datamodules.shards.manifest import Manifest
from src.datamodules.tokenizer import END_OF_TEXT, gpt2_encoding
from src.errors import UserError

TEXTS = [f"Document {i}: " + f"the {i * 7} cats' naïve 猫. " * (i % 7 + 1) for i in range(40)]
DOCUMENTS = [gpt2_encoding().encode_ordinary(text) for text in TEXTS]
ENDED = [[*ids, END_OF_TEXT] for ids in DOCUMENTS]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode without processes, in small chunks."""
    monkeypatch.setattr(token_files, "CHUNK_IDS", 100)
    monkeypatch.setattr(token_files, "SEARCH_IDS", 64)
    for module in ("parts", "prepare"):
        monkeypatch.setattr(
            f"src.datamodules.prepare.{module}.encode_chunks",
            lambda chunks, n, at: ((c, encode(c, at)) for c in chunks),
        )


def prepared(source: Path, output: str = "out", **keys: object) -> Manifest:
    given = {"processes": 1, "shard_tokens": 300, "val_tokens": 200, **keys}
    return prepare(PrepareKeys(source=str(source), output=str(source.parent / output), **given))  # type: ignore[arg-type]


def write_datatrove(folder: Path, dtype: str = "<u2", index: bool = True) -> None:
    flat = np.concatenate(ENDED).astype(dtype)
    (folder / "00000_00000_shuffled.ds").write_bytes(flat.tobytes())
    if index:
        ends = np.cumsum([len(ids) for ids in ENDED])
        (folder / "00000_00000_shuffled.ds.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    (folder / "00000_00000_shuffled.ds.metadata").write_text(f"gpt2|{np.dtype(dtype).itemsize}\n{len(flat)}\n1 T")


def write_olmo(folder: Path) -> None:
    np.concatenate(ENDED).astype("<u2").tofile(folder / "part-0-00000.npy")
    (folder / "part-0-00000.csv.gz").write_bytes(b"not a document")


def write_megatron(folder: Path, dtype: str = "<i4", code: int = 4) -> None:
    """Write each document as two sequences; Megatron's own writer makes one for each sentence, if asked to."""
    sequences = [part for ids in ENDED for part in (ids[:3], ids[3:])]
    np.concatenate(sequences).astype(dtype).tofile(folder / "text_document.bin")
    lengths = [len(part) for part in sequences]
    width = np.dtype(dtype).itemsize
    pointers = [width * sum(lengths[:i]) for i in range(len(lengths))]
    documents = [2 * i for i in range(len(ENDED) + 1)]
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(documents))
    tail = (
        np.array(lengths, "<i4").tobytes() + np.array(pointers, "<i8").tobytes() + np.array(documents, "<i8").tobytes()
    )
    (folder / "text_document.idx").write_bytes(head + tail)


def write_parquet(folder: Path) -> None:
    parquet.write_table(pa.table({"ids": DOCUMENTS, "n": [len(ids) for ids in DOCUMENTS]}), folder / "a.parquet")


def write_lines(folder: Path) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps({"doc": {"ids": ids}}) + "\n" for ids in ENDED))


FORMS: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "datatrove": (write_datatrove, None),
    "datatrove of four bytes": (lambda folder: write_datatrove(folder, "<u4"), None),
    "datatrove without index": (lambda folder: write_datatrove(folder, index=False), None),
    "olmo": (write_olmo, None),
    "numpy": (lambda folder: np.save(folder / "a.npy", np.concatenate([[END_OF_TEXT], *ENDED]).astype("<i8")), None),
    "megatron": (write_megatron, None),
    "megatron of two bytes": (lambda folder: write_megatron(folder, "<u2", 8), None),
    "parquet": (write_parquet, "ids"),
    "json lines": (write_lines, "doc.ids"),
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_give_the_shards_of_their_texts(form: str, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "ids").mkdir()
    write, field = FORMS[form]
    write(tmp_path / "ids")
    of_texts = prepared(tmp_path / "texts", "a")
    of_ids = prepared(tmp_path / "ids", "b", tokens_field=field)
    assert [shard.sha256 for shard in of_ids.shards] == [shard.sha256 for shard in of_texts.shards]
    assert len(of_ids.shards) > 3
    assert of_ids.documents == len(TEXTS)
    assert of_ids.bad_documents == {}
    assert of_ids.source.get("tokens_field") == field
    by_tasks = prepared(tmp_path / "ids", "c", tokens_field=field, tasks=2)
    assert by_tasks.hash() == of_ids.hash()


def test_reading_starts_again_at_any_chunk(tmp_path: Path) -> None:
    write_megatron(tmp_path)
    source = open_source(str(tmp_path), None, token_files.IdForm("<u2", END_OF_TEXT))
    chunks = list(source.chunks({}))
    assert len(chunks) > 5
    for i, chunk in enumerate(chunks):
        assert [c.rows for c in source.chunks(chunk.cursor)] == [c.rows for c in chunks[i:]]
    assert chunks[-1].share == 1.0
    before = source.identity()["revision"]
    raw = bytearray((tmp_path / "text_document.bin").read_bytes())
    raw[0] ^= 1
    (tmp_path / "text_document.bin").write_bytes(raw)
    assert open_source(str(tmp_path)).identity()["revision"] != before


def test_documents_without_ids_are_counted_or_left_out(tmp_path: Path) -> None:
    flat = [END_OF_TEXT, END_OF_TEXT, *ENDED[0], END_OF_TEXT, *ENDED[1], *DOCUMENTS[2]]
    np.array(flat, "<u2").tofile(tmp_path / "a.npy")
    manifest = prepared(tmp_path / "a.npy", val_tokens=10)
    assert (manifest.documents, manifest.bad_documents) == (3, {})
    lines = [{"ids": ENDED[0] * 9}, {"ids": []}, {"ids": [END_OF_TEXT]}, {"ids": "1 2"}, {"text": "a"}, {"ids": [[1]]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = prepared(tmp_path / "a.jsonl", "b", tokens_field="ids", val_tokens=10)
    assert manifest.documents == 1
    assert manifest.bad_documents == {"empty": 2, "ids is not a list of ids": 3}


def test_what_is_not_as_it_says_is_one_sentence(tmp_path: Path) -> None:
    def refused(words: str, name: str, **keys: object) -> None:
        with pytest.raises(UserError, match=words) as caught:
            prepared(tmp_path / name, f"out-{name}-{len(keys)}-{len(words)}", **keys)
        assert "\n" not in str(caught.value)

    np.array([1, 2, 60000], "<u2").tofile(tmp_path / "other.npy")
    refused(
        r"other\.npy:1 holds id 60000, but prepare\.tokenizer=gpt2 has the ids 0 to 50256; give the tok", "other.npy"
    )
    (tmp_path / "odd.npy").write_bytes(b"123")
    refused(
        r"odd\.npy: damaged or in another form \(its 3 bytes are not a whole number of ids of 2 bytes\); fetch it again",
        "odd.npy",
    )
    np.save(tmp_path / "floats.npy", np.zeros(3))
    refused(r"it holds float64 of shape \[3\], not a row of ids", "floats.npy")
    (tmp_path / "m").mkdir()
    write_megatron(tmp_path / "m")
    (tmp_path / "m/text_document.bin").write_bytes(b"\0" * 8)
    refused("its sequences are not those of the .bin file", "m")
    (tmp_path / "m/text_document.bin").unlink()
    refused(r"text_document\.idx is the index of text_document\.bin, which is not beside it; fetch it", "m")
    (tmp_path / "d").mkdir()
    write_datatrove(tmp_path / "d")
    (tmp_path / "d/00000_00000_shuffled.ds.index").write_bytes(struct.pack("<Q", 7))
    refused(r"shuffled\.ds\.index does not end at the \d+ ids of the file", "d")
    write_parquet(tmp_path)
    refused(r"column ids holds list<.*>; for token ids give prepare\.tokens_field=ids", "a.parquet", text_field="ids")
    refused(r"column n holds int64, not lists of token ids; see prepare\.tokens_field", "a.parquet", tokens_field="n")
    (tmp_path / "a.txt").write_text("text")
    refused(r"a\.txt holds text, not token ids; leave prepare\.tokens_field out", "a.txt", tokens_field="ids")
    with pytest.raises(UserError, match=r"other\.npy holds token ids; give files of text"):
        list(open_source(str(tmp_path / "other.npy")).chunks({}))
