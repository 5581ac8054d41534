"""Run of a suite (`bench.suite`): every comparison in turn, then every target beside its measured value.

bench.json and table.md are written again after every group of candidates, so an interrupted suite leaves what it has
measured. The command line's overrides come after a suite's own: `bench.suite=gpu trainer=cpu model=tiny` is a rehearsal.
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
from benchmarks.suites import SUITES, Comparison, Suite
from benchmarks.targets import Measured, targets_table
from src.bench.candidates import (
    BuiltCandidate,
    build_candidate,
    compose_settings,
    device_of,
    read_configuration,
    split_name,
)
from src.bench.device_peak import measure_ceiling
from src.bench.host_overhead import measure_loop_seconds
from src.bench.peers import Peer
from src.bench.tables import describe_settings, speed_table
from src.bench.timing import Timing, time_in_turns
from src.errors import UserError, one_line
from src.files import write_atomic
from src.launch.job import COMPLETED, Job, TaskEnd
from src.launch.suggestions import nearest
from src.settings.read import Settings
from src.training.process import prepare_process

log = logging.getLogger(__name__)


def run_suite(job: Job, name: str, rounds: int, budget_s: float | None) -> TaskEnd:
    """Run the suite `name`; no further group of candidates starts once `budget_s` seconds have passed.

    Raises:
        UserError: there is no such suite.
    """
    if name not in SUITES:
        raise UserError(f"bench.suite={name} is not a suite{nearest(name, list(SUITES))}; one of {', '.join(SUITES)}")
    deadline = math.inf if budget_s is None else time.monotonic() + budget_s
    return SuiteRun(job, name, rounds, deadline).run()


class SuiteRun:
    """One run of a suite: its measurements so far, and the errors of what failed.

    Args:
        job: the job, into whose folder the results go.
        name: the suite's name in `SUITES`.
        rounds: timed steps of each candidate and build.
        deadline: the time (`time.monotonic`) after which no group starts.
    """

    def __init__(self, job: Job, name: str, rounds: int, deadline: float) -> None:
        self.job, self.name, self.rounds, self.deadline = job, name, rounds, deadline
        self.suite: Suite = SUITES[name]
        self.measured = Measured({}, {})
        self.baselines: dict[str, Settings] = {}
        self.failed: dict[str, str] = {}
        self.start = time.monotonic()

    def run(self) -> TaskEnd:
        """Run all of the suite that the deadline allows, and write the results."""
        if self.suite.loop:  # first, while there are no models and compiled code for Python's collector to visit
            torch.set_num_threads(1)  # CPU time includes that of a second, waiting thread
            self.measured.single["loop ms"] = 1e3 * measure_loop_seconds(log_every_steps=10)
        for comparison in self.suite.comparisons:
            self._compare(comparison)
        if self.suite.first_step and time.monotonic() < self.deadline:
            try:
                self.measured.single["first step s"] = self._time_first_step()
            except Exception as error:  # reported in the target's row; the other targets are still measured
                self.failed["first step s"] = one_line(error)
        rows = self._write()
        met = sum(row["verdict"] == "met" for row in rows)
        log.info("%s", (self.job.folder / "table.md").read_text())
        counts = f"{met} of {len(rows)} targets met; " if rows else ""
        return TaskEnd(COMPLETED, f"{counts}{self.job.folder / 'table.md'}")

    def _compare(self, comparison: Comparison) -> None:
        """Time all candidates and peers of a comparison, `comparison.builds` times."""
        rows = [read_configuration(self.job, row, comparison.base) for row in comparison.rows]
        builders: dict[str, Callable[[], BuiltCandidate]] = {one.name: one.build for one in rows}
        self.baselines[comparison.name] = rows[0].settings
        for row, function in comparison.peers:
            name, overrides = split_name(row)
            words = overrides.split() if overrides != name else []
            settings = compose_settings(self.job, row, words, comparison.base)
            builders[name] = Peer(name, getattr(peers, function), settings).build
        # The baseline, the peers, then the other rows: with a deadline the last rows are dropped first.
        first, *others = (one.name for one in rows)
        order = [first, *(split_name(row)[0] for row, _ in comparison.peers), *others]
        settings = self.baselines[comparison.name]
        prepare_process(settings.trainer)
        device = device_of(settings)
        if device == "cuda":
            peak = measure_ceiling(device, bf16=settings.trainer.precision == "bf16-mixed").peak
            if peak is not None:
                self.measured.single["peak FLOP/s"] = peak

        def record(timings: dict[str, Timing]) -> None:
            self.measured.timings[comparison.name] = timings
            self._write()

        for build in range(comparison.builds):
            before = self.measured.timings.get(comparison.name, {})
            if build and not before:
                break
            if build:
                torch._dynamo.reset()  # drop the code compiled for the models of the last build
            now = time_in_turns(
                {name: builders[name] for name in order if not build or name in before},
                device=device,
                rounds=self.rounds,
                at_once=comparison.at_once,
                seed=settings.seed + build,
                deadline=self.deadline,
                on_group=None if build else record,
                failed=self.failed,
            )
            if build and now.keys() == before.keys():  # a build that the deadline cut short is dropped
                record({name: timing.joined(now[name]) for name, timing in before.items()})

    def _time_first_step(self) -> float:
        """Return the wall seconds to build a model and take its first step, with an empty compile cache."""
        settings = compose_settings(self.job, "first step", [], self.suite.first_step)
        with fresh_cache():
            start = time.monotonic()
            one = build_candidate(settings)
            shape = (one.micro_batch_size, one.block_size + 1)
            tokens_BT = torch.randint(one.vocab_size, shape, device=device_of(settings))
            float(one.step(tokens_BT[:, :-1], tokens_BT[:, 1:]))
            return time.monotonic() - start

    def _write(self) -> list[dict[str, object]]:
        """Write bench.json and table.md, and return the targets' rows."""
        rows = [target.judge(self.measured) for target in self.suite.targets]
        seconds = time.monotonic() - self.start
        text = targets_table(rows, f"bench.suite={self.name} ({seconds:.0f} s)")
        if self.failed:
            text += "\nFailed: " + "; ".join(f"{name}: {why}" for name, why in self.failed.items()) + "\n"
        turns: dict[str, Any] = {}
        for name, timings in self.measured.timings.items():
            settings = self.baselines[name]
            measured = describe_settings(settings)
            ceiling = measure_ceiling(device_of(settings), bf16=settings.trainer.precision == "bf16-mixed")
            text += "\n" + speed_table(timings, dict.fromkeys(timings, ceiling), measured)
            turns[name] = {
                "measured": measured,
                "ceiling": dataclasses.asdict(ceiling),
                "timings": {key: dataclasses.asdict(timing) for key, timing in timings.items()},
            }
        results = {
            "suite": self.name,
            "seconds": seconds,
            "bars": rows,
            "single": self.measured.single,
            "failed": self.failed,
            "turns": turns,
        }
        write_atomic(self.job.folder / "bench.json", json.dumps(results, indent=2) + "\n")
        write_atomic(self.job.folder / "table.md", text)
        return rows
