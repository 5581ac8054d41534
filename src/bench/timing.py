"""Alternating timing: in one process, candidates take single steps in an order that is shuffled every round.

The ratio to the baseline is the median over rounds of the round's own ratio of time per token, with quartiles. On a
CPU the clock is the process's CPU time, which other processes disturb least; on a GPU it is wall time with the device
synchronized. The first step is timed by wall time, since compilers work in processes of their own.

Memory is the largest amount that torch's allocator holds within a step above the amount at its start: from torch's
own counter on a GPU, and on a CPU from the allocations of one profiled, untimed step. It excludes what the process
holds outside torch's allocator, such as the workspaces of libraries.
"""

import contextlib
import dataclasses
import functools
import gc
import logging
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from src.bench.candidates import BuiltCandidate
from src.bench.step import Stopwatch
from src.errors import one_line

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per step by round, the rounds' ratios to the baseline's time per token, and the step's sizes.

    The model was built `builds` times and timed for equally many rounds each time; `seconds` has them in that order.
    """

    seconds: list[float]
    ratios: list[float]
    first_seconds: float  # wall time of the first step, which compiles
    tokens: int  # of a step
    flops_per_token: int
    n_params: int
    state_bytes: int  # weights and optimizer
    step_bytes: int  # peak memory of a step above the memory at its start
    parts: dict[str, float]  # median seconds of each part
    builds: int = 1

    def quartiles(self) -> tuple[float, float, float]:
        """Return the lower quartile, the median and the upper quartile of the ratios."""
        low, middle, high = np.percentile(self.ratios, [25, 50, 75]).tolist()
        return low, middle, high

    def joined(self, later: "Timing") -> "Timing":
        """Return this timing with the rounds of another build of the same model appended; sizes stay the first's."""
        return dataclasses.replace(
            self,
            seconds=self.seconds + later.seconds,
            ratios=self.ratios + later.ratios,
            builds=self.builds + later.builds,
        )

    @property
    def step_seconds(self) -> float:
        """Median time of a step."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_s(self) -> float:
        """Throughput at the median step."""
        return self.tokens / self.step_seconds


def alternate(
    builders: Mapping[str, Callable[[], BuiltCandidate]], device: str, rounds: int, seed: int
) -> dict[str, Timing]:
    """Time one step of each candidate in turn for `rounds` rounds, after two untimed ones; the first is the baseline."""
    watch = Stopwatch(device)
    generator = torch.Generator().manual_seed(seed)
    order = random.Random(seed)
    # Build in a shuffled order too: a model's place in memory affects its speed.
    built = {name: builders[name]() for name in order.sample(list(builders), len(builders))}
    candidates = {name: built[name] for name in builders}
    batches = [draw_batches(candidates, generator, device) for _ in range(rounds + 2)]
    # Two warm-up rounds: the first compiles, the second measures memory.
    first, memory = {}, {}
    for name, one in candidates.items():
        start = time.perf_counter()
        time_step(one, batches[0][name], watch)
        first[name] = time.perf_counter() - start
    for name, one in candidates.items():
        memory[name] = step_bytes(one, batches[1][name], device)
    # Timed rounds: every candidate takes one step on the round's batch.
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
    for batch in batches[2:]:
        for name in order.sample(list(candidates), len(candidates)):
            total, by_part = time_step(candidates[name], batch[name], watch)
            seconds[name].append(total)
            parts[name].append(by_part)
    # Ratios of time per token, each within its own round.
    base = next(iter(candidates))
    timings = {}
    for name, one in candidates.items():
        scale = candidates[base].n_tokens() / one.n_tokens()
        ratios = [scale * ours / theirs for ours, theirs in zip(seconds[name], seconds[base], strict=True)]
        timings[name] = Timing(
            seconds=seconds[name],
            ratios=ratios,
            first_seconds=first[name],
            tokens=one.n_tokens(),
            flops_per_token=one.flops_per_token,
            n_params=one.n_params,
            state_bytes=one.state_bytes(),
            step_bytes=memory[name],
            parts={part: statistics.median(row[part] for row in parts[name]) for part in parts[name][0]},
        )
    return timings


def time_in_turns(
    builders: Mapping[str, Callable[[], BuiltCandidate]],
    *,
    device: str,
    rounds: int,
    at_once: int,
    seed: int,
    deadline: float = math.inf,
    on_group: Callable[[dict[str, Timing]], None] | None = None,
    failed: dict[str, str] | None = None,
) -> dict[str, Timing]:
    """Time all candidates beside the first, the baseline, which stays while groups of `at_once` others are built.

    No group starts after `deadline` (`time.monotonic`); `on_group` is called with the timings after each group. If
    `failed` is given, the members of a failing group are timed one by one, and the error of one that fails alone is
    stored there; otherwise a failure ends the benchmark.
    """
    baseline, *others = builders
    # All models run the same code, but each is compiled for itself.
    torch._dynamo.config.recompile_limit = max(8, 4 * len(builders))
    build_baseline: Callable[[], BuiltCandidate] = functools.cache(builders[baseline])
    timings: dict[str, Timing] = {}
    groups = [others[start : start + at_once] for start in range(0, max(1, len(others)), at_once)]
    while groups and time.monotonic() <= deadline:
        group = groups.pop(0)
        try:
            members = {baseline: build_baseline} | {name: builders[name] for name in group}
            found = alternate(members, device, rounds, seed)
        except Exception as error:
            if failed is None:
                raise
            if len(group) > 1:
                groups[:0] = [[name] for name in group]
            else:
                failed.update(dict.fromkeys(group, one_line(error)))
            continue
        finally:
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
        if baseline in timings:
            del found[baseline]  # keep the baseline's rounds of the first group
        timings.update(found)
        for name in group:
            low, middle, high = timings[name].quartiles()
            log.info("%s: %.3f [%.3f, %.3f] of %s's step", name, middle, low, high, baseline)
        if on_group is not None:
            on_group(timings)
    return timings


def draw_batches(
    candidates: Mapping[str, BuiltCandidate], generator: torch.Generator, device: str
) -> dict[str, Tensor]:
    """Draw uniform token ids [B, T + 1] for each candidate; candidates of equal sizes share one batch."""

    @functools.cache
    def draw(batch: int, length: int, vocab_size: int) -> Tensor:
        return torch.randint(vocab_size, (batch, length), generator=generator).to(device)

    sizes = {name: (c.micro_batch_size, c.block_size + 1, c.vocab_size) for name, c in candidates.items()}
    return {name: draw(*size) for name, size in sizes.items()}


def time_step(one: BuiltCandidate, tokens_BT: Tensor, watch: Stopwatch) -> tuple[float, dict[str, float]]:
    """Return the seconds of one step on token ids [B, T + 1], and of its parts."""
    watch.start()
    one.step(tokens_BT[:, :-1], tokens_BT[:, 1:], watch)
    return watch.stop()


def step_bytes(one: BuiltCandidate, tokens_BT: Tensor, device: str) -> int:
    """Return the peak of allocated bytes within a step above the bytes allocated at its start."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        one.step(tokens_BT[:, :-1], tokens_BT[:, 1:])
        return torch.cuda.max_memory_allocated() - start
    with silence_stderr(), torch.profiler.profile(profile_memory=True) as profile:
        one.step(tokens_BT[:, :-1], tokens_BT[:, 1:])
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    allocated = peak = 0
    for _, change in changes:
        allocated += change
        peak = max(peak, allocated)
    return peak


@contextlib.contextmanager
def silence_stderr() -> Iterator[None]:
    """Discard what libraries write to file descriptor 2, such as the profiler's start and stop messages."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
