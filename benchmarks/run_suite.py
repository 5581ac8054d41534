"""`bench.suite`: its turns one after the other, then every bar beside its figure; written anew after every group.

The command line's overrides come after a suite's own, so `bench.suite=gpu trainer=cpu model=tiny` is a rehearsal.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch._inductor.utils import fresh_cache

from benchmarks import peers
from benchmarks.suites import SUITES, Suite, Turn
from benchmarks.targets import Measured, bars_table
from src.bench.candidates import Entrant, composed, device_of, entrant, of_text, split_name
from src.bench.device_peak import ceiling_of
from src.bench.host_overhead import loop_seconds
from src.bench.peer_entry import PeerEntry
from src.bench.tables import describe, speed_table
from src.bench.timing import Timing, time_in_turns
from src.errors import one_line
from src.files import write_atomic
from src.launch.job import COMPLETED, Job, TaskEnd
from src.settings.read import Settings
from src.training.process import prepare_process

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """`bench.rounds`, and when no further group is begun, by `time.monotonic`."""

    rounds: int
    deadline: float


class SuiteRun:
    """One run of a suite."""

    def __init__(self, job: Job, name: str, limits: Limits) -> None:
        self.job, self.name, self.limits = job, name, limits
        self.suite: Suite = SUITES[name]
        self.measured = Measured({}, {})
        self.baselines: dict[str, Settings] = {}
        self.failed: dict[str, str] = {}
        self.began = time.monotonic()

    def run(self) -> TaskEnd:
        """All of it that there is time for."""
        if self.suite.loop:  # before there are models and compiled code, which Python's collector would walk
            torch.set_num_threads(1)  # CPU time of a second thread that waits would count
            self.measured.single["loop ms"] = 1e3 * loop_seconds(log_every_steps=10)
        for turn in self.suite.turns:
            self._turn(turn)
        if self.suite.first_step and time.monotonic() < self.limits.deadline:
            self._attempt("first step s", self._first_step)
        rows = self._write()
        met = sum(row["verdict"] == "met" for row in rows)
        log.info("%s", (self.job.folder / "table.md").read_text())
        bars = f"{met} of {len(rows)} bars met; " if rows else ""
        return TaskEnd(COMPLETED, f"{bars}{self.job.folder / 'table.md'}")

    def _turn(self, turn: Turn) -> None:
        rows = [of_text(self.job, row, turn.base) for row in turn.rows]
        builders: dict[str, Callable[[], Entrant]] = {one.name: one.build for one in rows}
        self.baselines[turn.name] = rows[0].settings
        for row, function in turn.peers:
            name, overrides = split_name(row)
            settings = composed(self.job, row, overrides.split() if overrides != name else [], turn.base)
            builders[name] = PeerEntry(name, getattr(peers, function), settings).build
        first, *others = (one.name for one in rows)
        order = [first, *(split_name(row)[0] for row, _ in turn.peers), *others]
        settings = self.baselines[turn.name]
        prepare_process(settings.trainer)
        device = device_of(settings)
        if device == "cuda":
            peak = ceiling_of(device, bf16=settings.trainer.precision == "bf16-mixed").peak
            if peak is not None:
                self.measured.single["peak FLOP/s"] = peak

        def told(timings: dict[str, Timing]) -> None:
            self.measured.timings[turn.name] = timings
            self._write()

        for again in range(turn.times):
            before = self.measured.timings.get(turn.name, {})
            if again and not before:
                break
            if again:
                torch._dynamo.reset()  # what it compiled was for models that are gone
            now = time_in_turns(
                {name: builders[name] for name in order if not again or name in before},
                device=device,
                rounds=self.limits.rounds,
                at_once=turn.at_once,
                seed=settings.seed + again,
                deadline=self.limits.deadline,
                told=None if again else told,
                failed=self.failed,
            )
            if again and now.keys() == before.keys():  # otherwise there was no time for all
                told({name: timing.joined(now[name]) for name, timing in before.items()})

    def _first_step(self) -> float:
        settings = composed(self.job, "first step", [], self.suite.first_step)
        with fresh_cache():  # a compiler's cache would make it a second one
            began = time.monotonic()
            one = entrant(settings)
            shape = (one.micro_batch_size, one.block_size + 1)
            tokens_BT = torch.randint(one.vocab_size, shape, device=device_of(settings))
            float(one.step(tokens_BT[:, :-1], tokens_BT[:, 1:]))
            return time.monotonic() - began

    def _attempt(self, name: str, measure: Callable[[], float]) -> None:
        try:
            self.measured.single[name] = measure()
        except Exception as error:  # it is told in its bar's row, and the others stand
            self.failed[name] = one_line(error)

    def _write(self) -> list[dict[str, object]]:
        rows = [bar.judge(self.measured) for bar in self.suite.bars]
        title = f"bench.suite={self.name} ({time.monotonic() - self.began:.0f} s)"
        text = bars_table(rows, title)
        if self.failed:
            text += "\nFailed: " + "; ".join(f"{name}: {why}" for name, why in self.failed.items()) + "\n"
        turns: dict[str, Any] = {}
        for name, timings in self.measured.timings.items():
            settings = self.baselines[name]
            ceiling = ceiling_of(device_of(settings), bf16=settings.trainer.precision == "bf16-mixed")
            text += "\n" + speed_table(timings, dict.fromkeys(timings, ceiling), describe(settings))
            turns[name] = {
                "measured": describe(settings),
                "ceiling": dataclasses.asdict(ceiling),
                "timings": {key: dataclasses.asdict(timing) for key, timing in timings.items()},
            }
        stated = {
            "suite": self.name,
            "seconds": time.monotonic() - self.began,
            "bars": rows,
            "single": self.measured.single,
            "failed": self.failed,
            "turns": turns,
        }
        write_atomic(self.job.folder / "bench.json", json.dumps(stated, indent=2) + "\n")
        write_atomic(self.job.folder / "table.md", text)
        return rows


def run_suite(job: Job, name: str, rounds: int, budget_s: float | None) -> TaskEnd:
    """All bars of a suite, as far as `budget_s` goes."""
    deadline = math.inf if budget_s is None else time.monotonic() + budget_s
    return SuiteRun(job, name, Limits(rounds, deadline)).run()
