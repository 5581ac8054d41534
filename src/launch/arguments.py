"""The command line: arguments of a resumed run, and what a rejected override was probably meant to be."""

import difflib
import re
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.errors import UserError, one_line

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"

#: Where a run goes; conf/config.yaml says the same, which a stored configuration does not hold.
RUN_DIR = "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S-%f}-${name}"


def arguments_of_a_stored_run(arguments: list[str]) -> list[str]:
    """Arguments that make Hydra compose a stored run's own configuration.

    With `resume=<folder>` the run goes on in its folder, with `from_run=<folder>` it is run again in another; with
    neither, the arguments as they are. Further `key=value` overrides change single values; the parts that a run is
    made of (residual, data, ...) stay its own. Whom to trust is never read from the file.

    Raises:
        UserError: the folder is no run, or an override would make another run of it.
    """
    arguments = resume_auto(arguments)
    resume, again = (_value(arguments, key) for key in ("resume", "from_run"))
    if (resume is None and again is None) or _value(arguments, "hydra.run.dir") == resume is not None:
        return arguments
    key, value = ("resume", resume) if resume is not None else ("from_run", again)
    assert value is not None  # one of them is
    if resume is not None and again is not None:
        raise UserError("give resume=<folder> (go on with a run) or from_run=<folder> (run it again), not both")
    if {"-m", "--multirun"} & set(arguments):
        raise UserError(f"{key} takes one run and cannot be part of a sweep; leave out -m")
    folder = Path(value).resolve()
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{key}={value} is no run folder (it has no config.yaml); "
            "give one that holds config.yaml and checkpoints/, as under multirun/"
        )
    _refuse_plumbing(folder / "config.yaml")
    rest = [a for a in arguments if _key(a) != key]
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    for argument in rest:
        if _key(argument) in groups:
            what = "a resumed run keeps its" if key == "resume" else "a run that is run again has its"
            raise UserError(f"{argument}: {what} own {_key(argument)}; leave it out or start a new run")
    place = _quoted(folder)
    own = [f"hydra.run.dir={place if key == 'resume' else RUN_DIR}", f"++{key}={place}"]
    return [
        "--config-path",
        str(folder),
        "--config-name",
        "config",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
        "++trusted_targets=[]",
        *own,
        *rest,
    ]


def resume_auto(arguments: list[str]) -> list[str]:
    """`resume=auto`: the run in `hydra.run.dir`, or the newest one of this `name` under multirun/; else a new one.

    The configuration stays that of the command line, so one line serves to start a run and to go on with it.

    Raises:
        UserError: neither name nor folder is given.
    """
    if _value(arguments, "resume") != "auto":
        return arguments
    rest = [a for a in arguments if _key(a) != "resume"]
    place, name = _value(rest, "hydra.run.dir"), _value(rest, "name")
    if place is not None:
        return [*rest, f"resume={_quoted(Path(place))}"] if (Path(place) / "config.yaml").is_file() else rest
    if name is None:
        raise UserError("resume=auto needs name=<name> or hydra.run.dir=<folder>, to know the run by")
    found = [p for p in Path("multirun").rglob("config.yaml") if p.parent.name != ".hydra" and _named(p, name)]
    if not found:
        return rest
    newest = _quoted(max(found, key=lambda path: path.stat().st_mtime).parent)
    return [*rest, f"hydra.run.dir={newest}", f"resume={newest}"]


def _named(path: Path, name: str) -> bool:
    stored = OmegaConf.load(path)
    return isinstance(stored, DictConfig) and str(stored.get("name")) == name


def _refuse_plumbing(path: Path) -> None:
    stored = OmegaConf.to_container(OmegaConf.load(path))
    wrong = sorted({"hydra", "defaults"} & set(stored if isinstance(stored, dict) else ()))
    if wrong:
        raise UserError(f"{path} holds {wrong[0]}, which no run writes there; it is not used")


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]


def _value(arguments: list[str], key: str) -> str | None:
    given = [a.partition("=")[2].strip("'\"") for a in arguments if _key(a) == key and "=" in a]
    return given[-1] if given and given[-1] not in ("null", "") else None


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def stored_yaml(config: dict[str, Any]) -> str:
    """The config.yaml of a run: composed again, it gives the same values."""
    return OmegaConf.to_yaml(OmegaConf.create(literal(config)))


def literal(tree: Any) -> Any:  # a tree of plain values
    """The tree as OmegaConf must be given it, so that a text that looks like a reference stays a text."""
    if isinstance(tree, dict):
        return {key: literal(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [literal(value) for value in tree]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if isinstance(tree, str) else tree


def explain(error: BaseException) -> str:
    """A configuration error in one line, with the nearest name where one is likely meant."""
    text = str(error)
    if found := re.search(r"Could not find '([\w./-]+)/([^'/]+)'", text):
        group, option = found.groups()
        if (CONF / group).is_dir():
            return f"{group}={option} is no option{meant(option, options(group))}; options: " + ", ".join(
                options(group)
            )
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(found.group(1))
    if found := re.search(r"full_key: (\S+)", text):
        return f"{found.group(1)}: {one_line(error).split(' full_key:')[0]}"
    return one_line(error).split(" See https://")[0]


def unknown_key(key: str) -> str:
    """What to say of a key that does not exist, or exists under other options than the chosen ones."""
    group, _, rest = key.partition(".")
    having = [
        name for name in options(group) if rest and rest in _dotted(_loaded(CONF / group / f"{name}.yaml"), "")
    ]
    if having:
        return f"{key} is no key of this configuration but of {group}={' or '.join(having)}; choose that first"
    return f"{key} is no key{meant(key, keys())}; `python run.py --cfg job` shows them all"


def meant(name: str, known: list[str]) -> str:
    """The nearest of the names that there are, as the end of a sentence."""
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
        known.update(prefix + key for key in _dotted(_loaded(path), ""))
        if group != ".":
            known.add(group)
    return sorted(known)


def _loaded(path: Path) -> object:
    return OmegaConf.to_container(OmegaConf.load(path))


def _dotted(node: object, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return []
    found = []
    for key, value in node.items():
        if key not in ("defaults", "hydra") and not str(key).startswith("_"):
            found += [f"{prefix}{key}", *_dotted(value, f"{prefix}{key}.")]
    return found
