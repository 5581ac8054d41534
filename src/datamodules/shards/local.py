"""What `data.path` names: a folder, a file, a pattern, a remote address, or a list of these; in two splits.

`nanogpt:` before an address declares its files headerless. A file belongs to the split that a word of its
name says (`val`, `valid`, `validation`, `train`); the number in its name gives its place. A folder's
manifest, where it has one, says what must be there.
"""

import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from src.datamodules.shards import manifest
from src.datamodules.shards.format import ShardError, TokenShard
from src.datamodules.shards.manifest import Manifest
from src.datamodules.shards.windows import ShardSlot

log = logging.getLogger(__name__)

HEADERLESS = "nanogpt:"
SPLIT_WORDS = {"val": "val", "valid": "val", "validation": "val", "train": "train"}
NAMES = "published shards are named fineweb_val_000000.bin, fineweb_train_000001.bin, ..."


@dataclass(frozen=True)
class Shards:
    """The shards of a place in their splits; `manifest` is the hash of its manifest, where it has one."""

    name: str
    val: tuple[ShardSlot, ...]
    train: tuple[ShardSlot, ...]
    manifest: str | None


def split_of(name: str, where: str) -> str | None:
    """The split that a file's name says; None where it says none.

    Raises:
        ShardError: it says both.
    """
    stem = name.lower().rpartition(".")[0]
    said = {SPLIT_WORDS[word] for word in re.findall("[a-z]+", stem) if word in SPLIT_WORDS}
    said = said or {split for split in ("val", "train") if split in stem}  # as in mytrain.bin
    if len(said) > 1:
        raise ShardError(f"{where}: the name says both val and train; rename it")
    return said.pop() if said else None


def by_number(name: str) -> list[tuple[int, str]]:
    """A sort key in which shard 10 comes after shard 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def refuse_gaps(names: Sequence[str], address: str) -> None:
    """Refuse a row of numbered names with one missing in the middle."""
    numbered: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if found := re.fullmatch(r"(.*?)(\d+)(\D*)", name):
            numbered.setdefault(found[1] + "*" + found[3], []).append((int(found[2]), found[2]))
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
    """The shards of one local folder, file or pattern, mapped.

    Raises:
        ShardError: nothing there, or what is there cannot be read right.
    """
    headerless = address.startswith(HEADERLESS)
    path = Path(address.removeprefix(HEADERLESS))
    if path.is_dir():
        if (path / manifest.NAME).is_file() and not headerless:
            return _as_the_manifest_says(path)
        if (path / manifest.JOURNAL).exists():
            raise ShardError(
                f"data.path={address}: its preparation is not finished; run task=prepare again to go on"
            )
        names = sorted((p.name for p in path.glob("*.bin")), key=by_number)
        strays = [name for name in names if split_of(name, f"{path}/{name}") is None]
        if strays:
            log.warning("%s: not read, the name says neither val nor train: %s", path, ", ".join(strays))
        files = [path / name for name in names if name not in strays]
        refuse_gaps([file.name for file in files], str(path))
        if not files:
            raise ShardError(
                f"data.path={address} holds no *val*.bin and *train*.bin ({len(names)} .bin files); {NAMES}"
            )
    else:
        found = [path] if path.is_file() else [Path(p) for p in glob.glob(str(path), recursive=True)]
        files = sorted((p for p in found if p.is_file()), key=lambda p: by_number(p.name))
        if not files:
            raise ShardError(
                f"data.path={address} is no folder and no file; give a folder, a file or a pattern of "
                "*val*.bin and *train*.bin shards"
            )
    return in_splits(path.name, [TokenShard.open(file, headerless=headerless) for file in files], None)


def in_splits(name: str, slots: Sequence[ShardSlot], manifest_hash: str | None) -> Shards:
    """Shards by the split that their names say.

    Raises:
        ShardError: a name that says none.
    """
    splits = [split_of(slot.name, slot.name) for slot in slots]
    if None in splits:
        raise ShardError(f"{slots[splits.index(None)].name}: the name says neither val nor train; rename it")
    val, train = (
        tuple(slot for slot, split in zip(slots, splits, strict=True) if split == wanted)
        for wanted in ("val", "train")
    )
    return Shards(name, val, train, manifest_hash)


def _as_the_manifest_says(folder: Path) -> Shards:
    listed = Manifest.parse((folder / manifest.NAME).read_bytes(), str(folder / manifest.NAME))
    shards = []
    for entry in listed.shards:
        path = folder / entry.name
        if not path.exists():
            raise ShardError(
                f"{path} is missing, {manifest.NAME} lists it; fetch it, or read others by a pattern"
            )
        shard = TokenShard.open(path)
        if (shard.n_tokens, shard.fingerprint()) != (entry.tokens, entry.sampled):
            raise ShardError(
                f"{path}: {shard.n_tokens} tokens, sampled hash {shard.fingerprint()[:12]}, where {manifest.NAME} "
                f"says {entry.tokens} and {entry.sampled[:12]}; it was changed or replaced, restore it"
            )
        shards.append(replace(shard, sha256=entry.sha256))
    return in_splits(folder.name, shards, listed.hash())


def together(parts: Sequence[Shards], path: str) -> Shards:
    """The shards of several places as of one.

    Raises:
        ShardError: no shard of one split in any of them.
    """
    val = tuple(slot for part in parts for slot in part.val)
    train = tuple(slot for part in parts for slot in part.train)
    for split, found in (("val", val), ("train", train)):
        if not found:
            raise ShardError(f"data.path={path} holds no *{split}*.bin shard; {NAMES}")
    hashes = [part.manifest for part in parts if part.manifest]
    return Shards(parts[0].name, val, train, "+".join(hashes) or None)
