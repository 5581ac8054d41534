"""Plan of a study: the keys of a file in `conf/study`, what they must satisfy, and their hash.

A study compares systems (lists of overrides) in phases:

    timing         a few steps of every system at every size: its throughput, and whether it fits
    pilot          the baseline with seeds of its own: sd between seeds
    search         learning rates of every system, with seeds of its own
    confirmation   every system at its best rate, at the first size, with seeds that no earlier phase used
    ladder         the same at the other sizes

Every number that decides something is a key of the plan, so its hash states what was planned.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from src.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Kind = Literal["tokens", "flops", "seconds"]
#: Names of the units in sentences.
UNITS: dict[Kind, str] = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}
Share = Annotated[float, Field(gt=0, lt=1)]
#: Names of systems and sizes are parts of paths.
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
#: Keys that the study sets in each run.
OWN_KEYS = (
    *("task", "study", "name", "seed", "resume", "from_run"),
    *("optimizer.lr", "trainer.max_steps", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.mode"),
)


@dataclass(frozen=True)
class Rates:
    """Search of the learning rate `optimizer.lr`.

    Args:
        grid: rates in any order; a single one is divided and multiplied by `factor` once.
        factor: ratio of a rate to the next where the grid is extended.
        max_extensions: rates added, one at a time, while the best is the smallest or the largest of the grid.
        sizes: `first` searches at the first size and uses its rates at all, `every` searches at every size.
    """

    grid: list[PositiveFloat]
    factor: Annotated[float, Field(gt=1)]
    max_extensions: NonNegativeInt
    sizes: Literal["first", "every"]


@dataclass(frozen=True)
class Seeds:
    """Seeds by phase; `confirmation` and `ladder` may share theirs, no others may."""

    pilot: list[NonNegativeInt]
    search: list[NonNegativeInt]
    confirmation: list[NonNegativeInt]
    ladder: list[NonNegativeInt]


@dataclass(frozen=True)
class Budget:
    """Length of a run; its learning-rate schedule ends there.

    Args:
        tokens: training tokens; exactly one of `tokens`, `flops` and `seconds` is given.
        flops: training FLOPs.
        seconds: seconds of training steps, at the throughput that the timing phase measured.
        by_size: amounts in the same unit for sizes whose budget is another one.
        search_share: part of the budget that a run of the search has.
        equal: further comparisons; at equal FLOPs, for example, every system gets the FLOPs of the baseline's run.
    """

    tokens: PositiveFloat | None
    flops: PositiveFloat | None
    seconds: PositiveFloat | None
    by_size: dict[str, PositiveFloat]
    search_share: Annotated[float, Field(gt=0, le=1)]
    equal: list[Kind]

    @property
    def kind(self) -> Kind:
        """Return the unit of the budget."""
        kinds: tuple[Kind, ...] = ("tokens", "flops", "seconds")
        return next(kind for kind in kinds if getattr(self, kind) is not None)

    @property
    def kinds(self) -> list[Kind]:
        """Return the units in which runs are made equal, that of the budget first."""
        return list(dict.fromkeys([self.kind, *self.equal]))

    def amount(self, size: str) -> float:
        """Return the budget of a run at a size."""
        return self.by_size.get(size, float(getattr(self, self.kind)))


@dataclass(frozen=True)
class StudyPlan:
    """Plan of a study.

    Args:
        common: overrides of every run.
        systems: overrides by system.
        sizes: overrides by size; the pilot, the search and the confirmation run at the first.
        baseline: the system whose fit the compute multiplier inverts.
        rates: search of the learning rate.
        seeds: seeds by phase.
        budget: length of a run.
        contrasts: planned comparisons as pairs of systems: the difference is the first's loss minus the second's.
        alpha: level of the planned comparisons in total (Holm).
        power: probability with which the smallest detectable difference is detected.
        margin: nats; systems whose interval lies within plus and minus this are called equal.
        sd: nats; sd of a run over seeds that the plan assumes until the pilot has measured it.
        timing_steps: steps of a run of the timing phase.
    """

    common: list[str]
    systems: dict[str, list[str]]
    sizes: dict[str, list[str]]
    baseline: str
    rates: Rates
    seeds: Seeds
    budget: Budget
    contrasts: list[list[str]]
    alpha: Share
    power: Share
    margin: NonNegativeFloat
    sd: PositiveFloat
    timing_steps: PositiveInt

    @property
    def first_size(self) -> str:
        """Return the size of the pilot, the search and the confirmation."""
        return next(iter(self.sizes))

    @property
    def search_sizes(self) -> list[str]:
        """Return the sizes at which rates are searched."""
        return list(self.sizes) if self.rates.sizes == "every" else [self.first_size]


def check_plan(plan: StudyPlan) -> None:
    """Check what the types of the keys do not state.

    Raises:
        ValueError: all errors, one sentence each.
    """
    errors = [
        *_check_names(plan),
        *_check_seeds(plan.seeds),
        *_check_budget(plan),
        *_check_overrides(plan),
    ]
    if not plan.rates.grid or len({*plan.rates.grid}) < len(plan.rates.grid):
        errors.append(f"study.rates.grid must hold distinct rates, at least one, got {plan.rates.grid}")
    if errors:
        raise ValueError("; ".join(errors))


def _check_names(plan: StudyPlan) -> Iterable[str]:
    for key, names in (("systems", plan.systems), ("sizes", plan.sizes)):
        if not names:
            yield f"study.{key} must name at least one"
        for name in names:
            if not NAME.fullmatch(name):
                yield f"study.{key}: {name!r} must consist of letters, digits and . _ + -, as it names a folder"
    known = f"one of {', '.join(plan.systems)}"
    if plan.baseline not in plan.systems:
        yield f"study.baseline={plan.baseline} is not a system; give {known}"
    if not plan.contrasts:
        yield "study.contrasts must hold at least one pair of systems, such as [attnres, vanilla]"
    for pair in plan.contrasts:
        if len(pair) != 2 or pair[0] == pair[-1]:
            yield f"study.contrasts must hold pairs of two systems, got {pair}"
        for name in pair:
            if name not in plan.systems:
                yield f"study.contrasts names {name}, which is not a system; give {known}"


def _check_seeds(seeds: Seeds) -> Iterable[str]:
    for field in dataclasses.fields(seeds):
        values = getattr(seeds, field.name)
        if len({*values}) < len(values):
            yield f"study.seeds.{field.name} must hold distinct seeds, got {values}"
    minimum = {"search": 1, "confirmation": 2, "ladder": 1}
    for name, least in minimum.items():
        if len(getattr(seeds, name)) < least:
            yield f"study.seeds.{name} must hold at least {least}, got {getattr(seeds, name)}"
    if len(seeds.pilot) == 1:
        yield f"study.seeds.pilot must hold at least 2 seeds or none (study.sd is used then), got {seeds.pilot}"
    fresh = {*seeds.confirmation, *seeds.ladder}
    for name in ("search", "pilot"):
        if both := sorted(fresh & {*getattr(seeds, name)}):
            yield (
                f"study.seeds.{name} and study.seeds.confirmation or ladder share {both}; give the confirmation seeds "
                "that no earlier phase used"
            )
    if both := sorted({*seeds.pilot} & {*seeds.search}):
        yield f"study.seeds.pilot and study.seeds.search share {both}; give each its own"


def _check_budget(plan: StudyPlan) -> Iterable[str]:
    given = [kind for kind in ("tokens", "flops", "seconds") if getattr(plan.budget, kind) is not None]
    if len(given) != 1:
        yield f"study.budget must give one of tokens, flops and seconds, got {' and '.join(given) or 'none'}"
    for size in plan.budget.by_size:
        if size not in plan.sizes:
            yield f"study.budget.by_size names {size}, which is not a size; give one of {', '.join(plan.sizes)}"


def _check_overrides(plan: StudyPlan) -> Iterable[str]:
    groups = {
        "common": plan.common,
        **{f"systems.{name}": overrides for name, overrides in plan.systems.items()},
        **{f"sizes.{name}": overrides for name, overrides in plan.sizes.items()},
    }
    for group, overrides in groups.items():
        for override in overrides:
            key = override_key(override)
            if "=" not in override and not override.startswith("~"):
                yield f"study.{group}: {override!r} must be an override such as model.n_layer=6"
            elif key in OWN_KEYS:
                yield f"study.{group}: {key} is set by the study in every run; leave it out"
    in_sizes = {override_key(override) for overrides in plan.sizes.values() for override in overrides}
    for name, overrides in plan.systems.items():
        for override in overrides:
            if override_key(override) in in_sizes:
                yield f"study.systems.{name} and study.sizes both set {override_key(override)}; leave it in one of them"


def override_key(override: str) -> str:
    """Return the key of an override, such as `model.n_layer` of `++model.n_layer=6`."""
    return override.lstrip("+~").partition("=")[0]


def merge_overrides(*groups: Iterable[str]) -> list[str]:
    """Return the overrides of all groups; of those with one key the last."""
    return list({override_key(override): override for group in groups for override in group}.values())


def plan_tree(plan: StudyPlan) -> dict[str, Any]:
    """Return the plan as plain values."""
    return dataclasses.asdict(plan)


def restore_plan(tree: dict[str, Any]) -> StudyPlan:
    """Return the plan whose plain values these are."""
    parts = {"rates": Rates(**tree["rates"]), "seeds": Seeds(**tree["seeds"]), "budget": Budget(**tree["budget"])}
    return StudyPlan(**{**tree, **parts})


def plan_hash(plan: StudyPlan) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the plan."""
    return hashlib.sha256(json.dumps(plan_tree(plan), sort_keys=True).encode()).hexdigest()[:16]
