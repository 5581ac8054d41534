"""Inject every fault there is a test for, resume, and compare with a run without a fault.

    python -m tests.robust.stress [times] [row ...]

prints a table: fault, times injected, steps missing from the record at the end, runs whose metrics, weights or scores
differ by a bit, and the exit codes that the fault itself led to. `times` is how often each is injected (default 5; a
kill at a random moment more often, and one in each residual strategy). Rows go by the names of `all_rows`; without
any, all are run, which takes minutes to an hour.
"""

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.robust.striking import INSIDE, Fault, Row, Stress
from tests.slurm_cluster import missing_programs
from tests.support import options


def all_rows(stress: Stress) -> dict[str, Callable[[], Row]]:
    """Return every fault by a short name."""
    kill, term, usr1, n = signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, stress.times
    saving, validating, scoring, stepping = INSIDE
    two = "two ranks"

    def row(fault: str, inject: Fault, kind: str = "one rank", times: int = n) -> Callable[[], Row]:
        return lambda: stress.strike(fault, times, inject, kind)

    return {
        "kill": row("`kill -9`, any moment, until the run is done", stress.killed_often(10), times=3 * n),
        "kill-step": row("`kill -9` after a step", stress.signalled(kill)),
        "kill-start": row("`kill -9` before the first checkpoint", stress.killed_inside(stepping, 3, 5)),
        "kill-saving": row("`kill -9` while a checkpoint is written", stress.killed_inside(saving, 50, 20)),
        "kill-background": row(
            "`kill -9` while a checkpoint is written in the background",
            stress.killed_inside(saving, 50, 20, "background"),
            "background",
        ),
        "kill-validating": row("`kill -9` while it validates", stress.killed_inside(validating, 35, 20)),
        "kill-scoring": row(
            "`kill -9` in the evaluation at the end",
            stress.killed_inside(scoring, 1, 400, "scored"),
            "scored",
        ),
        "kill-compiled": row("`kill -9` after a step, compiled", stress.signalled(kill, "compiled"), "compiled"),
        "kill-strategies": lambda: stress.every_strategy(options("residual")),
        "term": row("SIGTERM", stress.signalled(term)),
        "int": row("SIGINT", stress.signalled(signal.SIGINT)),
        "usr1": row("SIGUSR1", stress.signalled(usr1)),
        "term-rank": row("SIGTERM to rank 1 of 2", stress.signalled(term, two, rank=1), two),
        "kill-rank": row("`kill -9` of rank 1 of 2", stress.signalled(kill, two, rank=1), two),
        "kill-rank-0": row("`kill -9` of rank 0 of 2", stress.signalled(kill, two, rank=0), two),
        "kill-launcher": row("`kill -9` of the process that launched 2 ranks", stress.signalled(kill, two), two),
        "restart-rank": row(
            "`kill -9` of rank 1 of 2, `trainer.restarts=1`", stress.signalled(kill, "restarted", rank=1), two
        ),
        "stop-rank": row("rank 1 of 2 stopped", stress.signalled(signal.SIGSTOP, two, rank=1), two),
        "agent": row("`kill -9` of a torchrun agent of 2 workers", stress.agent_killed, two),
        "node": row("`kill -9` of one of two torchrun nodes, which starts again", stress.node_lost, two),
        **({} if missing_programs() else {"slurm": row("two SLURM nodes preempted", stress.preempted, "two nodes")}),
        "truncated": row("newest checkpoint truncated", stress.damaged(_truncate)),
        "flipped": row("a bit of the newest checkpoint flipped", stress.damaged(_flip)),
        "missing": row("newest checkpoint missing", stress.damaged(_unlink)),
        "full-disk": row("no room for a checkpoint", stress.full_disk),
        "twice": row("a second launch and a resume while it runs", stress.launched_twice),
    }


def _truncate(path: Path) -> None:
    raw = path.read_bytes()
    path.unlink()  # not through the second name
    path.write_bytes(raw[: len(raw) // 2])


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.unlink()
    path.write_bytes(bytes(raw))


def _unlink(path: Path) -> None:
    path.unlink()


def main() -> None:
    """Print the table."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        stress = Stress(Path(place), times=times, seed=0)
        known = all_rows(stress)
        unknown = sorted(set(sys.argv[2:]) - set(known))
        if unknown:
            sys.exit(f"{unknown[0]} is not a row; rows are {', '.join(known)}")
        print(
            "| fault | times injected | lost steps | wrong results | exit code |\n|---|---|---|---|---|",
            flush=True,
        )
        rows = [known[name]() for name in sys.argv[2:] or known]
    injected = sum(row.times for row in rows)
    print(f"\n{injected} faults, {stress.kills} of them kill -9, {time.monotonic() - began:.0f} s")
    sys.exit(any(row.lost or row.wrong for row in rows))


if __name__ == "__main__":
    main()
