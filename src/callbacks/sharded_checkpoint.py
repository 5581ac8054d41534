"""Sharded checkpoints: a folder in the format of torch.distributed.checkpoint, under the name of a one-file checkpoint.

    step00000040.ckpt/
        __<rank>_<n>.distcp, .metadata    the shards that each rank wrote, and where each tensor lies in them
        plain.pt                          everything else; a tensor in the shards is {"sharded": its key}
        manifest.sha256                   the SHA-256 of every file, in the format of sha256sum

Every rank writes its shards into a temporary folder; rank 0 renames it once all files are on disk. The content as read is
that of a one-file checkpoint, with whole tensors, so the number of ranks and the strategy may differ on resume. Nothing
but tensors and plain values is ever loaded: torch pickles `.metadata`, of which only its own description of tensors is
accepted.
"""

import contextlib
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from src.errors import CheckpointError, one_line
from src.files import fsync_folder, sha256_file, write_atomic

PLAIN, MANIFEST = "plain.pt", "manifest.sha256"
#: Key of the placeholder of a sharded tensor; its value is the tensor's key.
PLACEHOLDER = "sharded"
#: Classes that torch describes sharded tensors with.
DESCRIPTION = {
    *(
        f"torch.distributed.checkpoint.metadata.{name}"
        for name in ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex")
    ),
    *(f"torch.distributed.checkpoint.metadata.{name}" for name in ("_MEM_FORMAT_ENCODING", "StorageMeta")),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    *("torch.Size", "torch.serialization._get_layout"),
    *("pathlib.PosixPath", "pathlib._local.PosixPath"),
}


# ---- write


def write_sharded(checkpoint: dict[str, Any], target: Path) -> None:
    """Write a checkpoint whose tensors may be sharded; a collective operation.

    Args:
        checkpoint: what Lightning saves; its DTensors are written by all ranks, the rest by rank 0.
        target: folder to write; only rank 0's counts, since under a launcher every rank has a run folder of its own.

    Raises:
        CheckpointError: a file cannot be written; raised on every rank.
    """
    target = _agree_on(target)
    part = target.with_name(f".{target.name}.part")
    rank = distributed.get_rank()
    tensors: dict[str, Tensor] = {}
    plain = _extract_tensors(checkpoint, "", tensors)
    with _raise_on_all_ranks(target):
        if rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
    try:
        with _raise_on_all_ranks(target):
            save(tensors, storage_writer=FileSystemWriter(part))  # flushes each file to disk
        with _raise_on_all_ranks(target):
            if rank == 0:
                _write_flushed(part / PLAIN, plain)
            own = [*part.glob(f"__{rank}_*"), *([part / ".metadata", part / PLAIN] if rank == 0 else [])]
            lines = [f"{sha256_file(path)}  {path.name}\n" for path in own]
        gathered: list[list[str]] = [[] for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(gathered, lines)
        with _raise_on_all_ranks(target):
            if rank == 0:
                lines = sorted(line for found in gathered for line in found)
                absent = [name for line in lines if not (part / (name := line.split()[1])).is_file()]
                if absent:
                    raise FileNotFoundError(f"rank 0 does not see {', '.join(absent)}")
                write_atomic(part / MANIFEST, "".join(lines))  # flushes the folder's entries too
                replace_checkpoint(part, target)
                fsync_folder(target.parent)
    except BaseException:
        if rank == 0:
            shutil.rmtree(part, ignore_errors=True)
        raise


def _agree_on(target: Path) -> Path:
    """Return the path of rank 0."""
    paths = [str(target.absolute())]
    distributed.broadcast_object_list(paths)
    return Path(paths[0])


@contextlib.contextmanager
def _raise_on_all_ranks(target: Path) -> Iterator[None]:
    """Run a block on every rank; if it fails on one, raise on all, so that none waits for another."""
    reason = ""
    try:
        yield
    except Exception as error:
        reason = one_line(error)
    reasons: list[str] = [""] * distributed.get_world_size()
    distributed.all_gather_object(reasons, reason)
    failed = [f"rank {rank}: {text}" for rank, text in enumerate(reasons) if text]
    if failed:
        raise CheckpointError(f"{target} cannot be written: {failed[0]}")


def _extract_tensors(tree: Any, key: str, tensors: dict[str, Tensor]) -> Any:  # plain values and tensors
    """Return a tree with a placeholder for every sharded tensor, which is added to `tensors`."""
    if isinstance(tree, DTensor):
        tensors[key] = tree
        return {PLACEHOLDER: key}
    if isinstance(tree, dict):
        return type(tree)((name, _extract_tensors(value, f"{key}/{name}", tensors)) for name, value in tree.items())
    if isinstance(tree, list | tuple):
        return type(tree)(_extract_tensors(item, f"{key}/{i}", tensors) for i, item in enumerate(tree))
    return tree


def _write_flushed(path: Path, plain: object) -> None:
    with path.open("wb") as file:
        torch.save(plain, file)
        file.flush()
        os.fsync(file.fileno())


def replace_checkpoint(part: Path, target: Path) -> None:
    """Rename a checkpoint, a file or a folder, over what an earlier save or copy left under the name `target`."""
    if target.is_dir():
        shutil.rmtree(target)  # a folder cannot be renamed over another one
    elif part.is_dir():
        target.unlink(missing_ok=True)
    part.rename(target)


# ---- read


def read_sharded(folder: Path) -> dict[str, Any]:
    """Return a sharded checkpoint with whole tensors on the CPU, after every byte was checked.

    Raises:
        ValueError: a file is missing or damaged, or holds more than tensors and plain values.
    """
    hint = "give another checkpoint or start a new run"
    _check_manifest(folder, hint)
    try:
        plain: dict[str, Any] = torch.load(folder / PLAIN, map_location="cpu", weights_only=True)
        reader = _PlainReader(folder)
        stored = reader.read_metadata().state_dict_metadata
        tensors = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in stored.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as it is meant to be
            load(tensors, storage_reader=reader, no_dist=True)
        whole: dict[str, Any] = _insert_tensors(plain, tensors)
    except Exception as error:
        raise ValueError(f"{folder}: cannot be loaded ({type(error).__name__}: {one_line(error)}); {hint}") from error
    return whole


def _check_manifest(folder: Path, hint: str) -> None:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{folder}: not a whole checkpoint (no {MANIFEST}); {hint}")
    for line in manifest.read_text(encoding="utf-8").splitlines():
        sha256, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder}: not a whole checkpoint ({name} is missing); {hint}")
        if sha256_file(path) != sha256:
            raise ValueError(f"{folder}: damaged, the SHA-256 of {name} is not the one in {MANIFEST}; {hint}")


def _insert_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:  # plain values and tensors
    if isinstance(tree, dict):
        if tree.keys() == {PLACEHOLDER}:
            return tensors[tree[PLACEHOLDER]]
        return type(tree)((name, _insert_tensors(value, tensors)) for name, value in tree.items())
    if isinstance(tree, list | tuple):
        return type(tree)(_insert_tensors(item, tensors) for item in tree)
    return tree


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler of torch's description of sharded tensors, and of nothing else."""

    def find_class(self, module: str, name: str) -> Any:  # Any: the base class's
        if f"{module}.{name}" in DESCRIPTION:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a checkpoint")


class _PlainReader(FileSystemReader):
    """Reader of torch whose metadata may hold nothing but the description of tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # torch's signature
        path = Path(self.path) / ".metadata"
        with path.open("rb") as file:
            metadata: Metadata = _PlainUnpickler(file).load()
        return metadata
