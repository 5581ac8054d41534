"""Runs grouped into the systems that are compared, and what makes a comparison unfair.

A system is a name and a configuration but for its seed and its place; its runs are one a seed.
"""

from dataclasses import dataclass
from typing import Any

from src.reporting.runs import Run, final_scores

NOTHING = "-"
#: Keys that say where and how a run is carried out, not what it computes.
PLACE = (
    "name",
    "seed",
    "resume",
    "task",
    "check",
    "evaluation",
    "logger",
    "samples",
    "data.path",
    "data.cache",
    "data.workers",
    "data.micro_batch_size",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
    "trainer.threads",
    "trainer.compile",
    "trainer.onednn",
    "trainer.log_every_steps",
    "trainer.val_every_steps",
    "trainer.checkpoint_every_steps",
    "trainer.stream_pictures",
)
#: What must be equal for speeds, times and memory to compare.
SPEED = ("device", "world_size", "threads", "precision", "compile", "onednn")


@dataclass(frozen=True)
class System:
    """Completed runs that differ in their seed only, in the order of their seeds."""

    label: str
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The name that the runs share."""
        return self.runs[0].name


@dataclass(frozen=True)
class Sorted:
    """Runs sorted into systems; what cannot be compared, with the reason."""

    systems: list[System]
    failures: list[tuple[Run, str]]


@dataclass(frozen=True)
class Unfair:
    """A key in which a system differs from what it is compared with, besides the compared axis."""

    system: str
    what: str  # what the difference touches: loss, speed, a metric
    key: str
    theirs: str
    baseline: str


def computes(run: Run) -> dict[str, Any]:
    """The part of a run's configuration that its numbers follow from, seed apart."""
    kept = {key: value for key, value in run.config.items() if not within(key, PLACE)}
    data = run.result.get("data") or {}
    return {**kept, "data.hash": str(data.get("hash", "?"))[:12]}


def within(key: str, sections: tuple[str, ...] | list[str]) -> bool:
    """Whether a dotted key is one of `sections` or lies inside one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def sort_runs(runs: list[Run]) -> Sorted:
    """Group by name and configuration; of runs with the same seed the last by path counts."""
    failures: list[tuple[Run, str]] = []
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        reason = run.failure()
        if reason is not None:
            failures.append((run, reason))
            continue
        group = groups.setdefault((run.name, repr(sorted(computes(run).items()))), {})
        if run.seed in group:
            again = f"repeated: {run.folder.name} is the same configuration and seed, and later"
            failures.append((group[run.seed], again))
        group[run.seed] = run
    members = [tuple(group[seed] for seed in sorted(group)) for group in groups.values()]
    labels = _labels([runs[0] for runs in members])
    systems = [System(label, runs) for label, runs in zip(labels, members, strict=True)]
    return Sorted(systems, failures)


def _labels(firsts: list[Run]) -> list[str]:
    """The name; where several systems share it, with the keys that tell them apart."""
    labels = []
    for run in firsts:
        others = [computes(other) for other in firsts if other.name == run.name]
        keys = sorted({key for other in others for key in other})
        telling = [key for key in keys if len({repr(other.get(key)) for other in others}) > 1]
        own = computes(run)
        labels.append(" ".join([run.name, *(f"{key}={own.get(key, '-')}" for key in telling)]))
    return labels


def unfair(systems: list[System], reference: System, axis: list[str]) -> list[Unfair]:
    """Every key outside `axis` in which a system differs from `reference`, or its runs among themselves."""
    ours = _facts(reference)
    found = []
    for system in systems:
        theirs = _facts(system)
        for what, key in sorted({*ours, *theirs}):
            if within(key, axis) or _absent_score((what, key), ours, theirs):
                continue
            a, b = theirs.get((what, key), {NOTHING}), ours.get((what, key), {NOTHING})
            if a != b or len(a) > 1:
                found.append(Unfair(system.label, what, key, " / ".join(sorted(a)), " / ".join(sorted(b))))
    return found


Facts = dict[tuple[str, str], set[str]]


def _facts(system: System) -> Facts:
    """What a system's numbers rest on: by what it touches and key, the values among its runs."""
    found: Facts = {}
    for run in system.runs:
        versions = run.result.get("versions") or {}
        facts = {("loss", key): value for key, value in computes(run).items()}
        facts |= {("speed", key): run.result.get(key) for key in SPEED}
        facts |= {("software", f"versions.{key}"): versions.get(key) for key in ("torch", "lm-eval")}
        facts["software", "git"] = _short(run.result.get("git"))
        for column, score in final_scores(run)[0].items():
            facts |= {(column, k): v[:12] if k == "sha256" else v for k, v in score.identity}
        for key, value in facts.items():
            found.setdefault(key, set()).add(NOTHING if value is None else str(value))
    return found


def _short(commit: str | None) -> str | None:
    """A commit by its first digits, marked where the tree was not it."""
    return None if commit is None else commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def _absent_score(fact: tuple[str, str], ours: Facts, theirs: Facts) -> bool:
    """Whether one side has not got the score at all, so that there is nothing to compare."""
    what, _ = fact
    return any(all(found_what != what for found_what, _ in side) for side in (ours, theirs))
