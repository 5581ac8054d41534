"""Atomic files and folders."""

from pathlib import Path

import pytest

from src.files import atomic_folder, drop_rows_after, flatten, format_bytes, read_rows, sha256_file, write_atomic


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_atomic(target, "old")
    write_atomic(target, b"new")
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_bytes_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_atomic(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(target, "\ud800")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def write_half(target: Path) -> None:
    with atomic_folder(target) as part:
        (part / "x").write_text("x")
        raise RuntimeError("half way")


def test_a_folder_appears_only_when_its_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(RuntimeError, match="half way"):
        write_half(target)
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(target) as part:
        (part / "x").write_text("x")
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["x"]


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"), atomic_folder(target) as part:
        (part / "x").write_text("x")
    assert [p.name for p in target.iterdir()] == ["mine"]


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize("tail", ["", "\n", '\n{"ste', '\n{"step": 4}\n'])
def test_rows_are_cut_in_place(tail: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    kept = '{"step": 1, "x":2}\n{"step": 3}'  # not as json.dumps writes it, so a rewritten file would differ
    path.write_text(kept + tail)
    before = path.stat().st_ino
    drop_rows_after(path, 3)
    assert (path.read_text(), path.stat().st_ino) == (kept + "\n", before)
    drop_rows_after(path, 2)
    assert read_rows(path) == [{"step": 1, "x": 2}]
    drop_rows_after(path, 0)
    assert path.read_bytes() == b""
    drop_rows_after(tmp_path / "none", 1)


def test_nested_keys_are_joined_by_dots() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None, "f": {}}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_byte_sizes_have_the_largest_unit_that_fits() -> None:
    sizes = [2**19, 2**30 - 2**20, 1.5 * 2**30, 500 * 2**40]
    assert [format_bytes(size) for size in sizes] == ["0.5 MiB", "1023.0 MiB", "1.50 GiB", "500.0 TiB"]
