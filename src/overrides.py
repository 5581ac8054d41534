"""The command line: arguments of a resumed run, and what a rejected override was probably meant to be."""

import difflib
import re
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

from src.mistakes import UserError, one_line

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"


def resume_arguments(arguments: list[str]) -> list[str]:
    """Arguments that make Hydra compose a stored run's own configuration, in its own folder.

    Without a `resume=<folder>` among them, the arguments as they are. Further `key=value` overrides change
    single values; the parts a run is made of (residual, data, ...) stay its own.

    Raises:
        UserError: the folder is no run, or an override would make another run of it.
    """
    given = [a for a in arguments if a.lstrip("+").startswith("resume=")]
    value = given[-1].partition("=")[2].strip("'\"") if given else "null"
    if value in ("null", ""):
        return arguments
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("resume continues one run and cannot be part of a sweep; leave out -m")
    folder = Path(value).resolve()
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"resume={value} is no run folder (it has no config.yaml); "
            "give one that holds config.yaml and checkpoints/, as under multirun/"
        )
    rest = [a for a in arguments if a not in given]
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    for argument in rest:
        key = argument.lstrip("+~").partition("=")[0]
        if key in groups:
            raise UserError(f"{argument}: a resumed run keeps its own {key}; leave it out or start a new run")
    place = _quoted(folder)
    return [
        "--config-path",
        str(folder),
        "--config-name",
        "config",
        f"hydra.run.dir={place}",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
        f"resume={place}",
        *rest,
    ]


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def explain(error: BaseException) -> str:
    """A configuration error in one line, with the nearest name where one is likely meant."""
    text = str(error)
    if found := re.search(r"Could not find '([\w./-]+)/([^'/]+)'", text):
        group, option = found.groups()
        if (CONF / group).is_dir():
            return f"{group}={option} is no option{_meant(option, options(group))}; options: " + ", ".join(
                options(group)
            )
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(found.group(1))
    if found := re.search(r"full_key: (\S+)", text):
        return f"{found.group(1)}: {one_line(error).split(' full_key:')[0]}"
    return one_line(error).split(" See https://")[0]


def unknown_key(key: str) -> str:
    """What to say of a key that does not exist."""
    return f"{key} is no key{_meant(key, keys())}; `python run.py --cfg job` shows them all"


def _meant(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


def options(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def keys() -> list[str]:
    """Every dotted key that some shipped configuration has, and the groups themselves."""
    known: set[str] = set()
    for path in CONF.rglob("*.yaml"):
        group = path.parent.relative_to(CONF).as_posix()
        prefix = "" if group in (".", "task", "experiment", "scale") else f"{group}."
        known.update(prefix + key for key in _dotted(OmegaConf.to_container(OmegaConf.load(path)), ""))
        if group != ".":
            known.add(group)
    return sorted(known)


def _dotted(node: object, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return []
    found = []
    for key, value in node.items():
        if key not in ("defaults", "hydra") and not str(key).startswith("_"):
            found += [f"{prefix}{key}", *_dotted(value, f"{prefix}{key}.")]
    return found
