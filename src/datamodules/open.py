"""From `data.path` to shards that can be read, local or remote."""

from collections.abc import Mapping, Sequence

from src.datamodules.remote.cache import Cache
from src.datamodules.remote.prefetch import open_remote
from src.datamodules.remote.store import is_remote
from src.datamodules.shards.local import Shards, open_local, together

__all__ = ["Cache", "open_shards", "read_sources"]


def read_sources(path: str | list[object] | None) -> dict[str, tuple[list[str], float]]:
    """Addresses and weight of each source of `data.path`, by name.

    Raises:
        ValueError: a null, an empty list, or a mixture that is not {path, weight} throughout.
    """
    if not path:
        raise ValueError("data.path is null; give a folder of shards")
    entries = [path] if isinstance(path, str) else list(path)
    if all(isinstance(entry, str) for entry in entries):
        return {"the data": ([str(entry) for entry in entries], 1.0)}
    found: dict[str, tuple[list[str], float]] = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or set(entry) != {"path", "weight"}:
            raise ValueError(f"data.path: each source of a mixture is {{path: ..., weight: ...}}, got {entry}")
        address, weight = entry["path"], entry["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0:
            raise ValueError(f"data.path: the weight of {address} must be positive, got {weight!r}")
        addresses = [address] if isinstance(address, str) else [str(one) for one in address]
        if str(address) in found:
            raise ValueError(f"data.path names {address} twice; add up its weights")
        found[str(address)] = (addresses, float(weight))
    return found


def open_shards(addresses: Sequence[str], cache: Cache, *, streamed: bool) -> Shards:
    """The shards of some addresses as of one place.

    Args:
        addresses: local or remote.
        cache: where remote shards are kept.
        streamed: whether they will be read one after the other, rather than all at once.

    Raises:
        ShardError: nothing there, or what is there cannot be read right.
    """
    parts = [open_remote(a, cache, streamed=streamed) if is_remote(a) else open_local(a) for a in addresses]
    return together(parts, ", ".join(addresses))
