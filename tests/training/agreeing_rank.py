"""One of two gloo ranks that agree as at the start of a training: `agreeing_rank.py <rank>`, each in its own folder.

Prints what `RankAgreement` raises, one line for each case of `CASES`, then the checkpoint of a rollback.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from torch import distributed, nn

from src.errors import one_line
from src.training.cluster import RankAgreement
from src.training.rollback import agree_on_checkpoint

KEYS = ("code", "config", "data", "first step", "rollbacks")
CASES = ("equal", *KEYS, "folder", "size")


def agree(case: str, rank: int) -> str:
    """Return the error of this rank where rank 1 differs in `case`; empty where there is none."""
    identity = {key: f"other {rank}" if key == case else "same" for key in KEYS}
    folder = Path("run") if case == "folder" else Path.cwd().parent / "run"  # a relative one is a rank's own
    agreement = RankAgreement(3 if case == "size" else 2, identity, folder, timeout_s=2.0)
    try:
        agreement.setup(cast(Any, SimpleNamespace(world_size=2)), cast(Any, nn.Identity()), "fit")
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"
    return ""


if __name__ == "__main__":
    own = int(sys.argv[1])
    distributed.init_process_group("gloo", init_method=f"file://{Path.cwd().parent}/store", rank=own, world_size=2)
    for name in CASES:
        print(agree(name, own))
    checkpoints = Path.cwd() / "run/checkpoints"  # rank 0's holds some, and rank 1 has none
    if own == 0:
        checkpoints.mkdir()
        for step in (4, 8):
            (checkpoints / f"step{step:08d}.ckpt").touch()
    found, _ = agree_on_checkpoint(cast(Any, SimpleNamespace(checkpoints=checkpoints, resume=None)), began=7)
    print(found.path.relative_to(Path.cwd().parent) if found else None)
    distributed.destroy_process_group()
