"""Folder of compiled code that outlives a run: `reslab` in the user's cache folder, with a part for each processor."""

import hashlib
import os
import platform
from pathlib import Path

#: Variable that names the cache folder of torch's compiler; its default is a temporary folder.
INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"
CPUINFO = Path("/proc/cpuinfo")


def cache_folder() -> Path | None:
    """Return `reslab` in the user's cache folder, or None if it cannot be written."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "reslab"
    except RuntimeError:  # there is no home folder
        return None
    return folder if _is_writable(folder) else None


def keep_compiled() -> None:
    """Make torch's compiler keep its results in the cache folder, unless the environment names one already.

    It compiles for this processor without checking that a result is from the same kind, and unlike processors may
    share a home folder.
    """
    kept = cache_folder()
    if INDUCTOR_CACHE in os.environ or kept is None:
        return
    folder = kept / f"inductor-{hashlib.sha256(describe_processor().encode()).hexdigest()[:16]}"
    if _is_writable(folder):
        os.environ[INDUCTOR_CACHE] = str(folder)


def describe_processor() -> str:
    """Return what machine code for this processor depends on: its model and instructions."""
    text = read_first_core() or platform.processor()
    kind = [line for line in text.splitlines() if line.startswith(("model name", "flags", "CPU ", "Features"))]
    return "\n".join([*kind, platform.machine()])


def read_first_core() -> str:
    """Return what Linux states about the first core, in lines of `name: value`; empty elsewhere."""
    return CPUINFO.read_text().split("\n\n")[0] if CPUINFO.exists() else ""


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
