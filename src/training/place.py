"""Whether the run folder can take what the run will write; asked before it starts."""

import shutil
from pathlib import Path

from src.errors import UserError, one_line
from src.files import format_bytes, write_atomic

#: Rows, pictures and logs, generously.
REST_BYTES = 16 * 2**20


def check_place(folder: Path, *, n_numbers: int, keep: int) -> None:
    """Try to write a file where checkpoints go, and compare the free space with all of them.

    Args:
        folder: of the run.
        n_numbers: parameters, and what the optimizer keeps of them, all float32.
        keep: checkpoints that stay.

    Raises:
        UserError: nothing can be written there, or not enough.
    """
    checkpoints = folder / "checkpoints"
    probe = checkpoints / ".probe"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_atomic(probe, b"probe")
        probe.unlink()
        free = shutil.disk_usage(checkpoints).free
        there = sum(path.stat().st_size for path in checkpoints.glob("*.ckpt"))
    except OSError as error:
        raise UserError(
            f"{checkpoints} cannot be written to ({one_line(error)}); choose another hydra.run.dir"
        ) from error
    one = 4 * n_numbers + 2**20
    needed = (keep + 2) * one + REST_BYTES  # one more while it is written, and the best
    if free + there < needed:
        raise UserError(
            f"{folder} has {format_bytes(free)} of free space, and the run writes up to {format_bytes(needed)} "
            f"({keep} + 2 checkpoints of {format_bytes(one)}); make room, choose another hydra.run.dir "
            "or lower safety.keep_checkpoints"
        )
