"""Document files as people have them: every form gives the documents that it holds, or one sentence.

Covers `columns.py`, `csv_rows.py`, `discovery.py`, `json_array.py` and `first_rows.py` too. C4 ships `c4-train.*.json.gz`
(allenai/c4), Dolma and RedPajama `*.json.gz` and `*.json.zst` of JSON lines.
"""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from omegaconf import OmegaConf
from pyarrow import parquet

from src.datamodules.prepare import documents
from src.datamodules.prepare.columns import read_field
from src.datamodules.prepare.first_rows import choose_val_tokens
from src.datamodules.prepare.json_array import ArrayError, read_array
from src.datamodules.prepare.prepare import PrepareKeys, prepare
from src.datamodules.prepare.sources import open_source
from src.datamodules.prepare.tokenize_pool import encode
from src.datamodules.shards.format import TokenShard
from src.datamodules.shards.manifest import Manifest
from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenizer import END_OF_TEXT, gpt2_encoding
from src.errors import UserError

TEXTS = [f'Document {i}, "walks":\n\n' + f"the {i * 7} cats' naïve 猫. " * (i % 7 + 1) for i in range(40)]
BOM = "\ufeff"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 12345\n"


def lines(texts: list[str] = TEXTS, field: str = "text") -> str:
    return "".join(json.dumps({field: text}) + "\n" for text in texts)


def comma_separated(delimiter: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([["n", "text"], *enumerate(TEXTS)])
    return file.getvalue()


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenize without processes, in small chunks."""
    monkeypatch.setattr(documents, "CHUNK_BYTES", 700)
    for module in ("parts", "prepare"):
        monkeypatch.setattr(
            f"src.datamodules.prepare.{module}.encode_chunks",
            lambda chunks, n, at: ((c, encode(c, at)) for c in chunks),
        )


def prepared(source: Path, **keys: Any) -> Manifest:
    sizes: dict[str, Any] = {"shard_tokens": 900, "val_tokens": 300}
    return prepare(PrepareKeys(str(source), f"{source}-out", 1, **{**sizes, **keys}))


def stream(source: Path) -> list[int]:
    paths = sorted(Path(f"{source}-out").glob("*.bin"), key=lambda path: path.name.split("_")[2])
    return [int(token) for path in paths for token in TokenShard.open(path).tokens]


def expected(texts: list[str] = TEXTS) -> list[int]:
    return [token for text in texts for token in (END_OF_TEXT, *gpt2_encoding().encode_ordinary(text))]


FORMS: dict[str, bytes] = {
    "a.jsonl": (BOM + lines()).encode(),
    "c4-train.00000-of-01024.json.gz": gzip.compress(lines().encode()),
    "cc_en_head-0000.json.zst": pa.compress(lines().encode(), "zstd", asbytes=True),
    "two-frames.jsonl.zst": b"".join(pa.compress(part.encode(), "zstd", asbytes=True) for part in
                                     (lines(TEXTS[:20]), lines(TEXTS[20:]))),
    "two-members.json.gz": gzip.compress(lines(TEXTS[:20]).encode()) + gzip.compress(lines(TEXTS[20:]).encode()),
    "a.jsonl.bz2": bz2.compress(lines().encode()),
    "a.ndjson": lines().replace("\n", "\r\n").encode(),
    "array.json": json.dumps([{"text": text} for text in TEXTS], ensure_ascii=False).encode(),
    "indented-array.jsonl": (BOM + json.dumps([{"text": text} for text in TEXTS], indent=2)).encode(),
    "array.json.xz": lzma.compress(json.dumps([{"text": text} for text in TEXTS]).encode()),
    "indented-objects.json": "\n".join(json.dumps({"text": text}, indent=1) for text in TEXTS).encode(),
    "a.csv": comma_separated().encode(),
    "with-mark.csv": (BOM + comma_separated()).encode(),
    "a.tsv.gz": gzip.compress(comma_separated("\t").encode()),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_the_field_holds_the_same_documents(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMS[name])
    manifest = prepared(tmp_path / name)
    assert (manifest.documents, manifest.bad_documents) == (len(TEXTS), {})
    assert stream(tmp_path / name) == expected()
    # Any chunk can be read again from its cursor.
    source = open_source(str(tmp_path / name))
    chunks = list(source.chunks({}))
    assert len(chunks) > 3
    with closing(source.chunks(json.loads(json.dumps(chunks[2].cursor)))) as rest:  # type: ignore[type-var]
        again = next(rest)
    assert (again.rows, again.first_row) == (chunks[2].rows, chunks[2].first_row)


def test_a_text_file_starts_after_its_byte_order_mark(tmp_path: Path) -> None:
    text = " ".join(TEXTS)
    (tmp_path / "a.txt").write_text(BOM + text)
    prepared(tmp_path / "a.txt")
    assert stream(tmp_path / "a.txt") == expected([text])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_utf_16_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(lines(), encoding="utf-16")
    (tmp_path / "in" / "good.jsonl").write_text(lines())
    manifest = prepared(tmp_path / "in")
    assert (manifest.documents, manifest.bad_documents) == (len(TEXTS), {"UTF-16, not UTF-8": 1})


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "disk", "rows.csv"])
@pytest.mark.parametrize("field", ["content", "doc.text"])
def test_the_text_may_stand_in_another_field(name: str, field: str, tmp_path: Path) -> None:
    source = tmp_path / name
    rows = [{"content": text} if field == "content" else {"doc": {"text": text, "n": 1}} for text in TEXTS]
    if name == "rows.parquet":
        parquet.write_table(pa.table({key: [row[key] for row in rows] for key in rows[0]}), source, row_group_size=15)
    elif name == "disk":
        from datasets import Dataset

        Dataset(pa.table({key: [row[key] for row in rows] for key in rows[0]})).save_to_disk(source)
    elif name == "rows.csv":  # a column whose name has a dot
        with source.open("w", newline="") as file:
            csv.writer(file).writerows([[field], *([text] for text in TEXTS)])
    else:
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=rf"no (field|column) text.*give prepare\.text_field={field}$"):
        prepared(source)
    prepared(source, text_field=field)
    assert stream(source) == expected()


def test_a_folder_keeps_its_text_field(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text, "title": "A title"}) + "\n" for text in TEXTS))
    for first, second, words in (("text", "title", "None, is title"), ("title", "text", "title, is None")):
        prepare(PrepareKeys(str(source), f"{tmp_path}/{first}", 1, 300, 100, first))
        with pytest.raises(UserError, match=f"holds another preparation: text_field was {words}"):
            prepare(PrepareKeys(str(source), f"{tmp_path}/{first}", 1, 300, 100, second))


def test_several_fields_of_strings_are_listed_the_longest_first(tmp_path: Path) -> None:
    rows = [{"id": str(i), "url": "https://example.org", "body": text} for i, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"a\.jsonl: no field text in its first \d+ rows; give prepare.text_field=<one of "
                                        r"body, url, id>"):  # fmt: skip
        prepared(tmp_path / "a.jsonl")
    parquet.write_table(pa.table({"n": [1], "a": ["x"], "b": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column text; columns: n, a, b; give prepare.text_field=<one of a, b>"):
        prepared(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column n holds int64, not strings"):
        prepared(tmp_path / "a.parquet", text_field="n")


def test_a_name_with_a_dot_is_looked_for_as_it_is_first() -> None:
    assert read_field({"doc.text": "a", "doc": {"text": "b"}}, "doc.text") == (True, "a")
    assert read_field({"doc": {"text": None}}, "doc.text") == (True, None)
    assert read_field({"doc": "text"}, "doc.text") == (False, None)


def test_hidden_files_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / ".data"  # that the folder itself is hidden does not matter
    (source / ".cache").mkdir(parents=True)
    (source / "a.jsonl").write_text(lines())
    (source / ".cache" / "a.jsonl").write_text(lines())
    (source / "._a.jsonl").write_bytes(b"\x00\x05\x16\x07" + bytes(100))  # AppleDouble
    with caplog.at_level(logging.INFO, logger="src"):
        manifest = prepared(source)
    assert (manifest.documents, manifest.bad_documents) == (len(TEXTS), {})
    assert "skipped 2 hidden files, such as" in caplog.text


def test_suffixes_count_in_upper_case_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/A.JSONL.GZ").write_bytes(gzip.compress(lines().encode()))
    (tmp_path / "in/B.TXT").write_text("Last.")
    assert prepared(tmp_path / "in").documents == len(TEXTS) + 1


def test_files_are_looked_for_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text(lines())
    (tmp_path / "in/README.md").write_text("no document")
    with caplog.at_level(logging.INFO, logger="src"):
        prepared(tmp_path / "in", val_tokens="auto")
    assert caplog.text.count("skipped 1 files of other forms") == 1


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json.gz"])
def test_a_git_lfs_pointer_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.jsonl").write_text(lines())
    (tmp_path / "in" / name).write_text(LFS)
    with pytest.raises(UserError, match=rf"{name} is a Git LFS pointer, not the content; run git lfs pull"):
        prepared(tmp_path / "in")


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("objects/a")
    for source in (tmp_path, tmp_path / "a.jsonl"):
        with pytest.raises(UserError, match=r"a\.jsonl is a link to objects/a, which does not exist"):
            open_source(str(source))


def test_a_file_without_any_document_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    page = "<!DOCTYPE html>\n<html>\n<body>404</body></html>\n"
    for name, text in (("a", lines()), ("b", page), ("c", lines() + page), ("d", page), ("e", lines())):
        (tmp_path / "in" / f"{name}.jsonl").write_text(text)
    with caplog.at_level(logging.INFO, logger="src"):
        manifest = prepared(tmp_path / "in")
    assert manifest.bad_documents == {"not JSON": 9}
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"{name}.jsonl has no document with text (3 rows, the first: not JSON)" for name in "bd"
    ]


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.json", b'[{"text": "x"}, {"text": ', r"damaged \(value 2 of the array is not JSON, or cut off\)"),
        ("a.json", b'[{"a":' + b'{"a":' * 100_000, "nested too deeply|cut off"),
        ("a.csv", b'text\n"' + b"x" * 4000, r"damaged \(field larger than field limit \(3000\)\)"),
        ("a.csv", b"name,age\nx,1\n", "no column text in the first row, which must name the columns: name, age"),
        ("a.csv", b"", "has no document with text"),
        ("a.json", b"[]", "has no document with text"),
        ("a.json", b"", "has no document with text"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    name: str, raw: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 3000)
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=words):
        prepared(tmp_path / name)


def test_rows_that_are_not_utf_8_are_counted_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,caf\xe9\n2\n3,good\n\n")
    (tmp_path / "b.json").write_bytes(b'[{"text": "caf\xe9"}, {"text": "good"}]')
    (tmp_path / "c.jsonl").write_text(lines())
    manifest = prepared(tmp_path, text_field="text")
    assert manifest.bad_documents == {"empty": 1, "no column text": 1, "not UTF-8": 2}
    assert stream(tmp_path) == expected(["good", "good", *TEXTS])


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_values_of_an_array_are_found_wherever_blocks_end(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.datamodules.prepare.json_array.BLOCK", block)
    values: list[Any] = [{"a": [1, "]},{"]}, 12, "x,\n", {}, {"b": {"c": "猫"}}]
    found = [json.loads(row) for row in read_array(io.BytesIO(json.dumps(values).encode()), 1000)]
    assert found == values
    with pytest.raises(ArrayError, match="value 1 of the array"):
        list(read_array(io.BytesIO(b'[{"a": "' + b"x" * 9000), 1000))


@pytest.mark.parametrize(
    ("tokens", "share", "chosen"),
    [
        (500_000, 1.0, 50_000),  # a tenth, since the floor of 65,536 is more
        (1_000_000, 0.5, 65_536),
        (20_000_000, 1.0, 200_000),  # a hundredth
        (1_000_000, 1e-4, 100_000_000),  # FineWeb's sample of 10 billion: as published
        (1_000_000, None, 100_000_000),  # of unknown size
        (0, 1.0, 100_000_000),
        (3, 1.0, 1),
    ],
)
def test_the_validation_shard_is_a_share_that_fits(
    tokens: int, share: float | None, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Source:
        def chunks(self, cursor: dict[str, Any]) -> Any:
            chunk = documents.Chunk({}, "a", 1, [b"x" * (1 << 20)], None, None, False, share)
            return iter([chunk] if share == 1.0 else [chunk, chunk])

    encoded = type("Encoded", (), {"tokens": np.broadcast_to(np.uint16(1), tokens)})
    monkeypatch.setattr("src.datamodules.prepare.first_rows.encode_by", lambda _, chunk: encoded)
    assert choose_val_tokens(Source(), gpt2_tokenizer()) == chosen  # type: ignore[arg-type]


def test_a_small_corpus_needs_no_number_of_validation_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(lines())
    with caplog.at_level(logging.INFO, logger="src"):
        manifest = prepared(source, val_tokens="auto")
    total = len(expected())
    assert manifest.shards[0].tokens == total // 10
    assert f"prepare.val_tokens=auto: {total // 10:,} tokens of {total:,}" in caplog.text
    # The folder keeps its size, also one that was given.
    assert prepared(source, val_tokens="auto") == manifest
    for val_tokens in (300, "auto"):
        again = prepare(PrepareKeys(str(source), str(tmp_path / "given"), 1, 900, val_tokens))
        assert again.shards[0].tokens == 300


def test_the_shipped_default_fits_by_itself() -> None:
    shipped = OmegaConf.load(Path(__file__).parents[3] / "conf/task/prepare.yaml").prepare
    assert (shipped.val_tokens, shipped.text_field) == ("auto", "text")
