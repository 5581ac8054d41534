"""Systems of a comparison: runs grouped by configuration, and the differences that make a comparison unfair.

A system is a name and a configuration without its seed and without `EXECUTION_KEYS`; it has one run per seed.
"""

from dataclasses import dataclass
from typing import Any

from src.datamodules.tokenization.base import describe, identify
from src.reporting.config_keys import EXECUTION_KEYS, is_within
from src.reporting.runs import Run, final_scores

NOTHING = "-"
#: Keys of result.json that must be equal for speeds, times and memory to be comparable.
SPEED = ("device", "machine", "world_size", "threads", "precision", "compile", "onednn")
#: Keys of the configuration that must be equal for speeds to be comparable; runs of earlier versions lack them.
SPEED_KEYS = ("trainer.checkpoint_activations", "trainer.shard_within_node", "trainer.detect_anomaly")


@dataclass(frozen=True)
class System:
    """Completed runs that differ in their seed only, sorted by seed."""

    label: str
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """Name that the runs share."""
        return self.runs[0].name


@dataclass(frozen=True)
class GroupedRuns:
    """Runs grouped into systems, and the runs that cannot be compared with the reasons."""

    systems: list[System]
    failures: list[tuple[Run, str]]


@dataclass(frozen=True)
class Difference:
    """Key outside the compared axis in which a system differs from what it is compared with."""

    system: str
    what: str  # what the difference affects: loss, speed, software or a metric
    key: str
    theirs: str
    baseline: str


def computed_config(run: Run) -> dict[str, Any]:
    """Return the part of a run's configuration that determines its numbers, without the seed and what is null."""
    kept = {
        key: value
        for key, value in run.config.items()
        if value is not None
        and not is_within(key, ("seed", *EXECUTION_KEYS))
        and not key.endswith(("._partial_", "._convert_"))
    }
    data = run.result.get("data") or {}
    return {**kept, "data.hash": str(data.get("hash", "?"))[:12]}


def list_tokenizers(systems: list[System]) -> dict[str, str]:
    """Return the tokenizers that runs state, in words, by hash; runs of earlier versions state none."""
    found = {}
    for system in systems:
        for run in system.runs:
            statement = (run.result.get("data") or {}).get("tokenizer")
            if statement and (known := identify(statement)) is not None:
                found[known] = describe(statement)
    return found


def group_runs(runs: list[Run]) -> GroupedRuns:
    """Group runs by name and configuration; of runs with the same seed the last by path is kept."""
    failures: list[tuple[Run, str]] = []
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        reason = run.failure()
        if reason is not None:
            failures.append((run, reason))
            continue
        group = groups.setdefault((run.name, repr(sorted(computed_config(run).items()))), {})
        if run.seed in group:
            again = f"repeated: {run.folder.name} is the same configuration and seed, and later"
            failures.append((group[run.seed], again))
        group[run.seed] = run
    members = [tuple(group[seed] for seed in sorted(group)) for group in groups.values()]
    labels = _label_systems([runs[0] for runs in members])
    systems = [System(label, runs) for label, runs in zip(labels, members, strict=True)]
    return GroupedRuns(systems, failures)


def _label_systems(firsts: list[Run]) -> list[str]:
    """Return each system's name, followed by the keys that distinguish systems of one name."""
    configs = [computed_config(run) for run in firsts]
    values: dict[str, dict[str, set[str]]] = {}  # by name and key, of all systems of the name
    for run, config in zip(firsts, configs, strict=True):
        for key, value in config.items():
            values.setdefault(run.name, {}).setdefault(key, set()).add(repr(value))
    for run, config in zip(firsts, configs, strict=True):
        for key, found in values[run.name].items():
            if key not in config:
                found.add(repr(None))
    return [
        " ".join([run.name, *(f"{k}={own.get(k, NOTHING)}" for k, v in sorted(values[run.name].items()) if len(v) > 1)])
        for run, own in zip(firsts, configs, strict=True)
    ]


def find_differences(systems: list[System], reference: System, axis: list[str]) -> list[Difference]:
    """Return every key outside `axis` in which a system differs from `reference`, or its runs from each other."""
    ours = _collect_facts(reference)
    found = []
    for system in systems:
        theirs = _collect_facts(system)
        for what, key in sorted({*ours, *theirs}):
            on_both_sides = all(any(kind == what for kind, _ in side) for side in (ours, theirs))
            if is_within(key, axis) or not on_both_sides:  # a score that one side lacks has no conditions
                continue
            a, b = theirs.get((what, key), {NOTHING}), ours.get((what, key), {NOTHING})
            if a != b or len(a) > 1:
                found.append(Difference(system.label, what, key, " / ".join(sorted(a)), " / ".join(sorted(b))))
    return found


Facts = dict[tuple[str, str], set[str]]


def _collect_facts(system: System) -> Facts:
    """Collect the conditions of a system's numbers: the values among its runs by what they affect and key."""
    found: Facts = {}
    for run in system.runs:
        versions = run.result.get("versions") or {}
        facts = {("loss", key): value for key, value in computed_config(run).items()}
        facts |= {("speed", key): run.result.get(key) for key in SPEED}
        facts |= {("speed", key): bool(run.config.get(key)) for key in SPEED_KEYS}
        facts["speed", "trainer.strategy=fsdp"] = run.config.get("trainer.strategy") == "fsdp"
        facts |= {("software", f"versions.{key}"): versions.get(key) for key in ("torch", "lm-eval")}
        for column, score in final_scores(run)[0].items():
            facts |= {(column, k): v[:12] if k == "sha256" else v for k, v in score.identity}
        for key, value in facts.items():
            found.setdefault(key, set()).add(NOTHING if value is None else str(value))
        found.setdefault(("software", "code"), set()).update(_list_code(run))
    return found


def _list_code(run: Run) -> list[str]:
    """Return the hashes of the source files that trained a run, more than one if it was resumed under other code.

    The commit stands in for them in runs of earlier versions; it also changes with files that compute nothing.
    """
    sources = [str(code["sources"])[:12] for code in run.result.get("code") or ()]
    commit = run.result.get("git") or NOTHING
    return sources or [commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")]
