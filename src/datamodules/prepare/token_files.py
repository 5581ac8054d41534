"""Files of token ids that other projects write, as documents.

    .ds     datatrove: ids; `<file>.index` holds the ends of the documents, `<file>.metadata` the width of an id
    .npy    OLMo and Dolma: ids without a header; or numpy's own format
    .idx    Megatron: the index of the ids in the `.bin` file of the same name

Where a file does not state its documents, they end after each end-of-text id. Ids of a file that does not state its
width have that of the tokenizer: two bytes up to 65,536 ids, else four.

Source: huggingface/datatrove @ 03a9d9a (pipeline/tokens/tokenizer.py), allenai/OLMo @ 0b2af8c
(olmo/data/memmap_dataset.py), NVIDIA/Megatron-LM @ 00caa53 (megatron/core/datasets/indexed_dataset.py).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.datamodules.prepare.documents import Chunk, Cursor
from src.datamodules.tokenization.base import Tokenizer
from src.errors import UserError

KINDS = (".ds", ".npy", ".idx")
#: Type of the ids in a row of a chunk.
ROW_DTYPE = "<u4"
#: Ids of one chunk, and of one step of a search for ends of documents.
CHUNK_IDS, SEARCH_IDS = 1 << 19, 1 << 24
MEGATRON_HEADER = b"MMIDIDX\x00\x00"
#: Bytes before the lengths: header, version (uint64), type (uint8), numbers of sequences and of documents (uint64).
MEGATRON_HEAD = len(MEGATRON_HEADER) + struct.calcsize("<QBQQ")
MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}

Array = NDArray[Any]  # of the integers that a file holds


@dataclass(frozen=True)
class IdForm:
    """Form of ids that a file does not state: numpy's type of an id, and the id that ends a document."""

    dtype: str
    end_of_text: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "IdForm":
        """Return the form of the ids of a tokenizer."""
        return cls(np.dtype(tokenizer.dtype).newbyteorder("<").str, tokenizer.end_of_text)


def is_token_file(path: Path) -> bool:
    """Return whether the name states one of the formats."""
    return path.suffix in KINDS


def is_part(path: Path) -> bool:
    """Return whether a file belongs to one of the formats and is read with it."""
    return path.suffix in (".index", ".metadata") or (path.suffix == ".bin" and path.with_suffix(".idx").is_file())


def files_of(path: Path) -> list[Path]:
    """Return the file and, if it is an index, the file of the ids.

    Raises:
        UserError: the file of the ids is missing.
    """
    if path.suffix != ".idx":
        return [path]
    ids = path.with_suffix(".bin")
    if not ids.is_file():
        raise UserError(f"{path} is the index of {ids.name}, which is not beside it; fetch it")
    return [path, ids]


def token_chunks(path: Path, name: str, cursor: Cursor, form: IdForm | None) -> Iterator[Chunk]:
    """Yield the documents of a file from a cursor on, `{}` for the start; their shares are of this file.

    Args:
        path, name: the file, and its name in the names of rows.
        cursor: position of a chunk.
        form: form of ids that the file does not state; None if the source must hold text.

    Raises:
        UserError: the file is damaged, lacks a file that belongs to it, or holds ids although the source must hold text.
    """
    if form is None:
        raise UserError(f"{path} holds token ids; give files of text")
    try:
        ids, starts, ends = _open(path, form)
    except (OSError, ValueError, struct.error, IndexError) as error:
        raise UserError(f"{path}: damaged or in another form ({error}); fetch it again") from error
    # A document that is nothing but an end-of-text id is none.
    at = np.flatnonzero(
        (ends - starts > 1) | ((ends > starts) & (ids[np.minimum(starts, len(ids) - 1)] != form.end_of_text))
    )
    starts, ends = starts[at], ends[at]
    sizes = np.cumsum(ends - starts)
    row = int(cursor.get("row", 0))
    while row < len(starts):
        before = int(sizes[row - 1]) if row else 0
        end = max(row + 1, int(np.searchsorted(sizes, before + CHUNK_IDS, side="right")))
        rows: list[bytes | str | None] = [
            ids[start:stop].astype(ROW_DTYPE).tobytes()
            for start, stop in zip(starts[row:end], ends[row:end], strict=True)
        ]
        share = float(sizes[end - 1] / sizes[-1])
        yield Chunk({"row": row}, name, row + 1, rows, None, None, False, share, holds_ids=True)
        row = end


def _open(path: Path, form: IdForm) -> tuple[Array, Array, Array]:
    """Return the ids of a file, memory-mapped, and the starts and ends of its documents."""
    if path.suffix == ".idx":
        return _open_megatron(path)
    if path.suffix == ".npy":
        ids = _open_npy(path, form.dtype)
        ends = None
    else:
        ids = _map(path, _datatrove_dtype(path, form.dtype))
        index = path.with_name(f"{path.name}.index")
        ends = np.fromfile(index, dtype="<u8").astype(np.int64) if index.is_file() else None
        if ends is not None and (len(ends) == 0 or ends[-1] != len(ids) or (np.diff(ends) < 0).any()):
            raise ValueError(f"{index.name} does not end at the {len(ids)} ids of the file")
    if ends is None:
        ends = _find_ends(ids, form.end_of_text)
    return ids, np.concatenate(([0], ends[:-1])), ends


def _map(path: Path, dtype: str) -> Array:
    size, width = path.stat().st_size, np.dtype(dtype).itemsize
    if size == 0 or size % width:
        raise ValueError(f"its {size} bytes are not a whole number of ids of {width} bytes")
    return np.memmap(path, dtype=dtype, mode="r")


def _open_npy(path: Path, dtype: str) -> Array:
    with path.open("rb") as file:
        has_header = file.read(6) == b"\x93NUMPY"
    if not has_header:
        return _map(path, dtype)
    ids: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        raise ValueError(f"it holds {ids.dtype} of shape {list(ids.shape)}, not a row of ids")
    return ids


def _datatrove_dtype(path: Path, dtype: str) -> str:
    """Return the type of ids that the metadata states, `<tokenizer>|<bytes>` in its first line."""
    metadata = path.with_name(f"{path.name}.metadata")
    stated = metadata.read_text().partition("\n")[0].rpartition("|")[2] if metadata.is_file() else ""
    return f"<u{int(stated)}" if stated in ("2", "4") else dtype


def _open_megatron(path: Path) -> tuple[Array, Array, Array]:
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    if bytes(raw[: len(MEGATRON_HEADER)]) != MEGATRON_HEADER:
        raise ValueError("it has no header of Megatron's index")
    version, code, n_sequence, n_document = struct.unpack("<QBQQ", bytes(raw[len(MEGATRON_HEADER) : MEGATRON_HEAD]))
    if version != 1 or code not in MEGATRON_DTYPES:
        raise ValueError(f"version {version} with ids of type {code} is not known")
    at = MEGATRON_HEAD
    lengths = np.frombuffer(raw, "<i4", n_sequence, at).astype(np.int64)
    pointers = np.frombuffer(raw, "<i8", n_sequence, at + 4 * n_sequence)
    documents = np.frombuffer(raw, "<i8", n_document, at + 12 * n_sequence)
    ids = _map(path.with_suffix(".bin"), MEGATRON_DTYPES[code])
    width = ids.dtype.itemsize
    ends = np.cumsum(lengths)
    if (pointers != (ends - lengths) * width).any() or (n_sequence and ends[-1] != len(ids)):
        raise ValueError("its sequences are not those of the .bin file")
    bounds = np.concatenate(([0], ends))[documents]  # documents begin with sequence 0 and end with the last
    return ids, bounds[:-1], bounds[1:]


def _find_ends(ids: Array, end_of_text: int) -> Array:
    """Return the positions after the end-of-text ids, and the end of the ids."""
    found = [
        np.flatnonzero(ids[first : first + SEARCH_IDS] == end_of_text) + first + 1
        for first in range(0, len(ids), SEARCH_IDS)
    ]
    ends = np.concatenate(found)
    return ends if len(ends) and ends[-1] == len(ids) else np.append(ends, len(ids))
