"""Files: atomic writes and folders, hashes, JSON objects and rows.

A file is written beside its target, forced to disk and renamed, so it is whole or absent. Files that grow contain one
JSON object a line, of which the last may be cut where a process was killed. Any room may import this module.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Root of the project, and its configuration groups.
ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data`; readers see the old bytes or the new ones."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    raw = data.encode() if isinstance(data, str) else data
    try:
        with part.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json(path: Path, tree: object) -> None:
    """Replace `path` by `tree` as indented JSON, atomically."""
    write_atomic(path, json.dumps(tree, indent=2) + "\n")


def fsync_folder(folder: Path) -> None:
    """Force a folder's entries (new names, renames) to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, renamed to `target` when the block ends without an error.

    Raises:
        FileExistsError: `target` exists at the end and is not empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield part
        part.chmod(0o755)
        part.rename(target)
    except OSError as error:
        if target.exists():
            raise FileExistsError(f"{target} exists already and is not empty") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    fsync_folder(target.parent)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is the pointer that Git LFS leaves where its content was not fetched."""
    if path.stat().st_size > 1024:
        return False
    return path.read_bytes().startswith(b"version https://git-lfs.github.com/spec/")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: the file contains no JSON object.
    """
    found = _parse(path.read_bytes())
    if found is None:
        raise ValueError(f"{path} is not a JSON object; restore it or leave the folder out")
    return found


def scan_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a JSON lines file without a cut last one, each with the position of its end in bytes.

    Raises:
        ValueError: a row other than the last is not a JSON object with a `step`.
    """
    if not path.exists():
        return
    end, cut = 0, 0  # `cut` is the number of the line that is not a row, which has to be the last
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if cut:
                raise ValueError(f"{path}, line {cut}: not a JSON object with a step; take the line out")
            row = _parse(line)
            end += len(line)
            if row is not None and type(row.get("step")) is int:
                yield end, row
            else:
                cut = number


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON lines file without a cut last one; an empty list where there is no file.

    Raises:
        ValueError: a row other than the last is not a JSON object with a `step`.
    """
    return [row for _, row in scan_rows(path)]


def drop_rows_after(path: Path, step: int) -> None:
    """Drop the rows after `step` and a cut last line of a JSON lines file, if there is one.

    Steps ascend over the rows, so the file is cut behind the last row that is kept.
    """
    if not path.exists():
        return
    end = 0
    for row_end, row in scan_rows(path):
        if row["step"] > step:
            break
        end = row_end
    with path.open("r+b") as file:
        file.truncate(end)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):  # the process was killed between a row and its newline
            file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one dict with dotted keys, such as `{"model.n_layer": 12}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes in MiB, GiB or TiB, such as `1.50 GiB`."""
    for size, unit, digits in ((2**40, "TiB", 1), (2**30, "GiB", 2)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.{digits}f} {unit}"
    return f"{n_bytes / 2**20:.1f} MiB"


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or a number of thousands of digits
        return None
    return found if isinstance(found, dict) else None
