"""Preparation of a folder of shards from documents: `task=prepare`.

Tokens are one sequence, an end-of-text token before each document; the first `val_tokens` are shard 0, the rest
shards of `shard_tokens`, the last one shorter. The result is independent of the number of processes and tasks and of
interruptions. One task writes the shards from the documents; several write parts (`parts.py`) first.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.bounds import CONFIG, PositiveInt
from src.datamodules.prepare.assembly import ShardAssembly
from src.datamodules.prepare.columns import Column
from src.datamodules.prepare.discovery import reject_output_inside
from src.datamodules.prepare.documents import Chunk, Cursor
from src.datamodules.prepare.first_rows import check_text_field, choose_val_tokens
from src.datamodules.prepare.parts import PARTS, missing_parts, read_parts, tokenize_parts
from src.datamodules.prepare.sources import Source, open_source
from src.datamodules.prepare.token_files import IdForm
from src.datamodules.prepare.tokenize_pool import Encoded, encode_chunks
from src.datamodules.prepare.writer import Journal, check_output
from src.datamodules.shards.format import choose_format
from src.datamodules.shards.manifest import JOURNAL, NAME, Manifest
from src.datamodules.tokenization.base import FILE, Tokenizer
from src.datamodules.tokenization.open import GPT2, open_tokenizer
from src.errors import UserError, one_line
from src.files import write_atomic
from src.launch.folder_lock import lock_folder

log = logging.getLogger(__name__)

#: The header's count is an int32.
ShardTokens = Annotated[int, Field(ge=1, le=2**31 - 1)]


@dataclass(frozen=True, config=CONFIG)
class PrepareKeys:
    """Keys of `prepare`.

    Args:
        source: a file, folder or pattern; a data set on disk; or `hf://datasets/<owner>/<name>[:<config>]`.
        output: the folder of shards.
        processes: tokenizer processes; auto uses every core.
        shard_tokens, val_tokens: tokens of a training shard and of the validation shard; auto: a share of the source.
        text_field: column or field of the text, `a.b` for the field b of a.
        tokens_field: column or field of token ids, which replaces the text; None reads text.
        executor: where the tasks run: in this process, one after the other, or in a job array of SLURM.
        tasks: number of tasks, which share the parts of the source.
        task: the only task to run, from 0 on; it writes no shards. None: every task, then the shards.
        sbatch: options of sbatch for the job array.
        tokenizer: gpt2, the name of a tiktoken encoding, a `tokenizer.json` or a folder with one.

    Raises:
        ValueError: a key of another type or out of its bounds, or keys that contradict each other.
    """

    source: str
    output: str
    processes: PositiveInt | Literal["auto"]
    shard_tokens: ShardTokens
    val_tokens: ShardTokens | Literal["auto"]
    text_field: Annotated[str, Field(min_length=1)] = "text"
    executor: Literal["local", "slurm"] = "local"
    tasks: PositiveInt = 1
    task: Annotated[int, Field(ge=0)] | None = None
    sbatch: tuple[str, ...] = ()
    tokenizer: str = GPT2
    tokens_field: Annotated[str, Field(min_length=1)] | None = None

    def __post_init__(self) -> None:
        if self.task is not None and self.task >= self.tasks:
            raise ValueError(f"prepare.task must be below prepare.tasks={self.tasks}, got {self.task}; the first is 0")
        if self.task is not None and self.executor != "local":
            raise ValueError(f"prepare.task={self.task} needs prepare.executor=local, got {self.executor}")

    def count_processes(self) -> int:
        """Return the number of tokenizer processes."""
        return len(os.sched_getaffinity(0)) if self.processes == "auto" else self.processes


def prepare(keys: PrepareKeys, run_tasks: Callable[[], None] | None = None) -> Manifest:
    """Write the shards that are missing, and the manifest.

    Args:
        keys: keys of the preparation.
        run_tasks: runs all tasks elsewhere and returns when they have ended; None runs them in this process.

    Raises:
        UserError: nothing to read, a folder of another preparation or in use, a full disk; complete shards stay valid.
    """
    folder = Path(keys.output)
    tokenizer = _open_tokenizer(keys.tokenizer)
    source = _open(keys, tokenizer)
    requested = _describe(folder, source, keys, tokenizer)
    with _report_disk(folder):
        if (folder / NAME).is_file():
            return _read_finished(folder, requested)
        with lock_folder(folder) as note:
            if note:
                log.warning("%s", note)
            if (folder / NAME).is_file():
                return _read_finished(folder, requested)
            journal = _open_journal(folder, source, requested, by_parts=keys.tasks > 1 or run_tasks is not None)
            path = _write_tokenizer(folder, tokenizer)
            if journal.shards:
                log.info("continuing after %d complete shards", len(journal.shards))
            if journal.by_parts:
                _run_tasks(folder, source, keys, path, run_tasks)

            def read_chunks(cursor: Cursor) -> Generator[tuple[Chunk, Encoded], None, None]:
                if journal.by_parts:
                    return read_parts(folder, source, cursor, choose_format(tokenizer.n_vocab))
                return encode_chunks(source.chunks(cursor), keys.count_processes(), path)

            return ShardAssembly(folder, journal, keys.source, keys.tokens_field or keys.text_field, tokenizer).write(
                read_chunks
            )


def prepare_task(keys: PrepareKeys) -> int:
    """Run the task `keys.task` and return the number of parts of all tasks that are still missing.

    Raises:
        UserError: as `prepare`; complete parts stay valid.
    """
    assert keys.task is not None  # the caller has chosen
    folder = Path(keys.output)
    tokenizer = _open_tokenizer(keys.tokenizer)
    source = _open(keys, tokenizer)
    requested = _describe(folder, source, keys, tokenizer)
    with _report_disk(folder):
        if (folder / NAME).is_file():
            _read_finished(folder, requested)
            return 0
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        _open_journal(folder, source, requested, by_parts=True)
        path = _write_tokenizer(folder, tokenizer)
        tokenize_parts(folder, source, keys.task, keys.tasks, keys.count_processes(), path)
        return len(missing_parts(folder, range(source.n_part)))


def _open_tokenizer(address: str) -> Tokenizer:
    try:
        return open_tokenizer(address)
    except ValueError as error:
        raise UserError(f"prepare.tokenizer={address} {one_line(error)}") from error


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> Path | None:
    """Write the tokenizer's file beside the shards and return its path; None for GPT-2's, which needs none."""
    content = tokenizer.content()
    if content is None:
        return None
    path = folder / FILE
    if not path.is_file() or path.read_bytes() != content.encode():
        write_atomic(path, content.encode())
    return path


def _run_tasks(
    folder: Path, source: Source, keys: PrepareKeys, path: Path | None, run_tasks: Callable[[], None] | None
) -> None:
    if not missing_parts(folder, range(source.n_part)):
        return
    if source.n_part < keys.tasks:
        log.warning(
            "the source has %d parts (files), so %d of %d tasks have nothing to do",
            *(source.n_part, keys.tasks - source.n_part, keys.tasks),
        )
    if run_tasks is not None:
        run_tasks()
    else:
        for task in range(keys.tasks):
            tokenize_parts(folder, source, task, keys.tasks, keys.count_processes(), path)
    missing = missing_parts(folder, range(source.n_part))
    if missing:
        tasks = sorted({number % keys.tasks for number in missing})
        raise UserError(
            f"prepare.output={folder}: tasks {', '.join(map(str, tasks))} of {keys.tasks} ended without "
            f"{len(missing)} of {source.n_part} parts; complete parts are kept, run again to continue"
        )


def _open(keys: PrepareKeys, tokenizer: Tokenizer) -> Source:
    reject_output_inside("prepare", keys.source, Path(keys.output))
    field = Column(keys.tokens_field or keys.text_field, keys.tokens_field is not None)
    return open_source(keys.source, field, IdForm.of(tokenizer))


def _describe(folder: Path, source: Source, keys: PrepareKeys, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what identifies this preparation; the size of the validation shard is chosen once for a folder."""
    own = {"text_field": keys.text_field} if keys.text_field != "text" else {}
    if keys.tokens_field is not None:
        own = {"tokens_field": keys.tokens_field}
    if sha256 := tokenizer.statement().get("sha256"):  # none for GPT-2's, the default of `_check_same`
        own["tokenizer"] = f"{tokenizer.name} {sha256}"
    requested = {**source.identity(), **own, "shard_tokens": keys.shard_tokens, "val_tokens": keys.val_tokens}
    if keys.val_tokens == "auto":
        known = Manifest.parse((folder / NAME).read_bytes(), str(folder / NAME)) if (folder / NAME).is_file() else None
        journal = Journal.read(folder)
        then = known.source if known else journal.asked if journal else {}
        requested["val_tokens"] = then.get("val_tokens") or choose_val_tokens(source, tokenizer)
    return requested


@contextmanager
def _report_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "is full" if full else f"cannot be written ({error.strerror})"
        raise UserError(
            f"prepare.output={folder}: the disk {what}; complete shards are kept, make room and run again to continue"
        ) from error


def _open_journal(folder: Path, source: Source, requested: dict[str, Any], *, by_parts: bool) -> Journal:
    """Return the journal of the folder, which is written where there is none."""
    journal = Journal.read(folder)
    check_output(folder, journal)
    if journal is not None:
        _check_same(folder, journal.asked, requested)
    else:
        check_text_field(source)
    if journal is None or (by_parts and not journal.by_parts):
        if journal is not None and journal.shards:
            raise UserError(
                f"prepare.output={folder} was started with prepare.tasks=1 and has {len(journal.shards)} complete "
                "shards; continue with prepare.tasks=1, or empty the folder"
            )
        journal = Journal(requested, by_parts=by_parts)
        journal.write(folder)
    return journal


def _read_finished(folder: Path, requested: dict[str, Any]) -> Manifest:
    manifest = Manifest.parse((folder / NAME).read_bytes(), str(folder / NAME))
    _check_same(folder, manifest.source, requested)
    (folder / JOURNAL).unlink(missing_ok=True)  # killed between the two
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    for entry in manifest.shards:
        path = folder / entry.name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise UserError(f"{path} must have {entry.bytes} bytes by {NAME}; empty the folder and prepare again")
    log.info("%s is prepared already", folder)
    return manifest


def _check_same(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    default = {"tokenizer": GPT2}
    pairs = {key: [side.get(key, default.get(key)) for side in (then, now)] for key in {**now, **then}}
    changed = [f"{key} was {old}, is {new}" for key, (old, new) in pairs.items() if old != new]
    if changed:
        raise UserError(
            f"prepare.output={folder} holds another preparation: {'; '.join(changed)}; "
            "give another folder, or empty this one"
        )
