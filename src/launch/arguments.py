"""Command-line arguments that name a run: `resume=`, `from_run=` its configuration, `branch_from=` its checkpoint."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from src.errors import UserError
from src.files import CONF
from src.launch.command_line import WITH_VALUE
from src.launch.world import World, read_world

#: Keys that name a run folder whose configuration is used, and what each does with the run.
STORED = {"resume": "continue a run", "from_run": "run it again", "branch_from": "start at a step of it"}
#: Folders of a new run and of a sweep; conf/config.yaml states the same, which the config.yaml of a run folder lacks.
RUN_DIR = "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S-%f}-${name}"
SWEEP = [
    "hydra.sweep.dir=multirun/${now:%Y-%m-%d}/${now:%H-%M-%S-%f}-sweep",
    "hydra.sweep.subdir=${hydra.job.num}-${name}",
]
#: Keys that a resumed run takes from its launcher; without one there is one node.
NODES = "++trainer.num_nodes=auto"
RANKS = ["++trainer.devices=auto", NODES, "++trainer.restarts=0"]
#: Keys of a run of one rank, or of one that was not sharded.
UNSHARDED = ["++trainer.strategy=auto", "++trainer.shard_within_node=false"]
#: Length of a branch whose decay is given: the decay begins at the branch.
BRANCH_END = "trainer.max_steps='${add:${at},${schedule.decay_steps}}'"

OmegaConf.register_new_resolver("add", lambda *terms: sum(terms), replace=True)


def use_stored_config(arguments: list[str]) -> list[str]:
    """Return arguments that make Hydra compose the stored configuration of a run.

    `resume=<folder>` continues the run in its folder, `from_run=<folder>` runs its configuration in a new folder and
    `branch_from=<folder> at=<step>` continues it from a step in a new folder; without any, the arguments are returned
    unchanged. Further `key=value` overrides change single values, while the components (residual, data, ...) stay
    those of the run. Trusted packages are never read from the file.

    Raises:
        UserError: the folder holds no run, or an override would change what the run is.
    """
    world = read_world()
    return _compose_stored(resolve_auto(resume_after_restart(arguments, world)), world)


def _compose_stored(arguments: list[str], world: World) -> list[str]:
    given = {key: value for key in STORED if (value := _value(arguments, key)) is not None}
    if not given or _value(arguments, "hydra.run.dir") == given.get("resume", ""):
        return arguments
    if len(given) > 1:
        choices = " or ".join(f"{key}=<folder> ({STORED[key]})" for key in given)
        raise UserError(f"give {choices}, not {'both' if len(given) == 2 else 'all'}")
    ((key, value),) = given.items()
    if key != "branch_from" and {"-m", "--multirun"} & set(arguments):
        raise UserError(f"{key} takes one run and cannot be part of a sweep; leave out -m")
    folder = Path(value).resolve()
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{key}={value} is not a run folder (it has no config.yaml); "
            "give one that holds config.yaml and checkpoints/, as under multirun/"
        )
    _reject_hydra_keys(folder / "config.yaml")
    rest = [a for a in arguments if _key(a) != key]
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    for argument in rest:
        if _key(argument) in groups:
            hint = "leave it out or start a new run"
            if _key(argument) == "evaluation" and key == "resume":
                hint = f"score its weights otherwise with task=evaluate run={value} {argument}"
            raise UserError(f"{argument}: {key}= keeps the {_key(argument)} of the stored run; {hint}")
    if key == "branch_from":
        rest = _complete_branch(rest)
    quoted = _quote(folder)
    ranks = _rank_keys(folder / "config.yaml", world)
    flags = [argument for argument in rest if argument in ("-m", "--multirun")]  # all before the overrides
    return [
        *flags,
        "--config-path",
        str(folder),
        "--config-name",
        "config",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
        "++trusted_targets=[]",
        f"hydra.run.dir={quoted if key == 'resume' else RUN_DIR}",
        *ranks,
        f"++{key}={quoted}",
        *(argument for argument in rest if argument not in flags),
    ]


def _rank_keys(stored: Path, world: World) -> list[str]:
    """Return the overrides by which a run of a stored configuration takes its ranks from its launcher, if any."""
    if not world.is_launched:
        return [NODES]
    is_sharded = OmegaConf.select(OmegaConf.load(stored), "trainer.strategy") == "fsdp" and world.size > 1
    return RANKS if is_sharded else [*RANKS, *UNSHARDED]


def _complete_branch(rest: list[str]) -> list[str]:
    """Return the overrides of a branch, with the length that follows from `at` and the decay where none is given.

    Raises:
        UserError: no step is given.
    """
    if _value(rest, "at") is None:
        raise UserError("branch_from=<run folder> needs at=<step>, a step of which the run has a checkpoint")
    keys = {_key(argument) for argument in rest}
    # A configuration that was stored before the branch has no `at`, and its kept steps are those of the other run.
    own = [f"++{argument.lstrip('+')}" if _key(argument) == "at" else argument for argument in rest]
    kept = [] if "trainer.keep_steps" in keys else ["++trainer.keep_steps=null"]
    follows = "schedule.decay_steps" in keys and "trainer.max_steps" not in keys
    return [*SWEEP, *kept, *([BRANCH_END] if follows else []), *own]


def resume_after_restart(arguments: list[str], world: World) -> list[str]:
    """Add `resume=` to the arguments of a job that its launcher starts again, if it has a run folder by now.

    The run is known by the launcher's job, which result.json states, and by the same command line. SLURM counts
    restarts; torchrun does not count those after a node has joined, so there an unfinished run is enough. `resume`
    replaces `from_run` and `branch_from`, which began the run. A sweep is left alone: where its `hydra.sweep.dir` is
    given, each of its jobs is skipped or resumes by itself.

    Raises:
        UserError: the run that `from_run` or `branch_from` names is gone.
    """
    is_again = world.restarts > 0 or world.launcher == "torchrun"
    if not is_again or not world.job or _value(arguments, "resume") or {"-m", "--multirun"} & set(arguments):
        return arguments
    folder = _value(arguments, "hydra.run.dir")
    records = [Path(folder) / "result.json"] if folder is not None else list(Path("multirun").rglob("result.json"))
    composed = _compose_stored(arguments, world)
    found = [path.parent for path in records if path.is_file() and _is_same_job(path, composed, world)]
    if not found:
        return arguments
    newest = _quote(max(found, key=lambda path: path.stat().st_mtime))
    if composed == arguments:
        return [*arguments, f"hydra.run.dir={newest}", f"resume={newest}"]
    began = ("from_run", "branch_from", "at", "hydra.run.dir")
    return [*(argument for argument in arguments if _key(argument) not in began), f"resume={newest}"]


def _is_same_job(record: Path, arguments: list[str], world: World) -> bool:
    """Return whether the run with this result.json was started by the same job with the same arguments for Hydra."""
    try:
        result = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:  # a damaged record is of no job; the job that it belongs to reports it
        return False
    if result.get("launched_by") != world.job or (not world.restarts and result.get("status") == "completed"):
        return False
    overrides = record.parent / ".hydra" / "overrides.yaml"
    resolved = {_key(argument) for argument in arguments if "${" in argument}  # of which Hydra stores the values
    return overrides.is_file() and _own(list(OmegaConf.load(overrides)), resolved) == _own(arguments, resolved)


def _own(arguments: list[str], resolved: set[str]) -> list[str]:
    """Return the overrides among the arguments, without Hydra's, the keys `resolved` and what follows from the ranks."""
    before = ["", *arguments]
    values = [a for flag, a in zip(before, arguments, strict=False) if flag not in WITH_VALUE]
    own = [a for a in values if not a.startswith(("hydra.", "hydra/", "-")) and _key(a) not in resolved]
    return [a for a in own if a not in (*RANKS, *UNSHARDED)]


def resolve_auto(arguments: list[str]) -> list[str]:
    """Replace `resume=auto` by the run in `hydra.run.dir`, or the newest run of this `name` under multirun/.

    Without such a run a new one starts, so one command line starts a run and continues it.

    Raises:
        UserError: neither `name` nor `hydra.run.dir` is given.
    """
    if _value(arguments, "resume") != "auto":
        return arguments
    rest = [a for a in arguments if _key(a) != "resume"]
    folder, name = _value(rest, "hydra.run.dir"), _value(rest, "name")
    if folder is not None:
        return [*rest, f"resume={_quote(Path(folder))}"] if (Path(folder) / "config.yaml").is_file() else rest
    if name is None:
        raise UserError("resume=auto needs name=<name> or hydra.run.dir=<folder> to identify the run")
    found = [p for p in Path("multirun").rglob("config.yaml") if p.parent.name != ".hydra" and _has_name(p, name)]
    if not found:
        return rest
    newest = _quote(max(found, key=lambda path: path.stat().st_mtime).parent)
    return [*rest, f"hydra.run.dir={newest}", f"resume={newest}"]


def _has_name(path: Path, name: str) -> bool:
    try:
        stored = OmegaConf.load(path)
    except (OSError, ValueError, yaml.YAMLError):  # a damaged file, or that of a run that another process removes now
        return False
    return isinstance(stored, DictConfig) and str(stored.get("name")) == name


def _reject_hydra_keys(path: Path) -> None:
    stored = OmegaConf.to_container(OmegaConf.load(path))
    wrong = sorted({"hydra", "defaults"} & set(stored if isinstance(stored, dict) else ()))
    if wrong:
        raise UserError(f"{path} contains {wrong[0]}, which no run writes; remove it")


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]


def _value(arguments: list[str], key: str) -> str | None:
    given = [a.partition("=")[2].strip("'\"") for a in arguments if _key(a) == key and "=" in a]
    return given[-1] if given and given[-1] not in ("null", "") else None


def _quote(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def stored_yaml(config: dict[str, Any]) -> str:
    """Return the text of a run's config.yaml: composed again, it gives the same values."""
    return OmegaConf.to_yaml(OmegaConf.create(escape_references(config)))


def escape_references(tree: Any) -> Any:  # a tree of plain values
    """Return the tree with every `${` escaped, so that OmegaConf keeps a text that looks like a reference."""
    if isinstance(tree, dict):
        return {key: escape_references(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [escape_references(value) for value in tree]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if isinstance(tree, str) else tree
