"""Where machine code is kept from one run to the next: the user's cache folder, apart for unlike processors.

A leaf: any room may import it.
"""

import hashlib
import os
import platform
from pathlib import Path

#: Where torch's compiler keeps what it makes; its own default is a temporary folder.
OF_TORCH = "TORCHINDUCTOR_CACHE_DIR"
CPUINFO = Path("/proc/cpuinfo")


def cache_folder() -> Path | None:
    """`reslab` in the user's cache folder; None where that cannot be written."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "reslab"
    except RuntimeError:  # there is no home folder
        return None
    return folder if _writable(folder) else None


def keep_compiled() -> None:
    """Have torch's compiler keep what it makes there, unless it has been told where or that cannot be written.

    It compiles for this processor and does not tell it from others, and a home folder may be shared by unlike ones.
    """
    kept = cache_folder()
    if OF_TORCH in os.environ or kept is None:
        return
    folder = kept / f"inductor-{hashlib.sha256(processor().encode()).hexdigest()[:16]}"
    if _writable(folder):
        os.environ[OF_TORCH] = str(folder)


def processor() -> str:
    """What machine code for this processor follows from."""
    text = first_core() or platform.processor()
    kind = [line for line in text.splitlines() if line.startswith(("model name", "flags", "CPU ", "Features"))]
    return "\n".join([*kind, platform.machine()])


def first_core() -> str:
    """What the system says of the first core, in lines of `name: value`; nothing where it says nothing."""
    return CPUINFO.read_text().split("\n\n")[0] if CPUINFO.exists() else ""


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
