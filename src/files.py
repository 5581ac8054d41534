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


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: the file contains no JSON object.
    """
    found = _parse(path.read_bytes())
    if found is None:
        raise ValueError(f"{path} is not a JSON object; restore it or leave the folder out")
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON lines file without a cut last one; an empty list where there is no file.

    Raises:
        ValueError: a row other than the last is not a JSON object with a `step`.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    if lines and not lines[-1]:
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        row = _parse(line)
        if row is not None and type(row.get("step")) is int:
            rows.append(row)
        elif number < len(lines):
            raise ValueError(f"{path}, line {number}: not a JSON object with a step; take the line out")
    return rows


def drop_rows_after(path: Path, step: int) -> None:
    """Drop the rows after `step` and a cut last line of a JSON lines file, if there is one."""
    if path.exists():
        kept = [json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step]
        write_atomic(path, "".join(kept))


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
