"""Record of a study in its folder: plan.json, and the results of its runs.

plan.json holds the plan with its hash, the costs of every system, and from the first confirmation run on what was
frozen: the chosen rates, the steps of every run and the measured sd. A plan that changes later needs a stated reason;
plan.json keeps it with the changed keys, and the report names them.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.errors import UserError
from src.files import flatten, read_object, write_json
from src.study.phases import PHASES, Cost, Costs, Results, RunResult, RunSpec, choose_rate, count_steps
from src.study.plan import UNITS, StudyPlan, override_key, plan_hash, plan_tree, restore_plan
from src.study.power import pilot_sd

#: File of the study's record in its folder.
RECORD = "plan.json"
#: What the order of a plan's sizes decides, and the hash of the plan does not depend on, in a list of changed keys.
FIRST_SIZE = "first size"


@dataclass
class StudyRecord:
    """Record of a study.

    Args:
        name: name of the study file.
        plan: the plan in force.
        costs: costs of each system by size and system.
        frozen: what was fixed before the first confirmation run, with its time and hash, and `of`, the hash of the
            plan that rates and steps are of; None until then.
        changes: changes of the plan after that, each with time, reason, hash and keys.
    """

    name: str
    plan: StudyPlan
    costs: Costs
    frozen: dict[str, Any] | None = None
    changes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def hash(self) -> str:
        """Return the hash of the plan in force."""
        return plan_hash(self.plan)

    @property
    def is_frozen(self) -> bool:
        """Return whether rates and steps of the plan in force are frozen; those of an amended plan are not at first."""
        return self.frozen is not None and self.frozen.get("of", self.frozen["hash"]) == self.hash

    @property
    def hashes(self) -> set[str]:
        """Return the hashes of the plans that were in force since the confirmation began."""
        frozen = [] if self.frozen is None else [str(self.frozen["hash"])]
        return {self.hash, *frozen, *(str(change["hash"]) for change in self.changes)}

    def write(self, folder: Path) -> None:
        """Write plan.json."""
        tree = {
            "format": 1,
            "name": self.name,
            "hash": self.hash,
            "plan": plan_tree(self.plan),
            "costs": [[size, system, dataclasses.asdict(cost)] for (size, system), cost in self.costs.items()],
            "frozen": self.frozen,
            "changes": self.changes,
        }
        write_json(folder / RECORD, tree)


def read_record(folder: Path) -> StudyRecord:
    """Read plan.json.

    Raises:
        ValueError: it is not as a study writes it.
    """
    tree = read_object(folder / RECORD)
    try:
        plan = restore_plan(tree["plan"])
        costs = {(size, system): Cost(**cost) for size, system, cost in tree["costs"]}
        record = StudyRecord(tree["name"], plan, costs, tree["frozen"], tree["changes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / RECORD} is not as a study writes it: {error!r}; restore it") from error
    if record.hash != tree["hash"]:
        raise ValueError(f"{folder / RECORD} was edited: its plan has the hash {record.hash}, not {tree['hash']}")
    return record


def open_record(folder: Path, name: str, plan: StudyPlan, costs: Costs, reason: str | None) -> StudyRecord:
    """Return the record of a study that starts or continues with a plan; it is not written yet.

    Args:
        folder: folder of the study.
        name: name of the study file.
        plan: the plan of this invocation.
        costs: its systems' costs.
        reason: why a frozen plan changes; None rejects a change.

    Raises:
        UserError: the plan is frozen and another one, and there is no reason.
    """
    record = StudyRecord(name, plan, costs)
    if (folder / RECORD).is_file():
        before = read_record(folder)
        if before.frozen is not None:
            record.frozen, record.changes = before.frozen, before.changes
            changed = _compare_plans(before.plan, plan)
            if changed and reason is None:
                keys = ", ".join(_state_change(key, old, new) for key, (old, new) in changed.items())
                raise UserError(
                    f"the plan of study {name} changed after its confirmation began on {before.frozen['time']}: "
                    f"{keys}; restore it, give another hydra.sweep.dir, or give amend='<reason>', which the report "
                    "states"
                )
            if changed:
                record.changes.append({"time": now(), "reason": reason, "hash": record.hash, "keys": changed})
            if FIRST_SIZE in changed:  # whose rates and steps the hash does not tell from those of now
                record.frozen = {**before.frozen, "of": None}
    return record


def freeze(record: StudyRecord, results: Results) -> dict[str, Any]:
    """Return what is fixed before the first confirmation run: rates, steps and the sd of the pilot.

    An amended plan keeps time and hash of the first freeze.
    """
    plan, costs = record.plan, record.costs
    rates = {
        size: {system: choose_rate(plan, costs, results, size, system).lr for system in plan.systems}
        for size in plan.sizes
    }
    steps = {
        kind: {
            size: {system: count_steps(plan, costs, results, size, system, kind) for system in plan.systems}
            for size in plan.sizes
        }
        for kind in plan.budget.kinds
    }
    sd = pilot_sd(plan, costs, results)
    first = record.frozen or {"time": now(), "hash": record.hash}
    known = {"time": first["time"], "hash": first["hash"], "of": record.hash}
    return {**known, "rates": rates, "steps": steps, "sd": sd}


def list_outdated(record: StudyRecord, results: Results) -> list[str]:
    """Return what was frozen and is another value by the results of now, as after a repeated run on another CPU."""
    plan, costs, frozen = record.plan, record.costs, record.frozen
    if frozen is None or not record.is_frozen:
        return []
    found = []
    for size in plan.sizes:
        for system in plan.systems:
            with contextlib.suppress(ValueError):  # the search is not complete
                lr, now_lr = frozen["rates"][size][system], choose_rate(plan, costs, results, size, system).lr
                if size in plan.search_sizes and lr != now_lr:
                    found.append(f"the rate of {system} at size {size} ({lr}, now {now_lr})")
            for kind in plan.budget.kinds:
                n, now_n = frozen["steps"][kind][size][system], count_steps(plan, costs, results, size, system, kind)
                if n != now_n:
                    found.append(f"the steps of {system} at size {size} and equal {UNITS[kind]} ({n}, now {now_n})")
    return found


def _compare_plans(then: StudyPlan, now: StudyPlan) -> dict[str, tuple[Any, Any]]:
    old, new = (flatten(json.loads(json.dumps(plan_tree(plan)))) for plan in (then, now))
    changed = {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}
    if then.first_size != now.first_size:
        changed[FIRST_SIZE] = (then.first_size, now.first_size)
    return changed


def _state_change(key: str, old: object, new: object) -> str:
    """State how a key changed; of a list of overrides, which is long, what was removed and added."""
    if not (isinstance(old, list) and isinstance(new, list)):
        return f"{key} was {old}, is {new}"
    removed, added = [x for x in old if x not in new], [x for x in new if x not in old]
    parts = [f"{verb} {values}" for verb, values in (("removed", removed), ("added", added)) if values]
    return f"{key}: {' and '.join(parts) or 'another order'}"


def now() -> str:
    """Return the time in UTC to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- results


def read_results(folder: Path, overrides: Mapping[str, Sequence[str]] | None = None) -> dict[str, RunResult]:
    """Return the results of the study's completed and diverged runs by folder.

    Args:
        folder: folder of the study.
        overrides: overrides that a run must have been started with, by folder; others are left out. None: any.
    """
    found = {}
    for phase in PHASES:
        for path in sorted((folder / phase).glob("*/*/result.json")):
            name = path.parent.relative_to(folder).as_posix()
            result = read_object(path)
            if result.get("status") not in ("completed", "diverged"):
                continue
            if overrides is not None and _started_with(path.parent) != _computing(overrides.get(name, [])):
                continue
            loss = result.get("val_loss") if result["status"] == "completed" else None
            found[name] = RunResult(
                math.inf if loss is None or not math.isfinite(loss) else float(loss),
                result.get("tokens_per_s"),
                result.get("seconds"),
                float(result.get("tokens") or 0),
            )
    return found


def _started_with(folder: Path) -> list[str]:
    path = folder / ".hydra" / "overrides.yaml"
    return _computing([str(text) for text in OmegaConf.load(path)]) if path.is_file() else []


def _computing(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those on the study, which change with the plan."""
    return [text for text in overrides if override_key(text).partition(".")[0] not in ("study", "hydra", "task")]


def job_overrides(plan: StudyPlan, spec: RunSpec) -> list[str]:
    """Return the overrides of a run that decide what it computes."""
    timing = ["optimizer.warmup_steps=0", "evaluation=none"] if spec.phase == "timing" else []
    groups = (plan.common, plan.sizes[spec.size], plan.systems[spec.system], timing)
    merged = {override_key(text): text for group in groups for text in group}
    own = {
        "name": f"name={spec.system}",
        "seed": f"seed={spec.seed}",
        "optimizer.lr": f"optimizer.lr={spec.lr:g}",
        "trainer.max_steps": f"trainer.max_steps={spec.steps}",
    }
    if spec.phase != "timing":
        own["check"] = "check=off"  # the timing run has checked the strategy
    else:
        own["trainer.log_every_steps"] = f"trainer.log_every_steps={max(1, spec.steps // 10)}"
    return list({**merged, **own}.values())
