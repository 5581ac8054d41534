"""Break runs in every way there is a test for, go on, and compare with a run that was left alone.

    python -m tests.robust.stress [times]

prints a table: fault, times injected, steps missing from the record at the end, runs whose metrics or weights differ
by a bit, and the exit codes that the fault itself led to. `times` is how often each is injected (default 5; a kill at
a random moment more often). Takes minutes to an hour.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.robust.support import LONGER, rank_pid, wait_for_row
from tests.runs import ROOT, computed, make_shards, run, same_weights, start

STEPS = 240
TWO = ["trainer.devices=2", "safety.rank_timeout_s=15"]
FAULTS = ROOT / "tests" / "robust" / "faults"
Codes = Iterable[int]


@dataclass
class Row:
    """A line of the table."""

    fault: str
    times: int = 0
    lost: int = 0
    wrong: int = 0
    codes: set[int] = field(default_factory=set)

    def __str__(self) -> str:
        codes = ", ".join(map(str, sorted(self.codes)))
        return f"| {self.fault} | {self.times} | {self.lost} | {self.wrong} | {codes} |"


class Stress:
    """Reference runs on one rank and on two, and faults against copies of their command line.

    Args:
        place: an empty folder.
        times: how often each fault is injected.
        seed: of the random moments.
        ranks: numbers of ranks that runs are compared at.
    """

    def __init__(self, place: Path, *, times: int, seed: int, ranks: tuple[int, ...] = (1, 2)) -> None:
        self.place, self.times = place, times
        self.random = random.Random(seed)
        shards = make_shards(place / "shards")
        self.keys = [*LONGER, f"trainer.max_steps={STEPS}", f"data.path={shards}"]
        extra: dict[int, list[str]] = {1: [], 2: TWO}
        self.references = {n: self._reference(f"whole{n}", extra[n]) for n in ranks}

    def _reference(self, name: str, extra: list[str]) -> Path:
        done = run(*self.keys, *extra, f"hydra.run.dir={name}", cwd=self.place)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return self.place / name

    def strike(self, fault: str, times: int, inject: Callable[[Path, int], Codes], *, ranks: int = 1) -> Row:
        """Inject a fault into `times` new runs, bring each to its end, and compare."""
        row = Row(fault)
        for _ in range(times):
            folder = self.place / "struck"
            shutil.rmtree(folder, ignore_errors=True)
            codes = list(inject(folder, self.random.randrange(5, STEPS - 5)))
            row.times += max(1, codes.count(-signal.SIGKILL))
            row.codes.update(codes)
            done = self.go_on(folder)
            expected, found = computed(self.references[ranks]), computed(folder)
            row.lost += len({r["step"] for r in expected} - {r["step"] for r in found})
            same = done == 0 and found == expected and same_weights(folder, self.references[ranks])
            row.wrong += not same
        print(row, flush=True)
        return row

    def go_on(self, folder: Path) -> int:
        """Resume until the end."""
        return run(f"resume={folder}", "trusted_targets=[tests]", cwd=self.place).returncode

    # ---- faults: each returns the exit codes that it led to

    def signalled(self, signum: int, extra: list[str], *, rank: int = 0) -> Callable[[Path, int], Codes]:
        """A signal to one rank after some step."""

        def inject(folder: Path, step: int) -> Codes:
            process = start(*self.keys, *extra, f"hydra.run.dir={folder}", cwd=self.place)
            wait_for_row(step, folder, process)
            if process.poll() is None:
                os.kill(rank_pid(folder) if rank else process.pid, signum)
            process.communicate(timeout=300)
            return [process.returncode]

        return inject

    def killed_often(self, kills: int) -> Callable[[Path, int], Codes]:
        """One run, killed at random moments of its whole course (start, training, saving) until one launch is done."""

        def inject(folder: Path, step: int) -> Codes:
            codes: list[int] = []
            arguments = [*self.keys, f"hydra.run.dir={folder}", "resume=auto"]
            while codes.count(-signal.SIGKILL) < kills and 0 not in codes:
                process = start(*arguments, cwd=self.place)
                try:
                    process.communicate(timeout=self.random.uniform(1.0, 14.0))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                codes.append(process.returncode)
            return codes

        return inject

    def damaged(self, how: Callable[[Path], None]) -> Callable[[Path, int], Codes]:
        """A run that was killed, and whose newest checkpoint then went bad."""

        def inject(folder: Path, step: int) -> Codes:
            codes = self.signalled(signal.SIGKILL, [])(folder, max(step, 12))
            last = folder / "checkpoints/last.ckpt"
            newest = max(folder.glob("checkpoints/step*.ckpt"))
            for path in {last, newest}:
                how(path)
            return codes

        return inject

    def full_disk(self, folder: Path, step: int) -> Codes:
        """No room for the checkpoints from some step on."""
        faults = {"PYTHONPATH": str(FAULTS), "FAULT_FILES": r"\.ckpt\.part", "FAULT_AFTER": str(step // 4)}
        before = dict(os.environ)
        os.environ.update(faults)
        try:
            done = run(*self.keys, f"hydra.run.dir={folder}", cwd=self.place)
        finally:
            os.environ.clear()
            os.environ.update(before)
        return [done.returncode]

    def launched_twice(self, folder: Path, step: int) -> Codes:
        """A second launch into the folder of a live run, and a resume of it."""
        process = start(*self.keys, f"hydra.run.dir={folder}", cwd=self.place)
        wait_for_row(3, folder, process)
        process.send_signal(signal.SIGSTOP)
        codes = [run(f"resume={folder}", cwd=self.place).returncode]
        codes += [run(*self.keys, f"hydra.run.dir={folder}", cwd=self.place).returncode]
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=300)
        return [*codes, process.returncode]

    def table(self) -> list[Row]:
        """Every fault."""
        kill, term, n = signal.SIGKILL, signal.SIGTERM, self.times
        return [
            self.strike("`kill -9`, any moment, until the run is done", 3 * n, self.killed_often(10)),
            self.strike("`kill -9` after a step", n, self.signalled(kill, [])),
            self.strike("SIGTERM", n, self.signalled(term, [])),
            self.strike("SIGINT", n, self.signalled(signal.SIGINT, [])),
            self.strike("SIGUSR1", n, self.signalled(signal.SIGUSR1, [])),
            self.strike("SIGTERM to rank 1 of 2", n, self.signalled(term, TWO, rank=1), ranks=2),
            self.strike("`kill -9` of rank 1 of 2", n, self.signalled(kill, TWO, rank=1), ranks=2),
            self.strike("rank 1 of 2 stopped", n, self.signalled(signal.SIGSTOP, TWO, rank=1), ranks=2),
            self.strike("newest checkpoint truncated", n, self.damaged(_truncate)),
            self.strike("a bit of the newest checkpoint flipped", n, self.damaged(_flip)),
            self.strike("newest checkpoint missing", n, self.damaged(_unlink)),
            self.strike("no room for a checkpoint", n, self.full_disk),
            self.strike("a second launch and a resume while it runs", n, self.launched_twice),
        ]


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
    print(
        "| fault | times injected | lost steps | wrong results | exit code |\n|---|---|---|---|---|", flush=True
    )
    with tempfile.TemporaryDirectory() as place:
        rows = Stress(Path(place), times=times, seed=0).table()
    print(f"\n{sum(row.times for row in rows)} runs, {time.monotonic() - began:.0f} s")
    sys.exit(any(row.lost or row.wrong for row in rows))


if __name__ == "__main__":
    main()
