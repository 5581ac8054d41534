"""Shards by the value of `data.path`, local or remote."""

from collections.abc import Mapping, Sequence

from src.datamodules.remote.cache import CacheFolder
from src.datamodules.remote.prefetch import open_remote
from src.datamodules.remote.store import is_remote
from src.datamodules.shards.local import Shards, merge, open_local

#: Name of the only source, in the log and in result.json.
SINGLE_SOURCE = "the data"


def read_sources(path: str | list[object] | None) -> dict[str, tuple[list[str], float]]:
    """Return addresses and weight of each source of `data.path`, by name.

    Raises:
        ValueError: null, an empty list, or a mixture with an entry that is not {path, weight}.
    """
    if not path:
        raise ValueError("data.path is null; give a folder of shards")
    entries = [path] if isinstance(path, str) else list(path)
    if all(isinstance(entry, str) for entry in entries):
        return {SINGLE_SOURCE: ([str(entry) for entry in entries], 1.0)}
    sources: dict[str, tuple[list[str], float]] = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or set(entry) != {"path", "weight"}:
            raise ValueError(f"data.path: each source of a mixture is {{path: ..., weight: ...}}, got {entry}")
        address, weight = entry["path"], entry["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0:
            raise ValueError(f"data.path: the weight of {address} must be positive, got {weight!r}")
        addresses = [address] if isinstance(address, str) else [str(one) for one in address]
        if str(address) in sources:
            raise ValueError(f"data.path names {address} twice; add up its weights")
        sources[str(address)] = (addresses, float(weight))
    return sources


def open_shards(
    addresses: Sequence[str],
    cache: CacheFolder,
    *,
    streamed: bool,
    splits: Sequence[str] = ("val", "train"),
) -> Shards:
    """Return the shards of several addresses as those of one.

    Args:
        addresses: local or remote.
        cache: the folder into which remote shards are fetched.
        streamed: true if the shards are read one after the other, false if all at once.
        splits: splits that must have a shard.

    Raises:
        ShardError: there is no shard, or one that cannot be read.
    """
    parts = [open_remote(a, cache, streamed=streamed) if is_remote(a) else open_local(a) for a in addresses]
    return merge(parts, ", ".join(addresses), splits)
