"""task=study: conduct a planned comparison, phase after phase, as ordinary runs below one folder.

python run.py task=study study=miniature                      run it, or continue it
python run.py task=study study=miniature until=timing         time every system and print the plan
python run.py task=study study=miniature hydra/launcher=joblib

`hydra_plugins/reslab_study.py` calls `conduct`, which repeats: read the results, ask `src/study/phases.py` for the next
runs, launch them. A run that diverges is a result; one that fails stops the study after its batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict

from src.errors import UserError, one_line, raise_user_errors
from src.files import CONF, write_atomic
from src.launch.compositions import name_compositions
from src.launch.folder_lock import lock_folder
from src.launch.job import USER_ERROR, Job, TaskEnd
from src.launch.outcomes import JobFailedError
from src.models.flops import average_flops_per_token
from src.settings.read import read_settings
from src.settings.sections import read_section
from src.study.describe import describe_phase, describe_plan, describe_power
from src.study.finished_runs import keep_finished, read_finished
from src.study.page import write_verdict
from src.study.phases import (
    PHASES,
    Cost,
    Costs,
    Phase,
    Results,
    RunSpec,
    check_lengths,
    middle_rate,
    next_runs,
    parse_folder,
)
from src.study.plan import OWN_KEYS, StudyPlan, check_plan, merge_overrides, override_key
from src.study.record import StudyRecord, freeze, job_overrides, list_outdated, open_record, read_results
from src.training.memory import check_memory
from src.training.run import build_gpt

#: Keys of the command line that are not part of the plan.
NOT_PLANNED = ("task", "study", "until", "amend", "records", "name")
#: Launchers whose jobs run on this machine, so that its memory is theirs.
LOCAL = ("basic", "joblib", "submitit_local")
#: Steps of the configurations that costs are counted for: longer than any warm-up.
LONG = 10**9


@dataclass(frozen=True)
class Machinery:
    """Functions of Hydra that a study needs.

    Args:
        compose: returns the configuration of a job by its overrides.
        launch: runs a batch of jobs, given by their overrides and the number of the first; returns how they ended.
    """

    compose: Callable[[list[str]], DictConfig]
    launch: Callable[[list[list[str]], int], Sequence[JobReturn]]


def run(job: Job) -> TaskEnd:
    """Reject a study without its sweeper.

    Raises:
        UserError: always; the sweeper conducts the study.
    """
    raise UserError("task=study runs by its own sweeper; leave out hydra/sweeper and hydra.mode")


def conduct(config: DictConfig, arguments: list[str], machinery: Machinery) -> None:
    """Run a study to its end or to `until`.

    Args:
        config: configuration of the invocation.
        arguments: overrides of the command line.
        machinery: composition and launch of jobs.

    Raises:
        UserError: the plan is wrong, changed after confirmation began, or a run was rejected.
        JobFailedError: a run failed.
    """
    with raise_user_errors():
        plan = read_plan(config, arguments)
        name, until = str(config.name), _read_until(config)
        folder = Path(str(config.hydra.sweep.dir)).resolve()
        is_local = str(config.hydra.runtime.choices["hydra/launcher"]) in LOCAL
        costs = count_costs(plan, machinery, is_local)
        untimed = [kind for kind in plan.budget.kinds if kind != "seconds"] if plan.budget.kind != "seconds" else []
        check_lengths(plan, costs, {}, untimed)
        with lock_folder(folder):
            record = open_record(folder, name, plan, costs, config.amend)
            path = None if config.records is None else Path(str(config.records))
            if path is not None:
                added = read_finished(path, folder, record, lambda spec: named_overrides(plan, spec))
                print(f"records: {added} runs from {path}", flush=True)
            record.write(folder)  # not before the file is accepted
            with keep_finished(path, folder, record):
                _run_phases(folder, record, until, machinery)


def read_plan(config: DictConfig, arguments: list[str]) -> StudyPlan:
    """Return the plan of a configuration; overrides of the command line are overrides of every run.

    Raises:
        UserError: there is no study, or its plan is wrong.
    """
    section = config.get("study")
    if section is None:
        names = ", ".join(sorted(path.stem for path in (CONF / "study").glob("*.yaml")))
        raise UserError(f"task=study needs study=<name>, a file of conf/study; give one of {names}")
    with raise_user_errors():
        plan = read_section("study", section, StudyPlan)
    extras = [a for a in arguments if override_key(a).partition(".")[0] not in NOT_PLANNED]
    in_plan = {override_key(o) for group in (*plan.systems.values(), *plan.sizes.values()) for o in group}
    for extra in extras:
        if override_key(extra) in {*in_plan, *OWN_KEYS}:
            raise UserError(
                f"{extra}: the study sets {override_key(extra)} in its runs; leave it out or edit the study"
            )
    tree = {**plan.__dict__, "common": merge_overrides(plan.common, extras)}
    plan = StudyPlan(**tree)
    check_plan(plan)
    return plan


def _read_until(config: DictConfig) -> str | None:
    until = config.until
    if until is not None and until not in PHASES[:-1]:
        raise UserError(f"until must be null or one of {', '.join(PHASES[:-1])}, got {until}")
    return None if until is None else str(until)


# ---- costs


def count_costs(plan: StudyPlan, machinery: Machinery, is_local: bool) -> Costs:
    """Return the costs of every system at every size, from its configuration.

    Raises:
        UserError: a configuration is wrong, or does not fit this machine.
    """
    costs = {}
    for size in plan.sizes:
        for system in plan.systems:
            spec = RunSpec("search", size, system, middle_rate(plan), LONG, plan.seeds.search[0])
            config = machinery.compose(["task=train", *named_overrides(plan, spec)])
            with open_dict(config):
                config.pop("hydra", None)
            warmup = OmegaConf.select(config, "optimizer.warmup_steps")
            try:
                settings = read_settings(config)
                if is_local:
                    check_memory(settings)
                with torch.device("meta"):
                    flops = average_flops_per_token(build_gpt(settings), LONG)
            except ValueError as error:
                raise UserError(f"{system} at size {size}: {one_line(error)}") from error
            per_step = settings.config["data"]["global_batch_size"] * settings.model.block_size
            costs[size, system] = Cost(per_step, flops, warmup if isinstance(warmup, int) else None)
    return costs


def named_overrides(plan: StudyPlan, spec: RunSpec) -> list[str]:
    """Return the overrides of a run, with compositions as Hydra knows them."""
    return name_compositions(job_overrides(plan, spec))


def complete_overrides(folder: Path, record: StudyRecord, spec: RunSpec) -> list[str]:
    """Return the overrides of a run, its place in the study and its folder."""
    place = f"name:'{record.name}',plan:'{record.hash}',phase:{spec.phase},size:'{spec.size}'"
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [
        "task=train",
        *named_overrides(record.plan, spec),
        f"++study={{{place}}}",
        f"hydra.sweep.dir='{escaped}'",
        f"hydra.sweep.subdir='{spec.folder}'",
        "hydra.mode=MULTIRUN",
    ]


# ---- phases


def _run_phases(folder: Path, record: StudyRecord, until: str | None, machinery: Machinery) -> None:
    plan, costs = record.plan, record.costs
    n_launched = 0
    shown: str | None = None
    while True:
        results = _read_planned(folder, record)
        due = next_runs(plan, costs, results)
        phase = None if due is None else due[0]
        if phase != "timing" and shown is None:
            check_lengths(plan, costs, results, plan.budget.kinds)
            lines = describe_plan(record.name, plan, costs, results)
            print("\n".join(lines), flush=True)
            write_atomic(folder / "plan.txt", "\n".join(lines) + "\n")
        elif phase not in (None, "timing", "pilot") and shown == "pilot":
            print(describe_power(plan, costs, results).strip(), flush=True)
        shown = shown if phase == "timing" else phase or "end"
        if due is None or (until is not None and PHASES.index(due[0]) > PHASES.index(until)):
            page, sentences = write_verdict(folder, folder)
            print("\n".join(sentences))
            print(f"study {record.name}: {'complete' if due is None else f'stopped after {until}'}; {page}")
            return
        if phase != "timing" and (outdated := list_outdated(record, results)):
            raise UserError(
                f"by the results of now these are not the frozen values: {'; '.join(outdated)}; restore the runs of the "
                "search and the timing, from records=<file> if it has them, or give another hydra.sweep.dir"
            )
        if due[0] in ("confirmation", "ladder") and not record.is_frozen:
            record.frozen = freeze(record, results)
            record.write(folder)
        _launch(folder, record, due[0], due[1], machinery, n_launched)
        n_launched += len(due[1])


def _read_planned(folder: Path, record: StudyRecord) -> Results:
    """Return the results of runs that were started with the overrides of this plan."""
    found = read_results(folder)
    planned = {}
    for name in found:
        spec = parse_folder(name)
        if spec is not None and spec.size in record.plan.sizes and spec.system in record.plan.systems:
            planned[name] = named_overrides(record.plan, spec)
    return read_results(folder, planned)


def _launch(
    folder: Path, record: StudyRecord, phase: Phase, specs: list[RunSpec], machinery: Machinery, first: int
) -> None:
    """Launch runs and check that each has a result.

    Raises:
        UserError: a run was rejected.
        JobFailedError: a run failed.
    """
    print(describe_phase(phase, specs), flush=True)
    batch = [complete_overrides(folder, record, spec) for spec in specs]
    ended = machinery.launch(batch, first)
    results = read_results(folder)
    for spec, end in zip(specs, ended, strict=True):
        if spec.folder in results and end.status == JobStatus.COMPLETED:
            continue
        error = end._return_value  # the property raises it
        line = one_line(error) if isinstance(error, Exception) else "it has no result"
        text = f"the study stopped after its {phase}, since {spec.folder} did not complete: {line}"
        if getattr(error, "code", None) == USER_ERROR:
            raise UserError(text)
        print(f"error: {text}; the same command continues it", flush=True)
        raise JobFailedError(text)
