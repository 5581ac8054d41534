"""Steps timed in turns: in one process, built in a shuffled order and stepped in one shuffled every round.

A ratio is the median of the rounds' own ratios of time a token, with their quartiles. On a CPU the clock is the
process's CPU time, which neighbours disturb least; on a GPU the wall's, once all work is done. A first step is
timed by the wall: compilers work in processes of their own.

Memory is the most that torch's allocator hands out within a step over what it found: counted by torch itself on
a GPU, and on a CPU from the allocations of one untimed step, which are the same in each. It has no part in what
the process is given by the system, and neither do libraries' own work spaces.
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

import torch
from torch import Tensor

from src.bench.candidates import Entrant
from src.bench.stopwatch import Stopwatch
from src.errors import one_line

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds a step by round, the rounds' ratios to the baseline's time a token, and what a step is.

    Rounds are in the order of the models that were built, `builds` of them, each for as many rounds.
    """

    seconds: list[float]
    ratios: list[float]
    first_seconds: float  # of the first step by the wall, which compiles
    tokens: int  # of a step
    flops_per_token: int
    n_params: int
    state_bytes: int  # weights and optimizer
    step_bytes: int  # a step's memory over what it finds
    parts: dict[str, float]  # median seconds of each part
    builds: int = 1

    def quartiles(self) -> tuple[float, float, float]:
        """Of the ratios: lower, median, upper."""
        if len(self.ratios) < 2:
            return (self.ratios[0],) * 3
        low, middle, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, middle, high

    def joined(self, later: "Timing") -> "Timing":
        """With the rounds of the same model built once more; what does not depend on them is the first one's."""
        return dataclasses.replace(
            self,
            seconds=self.seconds + later.seconds,
            ratios=self.ratios + later.ratios,
            builds=self.builds + later.builds,
        )

    @property
    def step_seconds(self) -> float:
        """The median step."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_s(self) -> float:
        """At the median step."""
        return self.tokens / self.step_seconds


def alternate(
    builders: Mapping[str, Callable[[], Entrant]], device: str, rounds: int, seed: int
) -> dict[str, Timing]:
    """Time one step of each in turn, `rounds` times after two that are not counted; the first is the baseline."""
    watch = Stopwatch(device)
    generator = torch.Generator().manual_seed(seed)
    order = random.Random(seed)
    built = {name: builders[name]() for name in order.sample(list(builders), len(builders))}
    entrants = {name: built[name] for name in builders}
    batches = [batches_for(entrants, generator, device) for _ in range(rounds + 2)]
    first, memory = {}, {}
    for name, one in entrants.items():
        began = time.perf_counter()
        timed(one, batches[0][name], watch)
        first[name] = time.perf_counter() - began
    for name, one in entrants.items():
        memory[name] = step_bytes(one, batches[1][name], device)
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in entrants}
    for batch in batches[2:]:
        for name in order.sample(list(entrants), len(entrants)):
            in_all, by_part = timed(entrants[name], batch[name], watch)
            seconds[name].append(in_all)
            parts[name].append(by_part)
    base = next(iter(entrants))
    timings = {}
    for name, one in entrants.items():
        longer = entrants[base].tokens() / one.tokens()
        ratios = [longer * ours / theirs for ours, theirs in zip(seconds[name], seconds[base], strict=True)]
        timings[name] = Timing(
            seconds[name],
            ratios,
            first[name],
            one.tokens(),
            one.flops_per_token,
            one.n_params,
            one.state_bytes(),
            memory[name],
            {part: statistics.median(row[part] for row in parts[name]) for part in parts[name][0]},
        )
    return timings


def time_in_turns(
    builders: Mapping[str, Callable[[], Entrant]],
    *,
    device: str,
    rounds: int,
    at_once: int,
    seed: int,
    deadline: float = math.inf,
    told: Callable[[dict[str, Timing]], None] | None = None,
    failed: dict[str, str] | None = None,
) -> dict[str, Timing]:
    """All timings, the first one's in front: the baseline, which stays while groups of `at_once` others come and go.

    No group begins after `deadline` (`time.monotonic`); `told` hears of each. With `failed`, the members of a group
    that fails take their turns alone, and who fails alone is noted there; without, a failure ends the bench.
    """
    baseline, *others = builders
    # Each model is compiled for itself, though all run the same code.
    torch._dynamo.config.recompile_limit = max(8, 4 * len(builders))
    kept = functools.cache(builders[baseline])
    timings: dict[str, Timing] = {}
    groups = [others[start : start + at_once] for start in range(0, max(1, len(others)), at_once)]
    while groups and time.monotonic() <= deadline:
        some = groups.pop(0)
        try:
            found = alternate({baseline: kept, **{name: builders[name] for name in some}}, device, rounds, seed)
        except Exception as error:
            if failed is None:
                raise
            if len(some) > 1:
                groups[:0] = [[name] for name in some]
            else:
                failed.update(dict.fromkeys(some, one_line(error)))
            continue
        finally:
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
        if baseline in timings:
            del found[baseline]
        timings.update(found)
        for name in some:
            log.info("%s: %.3f [%.3f, %.3f] of %s's step", name, *_in_order(timings[name]), baseline)
        if told is not None:
            told(timings)
    return timings


def _in_order(timing: Timing) -> tuple[float, float, float]:
    low, middle, high = timing.quartiles()
    return middle, low, high


def batches_for(entrants: Mapping[str, Entrant], generator: torch.Generator, device: str) -> dict[str, Tensor]:
    """Uniform token ids [B, T + 1] for each; the same for all of the same sizes."""
    drawn: dict[tuple[int, int, int], Tensor] = {}
    for one in entrants.values():
        size = (one.micro_batch_size, one.block_size, one.vocab_size)
        if size not in drawn:
            shape = (one.micro_batch_size, one.block_size + 1)
            drawn[size] = torch.randint(one.vocab_size, shape, generator=generator).to(device)
    return {name: drawn[e.micro_batch_size, e.block_size, e.vocab_size] for name, e in entrants.items()}


def timed(one: Entrant, tokens_BT: Tensor, watch: Stopwatch) -> tuple[float, dict[str, float]]:
    """Seconds of one step, and of its parts."""
    watch.start()
    one.step(tokens_BT[:, :-1], tokens_BT[:, 1:], watch)
    return watch.stop()


def step_bytes(one: Entrant, tokens_BT: Tensor, device: str) -> int:
    """The most that a step has allocated at a time."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        found = torch.cuda.memory_allocated()
        one.step(tokens_BT[:, :-1], tokens_BT[:, 1:])
        return torch.cuda.max_memory_allocated() - found
    with silent(), torch.profiler.profile(profile_memory=True) as profile:
        one.step(tokens_BT[:, :-1], tokens_BT[:, 1:])
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what a library writes to standard error past Python: the profiler tells that it starts and stops."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
