"""Shards of a local folder, file or pattern, by split.

The prefix `nanogpt:` of an address declares its files headerless. The split of a file follows from the words of its
name (`val`, `valid`, `validation`, `train`), its place in the order from the numbers. The manifest of a folder, if
there is one, lists what the folder must hold.
"""

import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from src.datamodules.shards import manifest
from src.datamodules.shards.format import OpenFiles, ShardError, ShardSlot, TokenShard
from src.datamodules.shards.manifest import Manifest
from src.datamodules.tokenization.base import FILE, Tokenizer, identify
from src.datamodules.tokenization.open import open_stated

log = logging.getLogger(__name__)

HEADERLESS = "nanogpt:"
#: Most shards whose content is compared with the manifest when a folder is opened; the sizes of all are.
SAMPLED_SHARDS = 1000
SPLIT_OF_WORD = {"val": "val", "valid": "val", "validation": "val", "train": "train"}
NAMES_HINT = "published shards are named fineweb_val_000000.bin, fineweb_train_000001.bin, ..."


@dataclass(frozen=True)
class Shards:
    """Shards by split.

    Args:
        name: of the folder or file.
        manifest: hash of the folder's manifest, or None without one.
        tokenizer: the manifest's statement on the tokenizer; None where nothing states it.
        tokenizer_text: content of the tokenizer's file; None where it has none.
    """

    name: str
    val: tuple[ShardSlot, ...]
    train: tuple[ShardSlot, ...]
    manifest: str | None
    tokenizer: dict[str, Any] | None = None
    tokenizer_text: str | None = None

    def open_tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer of the shards; None where nothing states it.

        Raises:
            ShardError: its file is missing or another one.
        """
        try:
            return open_stated(self.tokenizer, self.tokenizer_text)
        except ValueError as error:
            raise ShardError(f"data.path={self.name}: its {error}") from error


def split_of(name: str, where: str) -> str | None:
    """Return the split that a file's name states, or None if it states none.

    Raises:
        ShardError: it states both.
    """
    stem = name.lower().rpartition(".")[0]
    splits = {SPLIT_OF_WORD[word] for word in re.findall("[a-z]+", stem) if word in SPLIT_OF_WORD}
    splits = splits or {split for split in ("val", "train") if split in stem}  # as in mytrain.bin
    if len(splits) > 1:
        raise ShardError(f"{where}: the name says both val and train; rename it")
    return splits.pop() if splits else None


def number_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which shard 10 follows shard 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def check_gaps(names: Sequence[str], address: str) -> None:
    """Raise an error if a number is missing between two numbered names.

    Raises:
        ShardError: names the missing file.
    """
    numbered: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if match := re.fullmatch(r"(.*?)(\d+)(\D*)", name):
            numbered.setdefault(match[1] + "*" + match[3], []).append((int(match[2]), match[2]))
    for pattern, numbers in numbered.items():
        numbers.sort()
        for (a, digits), (b, _) in pairwise(numbers):
            if b != a + 1:
                missing = pattern.replace("*", str(a + 1).zfill(len(digits)))
                raise ShardError(
                    f"{address}/{missing} is missing between shards {a} and {b}; "
                    "fetch it, or name the shards to read by a list or pattern"
                )


def open_local(address: str) -> Shards:
    """Open the shards of one local folder, file or pattern, which share a number of open files.

    Raises:
        ShardError: there is no shard, or one that cannot be read.
    """
    headerless = address.startswith(HEADERLESS)
    path = Path(address.removeprefix(HEADERLESS))
    if path.is_dir() and (path / manifest.NAME).is_file() and not headerless:
        return _open_by_manifest(path)
    files = _list_folder(path, address) if path.is_dir() else _list_pattern(path, address)
    opened = OpenFiles()
    return split_by_name(path.name, [TokenShard.open(f, headerless=headerless, files=opened) for f in files], None)


def _list_folder(path: Path, address: str) -> list[Path]:
    if (path / manifest.JOURNAL).exists():
        raise ShardError(f"data.path={address}: its preparation is not finished; run task=prepare again to continue")
    names = sorted((p.name for p in path.glob("*.bin")), key=number_key)
    ignored = [name for name in names if split_of(name, f"{path}/{name}") is None]
    if ignored:
        log.warning("%s: not read, the name says neither val nor train: %s", path, ", ".join(ignored))
    files = [path / name for name in names if name not in ignored]
    check_gaps([file.name for file in files], str(path))
    if not files:
        raise ShardError(
            f"data.path={address} holds no *val*.bin and *train*.bin ({len(names)} .bin files); {NAMES_HINT}"
        )
    return files


def _list_pattern(path: Path, address: str) -> list[Path]:
    matches = [path] if path.is_file() else [Path(p) for p in glob.glob(str(path), recursive=True)]
    files = sorted((p for p in matches if p.is_file()), key=lambda p: number_key(p.name))
    if not files:
        raise ShardError(
            f"data.path={address} is neither a folder nor a file; give a folder, a file or a pattern of "
            "*val*.bin and *train*.bin shards"
        )
    return files


def _open_by_manifest(folder: Path) -> Shards:
    listed = Manifest.parse((folder / manifest.NAME).read_bytes(), str(folder / manifest.NAME))
    shards, opened = [], OpenFiles()
    distance = -(-len(listed.shards) // SAMPLED_SHARDS)
    if distance > 1:
        log.info("%s: compared every %dth shard with %s; task=check compares all", folder, distance, manifest.NAME)
    for number, entry in enumerate(listed.shards):
        path = folder / entry.name
        if not path.exists():
            raise ShardError(f"{path} is missing, {manifest.NAME} lists it; fetch it, or read others by a pattern")
        shard = TokenShard.open(path, files=opened, end_of_text=listed.shard_format.end_of_text)
        sampled = entry.sampled if number % distance else shard.fingerprint()
        if (shard.n_tokens, sampled) != (entry.tokens, entry.sampled):
            raise ShardError(
                f"{path}: {shard.n_tokens} tokens, sampled hash {sampled[:12]}, where {manifest.NAME} "
                f"says {entry.tokens} and {entry.sampled[:12]}; it was changed or replaced, restore it"
            )
        shards.append(replace(shard, sha256=entry.sha256))
    file = folder / FILE
    text = file.read_bytes().decode("utf-8", errors="replace") if file.is_file() else None
    found = split_by_name(folder.name, shards, listed.hash())
    return replace(found, tokenizer=listed.tokenizer, tokenizer_text=text)


def split_by_name(name: str, slots: Sequence[ShardSlot], manifest_hash: str | None) -> Shards:
    """Return shards by the split that their names state.

    Raises:
        ShardError: a name that states none.
    """
    splits = [split_of(slot.name, slot.name) for slot in slots]
    if None in splits:
        raise ShardError(f"{slots[splits.index(None)].name}: the name says neither val nor train; rename it")
    val, train = (
        tuple(slot for slot, split in zip(slots, splits, strict=True) if split == wanted) for wanted in ("val", "train")
    )
    return Shards(name, val, train, manifest_hash)


def merge(parts: Sequence[Shards], path: str, splits: Sequence[str] = ("val", "train")) -> Shards:
    """Return the shards of several addresses as those of one.

    Raises:
        ShardError: one of `splits` has no shard, or the parts have different tokenizers.
    """
    val = tuple(slot for part in parts for slot in part.val)
    train = tuple(slot for part in parts for slot in part.train)
    for split, slots in (("val", val), ("train", train)):
        if split in splits and not slots:
            raise ShardError(f"data.path={path} holds no *{split}*.bin shard; {NAMES_HINT}")
    hashes = [part.manifest for part in parts if part.manifest]
    known = {identify(part.tokenizer) for part in parts}
    if len(known - {None}) > 1:
        raise ShardError(f"data.path={path} has shards of different tokenizers; prepare them again by one")
    agreed, text = (None, None) if None in known else (parts[0].tokenizer, parts[0].tokenizer_text)
    return Shards(parts[0].name, val, train, "+".join(hashes) or None, agreed, text)
