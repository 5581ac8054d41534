"""Preparation by tasks: the bytes of one task for any number of them, despite kills; two starts share or are rejected.

Covers `assembly.py` too.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from omegaconf import OmegaConf
from pyarrow import parquet

from src.datamodules.prepare import documents, parts, sources
from src.datamodules.prepare.documents import Chunk
from src.datamodules.prepare.prepare import PrepareKeys, prepare, prepare_task
from src.datamodules.prepare.tokenize_pool import encode
from src.errors import UserError
from src.launch.folder_lock import lock_folder
from src.settings.sections import read_section

TEXTS = [f"Document {i} walks:\n\n" + f"the {i * 7} cats' naïve 猫. " * (i % 11 + 1) for i in range(60)]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenize without processes, in small chunks."""
    monkeypatch.setattr(documents, "CHUNK_BYTES", 700)
    monkeypatch.setattr(sources, "ROWS_AT_ONCE", 8)
    monkeypatch.setattr(sources, "PART_ROWS", 16)
    for module in ("parts", "prepare"):
        monkeypatch.setattr(
            f"src.datamodules.prepare.{module}.encode_chunks",
            lambda chunks, n, at: ((c, encode(c, at)) for c in chunks),
        )


def keys(source: Path | str, output: Path, tasks: int = 1, task: int | None = None, **changes: Any) -> PrepareKeys:
    return PrepareKeys(str(source), str(output), 1, 700, 300, tasks=tasks, task=task, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def files(folder: Path) -> Path:
    """Write files of every kind: names from rows and from `id`, rows without text, an empty file, a long text."""
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in [*TEXTS[:20], "", *TEXTS[20:25]]))
    (folder / "b.jsonl").write_bytes(b"")
    (folder / "c.txt").write_text(" ".join(TEXTS[25:40]))
    table = pa.table({"text": [*TEXTS[40:], None], "id": [f"doc{i}" for i in range(21)]})
    parquet.write_table(table, folder / "d.parquet", row_group_size=6)
    (folder / "e.jsonl").write_bytes(b'{"text": "cut\n{"text": 5}\n')
    return folder


def on_disk(folder: Path) -> Path:
    from datasets import Dataset

    Dataset(pa.table({"text": [*TEXTS[:30], "", *TEXTS[30:]]})).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("make", [files, on_disk])
def test_the_number_of_tasks_changes_no_byte(make: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    prepare(keys(source, tmp_path / "1"))
    want = contents(tmp_path / "1")
    assert len(want) > 6
    for tasks in (2, 3, 9):
        prepare(keys(source, tmp_path / f"{tasks}", tasks))
        assert contents(tmp_path / f"{tasks}") == want
    for task in (2, 0, 1):
        missing = prepare_task(keys(source, tmp_path / "machines", 3, task))
        assert not (tmp_path / "machines/manifest.json").exists()
    assert missing == 0
    prepare(keys(source, tmp_path / "machines", 3))
    assert contents(tmp_path / "machines") == want


def test_the_parts_of_a_data_set_on_the_hub_are_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = pa.table({"text": [*TEXTS[:30], "", *TEXTS[30:]]})  # without names: rows are numbered through all files
    (tmp_path / "hub").mkdir()
    for i in range(3):
        parquet.write_table(table.slice(21 * i, 21), tmp_path / "hub" / f"train-{i}.parquet", row_group_size=10)
    original = datasets.load_dataset

    def load_dataset(name: str, config: str | None, **keys: Any) -> Any:
        del keys["revision"]
        return original("parquet", data_files=str(tmp_path / "hub" / "*.parquet"), **keys)

    class Api:
        def dataset_info(self, name: str, revision: str | None) -> Any:
            return type("Info", (), {"sha": "c0ffee"})()

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    for tasks in (1, 2):
        prepare(keys("hf://datasets/a/b", tmp_path / f"{tasks}", tasks))
    assert contents(tmp_path / "2") == contents(tmp_path / "1")
    assert b"hf://datasets/a/b:31" in contents(tmp_path / "2")["bad_documents.jsonl"]


class Killed(BaseException):
    """Stand-in for kill -9: no handler cleans up after it."""


def test_a_killed_task_repeats_its_unfinished_part_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, read = files(tmp_path / "source"), tmp_path / "out", list[str]()
    prepare(keys(source, tmp_path / "1"))

    def kill_in_d(chunks: Iterable[Chunk], n: int, path: Path | None) -> Any:
        for i, chunk in enumerate(chunks):
            if chunk.name == "d.parquet" and i > 2:
                raise Killed
            yield chunk, encode(chunk)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "encode_chunks", kill_in_d)
        with pytest.raises(Killed):
            prepare(keys(source, out, 2))
    assert (out / parts.PARTS / ".000003.tokens.part").exists()
    before = {p: p.stat().st_mtime_ns for p in (out / parts.PARTS).glob("*.tokens")}
    assert sorted(p.name for p in before) == ["000000.tokens", "000001.tokens", "000002.tokens", "000004.tokens"]

    def note(chunks: Iterable[Chunk], n: int, path: Path | None) -> Any:
        for chunk in chunks:
            read.append(chunk.name)
            yield chunk, encode(chunk)

    monkeypatch.setattr(parts, "encode_chunks", note)
    assert prepare_task(keys(source, out, 5, 3)) == 0  # as one of another number of tasks
    assert set(read) == {"d.parquet"}
    assert {p: p.stat().st_mtime_ns for p in before} == before
    prepare(keys(source, out, 2))
    assert contents(out) == contents(tmp_path / "1")


def test_writing_the_shards_continues_from_the_parts_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, kills = files(tmp_path / "source"), tmp_path / "out", 0
    prepare(keys(source, tmp_path / "1"))
    from src.datamodules.prepare.writer import ShardFile

    original = ShardFile.close
    for at in (1, 2, 1):
        countdown = [at]

        def close(self: Any, left: list[int] = countdown) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return original(self)

        with monkeypatch.context() as patch:
            patch.setattr(ShardFile, "close", close)
            try:
                prepare(keys(source, out, 3))
            except Killed:
                kills += 1
    assert kills == 3
    prepare(keys(source, out, 1))
    assert contents(out) == contents(tmp_path / "1")


def test_a_second_start_of_a_task_or_of_the_whole_is_rejected(tmp_path: Path) -> None:
    source, out = files(tmp_path / "source"), tmp_path / "out"
    with (
        lock_folder(out / parts.PARTS / "task-001"),
        pytest.raises(UserError, match=r"task-001 is in use by process \d+ on"),
    ):
        prepare_task(keys(source, out, 3, 1))
    with lock_folder(out), pytest.raises(UserError, match=r"out is in use by process \d+ on"):
        prepare(keys(source, out, 3))
    with lock_folder(out / parts.PARTS / "task-001"):
        assert prepare_task(keys(source, out, 3, 0)) > 0  # another task shares the work


def test_tasks_that_end_without_their_parts_are_named(tmp_path: Path) -> None:
    source, out = files(tmp_path / "source"), tmp_path / "out"

    def run_tasks() -> None:
        prepare_task(keys(source, out, 3, 1))

    words = r"tasks 0, 2 of 3 ended without 3 of 5 parts; complete parts are kept, run again to continue"
    with pytest.raises(UserError, match=words):
        prepare(keys(source, out, 3), run_tasks)
    assert not (out / "manifest.json").exists()


def test_other_documents_or_a_preparation_without_tasks_are_not_continued(tmp_path: Path) -> None:
    source, out = files(tmp_path / "source"), tmp_path / "out"
    prepare_task(keys(source, out, 3, 1))
    (source / "c.txt").write_text("Other.")
    with pytest.raises(UserError, match="holds another preparation: revision was"):
        prepare_task(keys(source, out, 3, 2))
    shutil.rmtree(out)
    out.mkdir()
    journal = {"asked": {}, "shards": [{"name": "fineweb_val_000000.bin"}]}
    asked = {"address": "source", "files": 5, "revision": sources.open_source(str(source)).identity()["revision"]}
    journal["asked"] = {**asked, "shard_tokens": 700, "val_tokens": 300}
    (out / ".prepare.json").write_text(json.dumps(journal))
    with pytest.raises(UserError, match=r"started with prepare\.tasks=1 and has 1 complete shards; continue with"):
        prepare(keys(source, out, 3))


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    source, out = files(tmp_path / "source"), tmp_path / "out"
    for task in range(2):
        prepare_task(keys(source, out, 2, task))
    path = out / parts.PARTS / "000000.tokens"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"000000\.tokens is damaged .*remove it and run again"):
        prepare(keys(source, out, 2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": 3, "tasks": 3}, r"prepare\.task must be below prepare\.tasks=3, got 3; the first is 0"),
        ({"task": 0, "executor": "slurm"}, r"prepare\.task=0 needs prepare\.executor=local, got slurm"),
        ({"tasks": 0}, r"prepare\.tasks must be .*>= 1, got 0"),
        ({"executor": "ray"}, r"prepare\.executor must be .*local.*slurm.*, got 'ray'"),
    ],
)
def test_keys_out_of_bounds_are_named(changes: dict[str, Any], words: str) -> None:
    values = {"source": "a", "output": "b", "processes": 1, "shard_tokens": 9, "val_tokens": 9, **changes}
    with pytest.raises(ValueError, match=words):
        read_section("prepare", OmegaConf.create(values), PrepareKeys)
