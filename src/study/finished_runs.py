"""Records of finished runs in one small file, by which a study continues on another machine without its folder.

    line 1   study, hash of the plan, what was frozen, changes of the plan; values that most runs have in common
    others   a run: its folder, the values in which it differs (machine, commit, losses, ...), validated rows of its curve

A run that is read becomes a run folder without checkpoints: config.yaml, result.json, metrics.jsonl, and the overrides by
which the study knows it. Places (paths, caches) are left out.
"""

import json
import logging
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from src.errors import UserError, one_line
from src.files import flatten, read_object, read_rows, write_atomic, write_json
from src.study.phases import RunSpec, parse_folder
from src.study.record import StudyRecord, read_results

log = logging.getLogger(__name__)

Flat = dict[str, Any]

FORMAT = 1
#: Size above which a file is too large to be committed.
MAX_BYTES = 200_000
#: Validated rows of a run that are kept, at equal distances, the last one among them.
MAX_ROWS = 10
COLUMNS = ("step", "tokens", "train/loss", "val/loss", "val/bpb", "tokens_per_s")
#: Digits of the numbers of a curve; the final losses are kept as they are.
DIGITS = 6
#: Keys that are left out: places, long lists, and what only the machine of the run knows.
PLACES = (
    *("data.path", "data.cache", "data.val_sets", "task", "resume", "from_run", "hydra"),
    *("data.shards", "data.manifest", "launched_by", "peak_memory_bytes", "study.page"),
)
NOTHING = "<absent>"


def write_finished(path: Path, folder: Path, record: StudyRecord) -> int:
    """Write the records of a study's ended runs atomically, with those that the file holds; return their number."""
    runs = _restore_runs(path) | {name: _read_run(folder / name) for name in read_results(folder)}
    runs = dict(sorted(runs.items()))
    common = {part: _find_common([run[part] for run in runs.values()]) for part in ("config", "result")}
    head = {
        "format": FORMAT,
        "study": record.name,
        "plan": record.hash,
        "frozen": record.frozen,
        "changes": record.changes,
        "columns": COLUMNS,
        "common": common,
    }
    lines = [head]
    for name, run in runs.items():
        parts = {part: _subtract(run[part], common[part]) for part in ("config", "result")}
        lines.append({"run": name, **parts, "rows": run["rows"]})
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    if len(text) > MAX_BYTES:
        log.warning("%s has %d bytes, more than the %d of a file to commit", path, len(text), MAX_BYTES)
    return len(runs)


def read_finished(path: Path, folder: Path, record: StudyRecord, overrides: Callable[[RunSpec], list[str]]) -> int:
    """Give a study's folder the runs of a file that it lacks, and its record what was frozen; return their number.

    A file of a plan that was amended since is read too.

    Args:
        path: the file; without one nothing happens.
        folder: folder of the study.
        record: its record.
        overrides: returns the overrides of a planned run.

    Raises:
        UserError: the file is damaged, of another study or plan, or of a plan whose runs were others.
    """
    if not path.is_file():
        return 0
    lines = _parse(path)
    head, runs = lines[0], lines[1:]
    if head["study"] != record.name or head["plan"] not in record.hashes:
        raise UserError(
            f"records={path} is of study {head['study']}, plan {head['plan']}, and this is study {record.name}, plan "
            f"{record.hash}; restore the plan, data.path and other overrides included, or give another file"
        )
    amended = {key for change in record.changes for key in change["keys"]} if head["plan"] != record.hash else set()
    if other := sorted(key for key in amended if key.partition(".")[0] in ("common", "systems", "sizes")):
        raise UserError(
            f"records={path} has runs from before {', '.join(other)} changed, which are not runs of this plan; give "
            "another file, which will hold the runs of this plan"
        )
    adopts = record.frozen is None and head["frozen"] is not None
    # The hash of a plan does not depend on the order of its sizes.
    first = {s.size for run in runs if (s := parse_folder(run["run"])) and s.phase in ("pilot", "confirmation")}
    if adopts and first and record.plan.first_size not in first:
        raise UserError(
            f"records={path} has frozen values for the first size {', '.join(sorted(first))}, and the first of "
            f"study.sizes is {record.plan.first_size}; restore their order or give another file"
        )
    finished = read_results(folder)
    added = 0
    for run in runs:
        spec = parse_folder(run["run"])
        if spec is None or spec.system not in record.plan.systems or spec.size not in record.plan.sizes:
            raise UserError(f"records={path} holds {run['run']}, which is not a run of study {record.name}; restore it")
        if run["run"] not in finished:
            shutil.rmtree(folder / run["run"], ignore_errors=True)  # of an interrupted run
            _write_run(folder / run["run"], head["common"], run, overrides(spec))
            added += 1
    if adopts:
        record.frozen, record.changes = head["frozen"], head["changes"]
    return added


@contextmanager
def keep_finished(path: Path | None, folder: Path, record: StudyRecord, every_s: float = 60.0) -> Iterator[None]:
    """Write the file while the block runs, whenever another run has ended, and at its end; None writes nothing."""
    if path is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        written: set[str] = set()
        while not ended.wait(every_s):
            try:
                if (names := {*read_results(folder)}) != written:
                    write_finished(path, folder, record)
                    written = names
            except (OSError, ValueError) as error:  # a file in the middle of being replaced, a full disk
                log.warning("records=%s is not written yet: %s", path, one_line(error))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write_finished(path, folder, record)


def _restore_runs(path: Path) -> dict[str, dict[str, Any]]:
    """Return the runs of a file in the form of `_read_run`, by folder; none without a file."""
    if not path.is_file():
        return {}
    head, *runs = _parse(path)
    return {
        run["run"]: {**run, **{part: _add(head["common"][part], run[part]) for part in ("config", "result")}}
        for run in runs
    }


# ---- one run


def _read_run(folder: Path) -> dict[str, Any]:
    result = read_object(folder / "result.json")
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    rows = [row for row in read_rows(folder / "metrics.jsonl") if "val/loss" in row]
    distance = max(1, -(-len(rows) // MAX_ROWS))
    kept = rows[::-1][::distance][::-1]
    return {
        "config": _keep(flatten(config)),
        "result": _keep(flatten(result)),
        "rows": [[_shorten(row.get(column)) for column in COLUMNS] for row in kept],
    }


def _write_run(folder: Path, common: Mapping[str, Flat], run: Mapping[str, Any], overrides: list[str]) -> None:
    """Write a run folder; result.json, by which it counts, last."""
    config, result = (_add(common[part], run[part]) for part in ("config", "result"))
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    write_atomic(folder / ".hydra" / "overrides.yaml", yaml.safe_dump(overrides))
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(_nest(config))))
    rows = [{c: v for c, v in zip(COLUMNS, row, strict=True) if v is not None} for row in run["rows"]]
    write_atomic(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "result.json", _nest(result))


# ---- values


def _keep(flat: Mapping[str, Any]) -> Flat:
    return {k: v for k, v in flat.items() if not any(k == place or k.startswith(f"{place}.") for place in PLACES)}


def _find_common(runs: list[Flat]) -> Flat:
    """Return the most frequent value of each key that most runs have."""
    common: Flat = {}
    for key in sorted({key for run in runs for key in run}):
        value, n = Counter(json.dumps(run.get(key, NOTHING)) for run in runs).most_common(1)[0]
        if n > 1 or len(runs) == 1:
            common[key] = json.loads(value)
    return {key: value for key, value in common.items() if value != NOTHING}


def _subtract(run: Flat, common: Flat) -> Flat:
    """Return the values in which a run differs from the common ones, `<absent>` for those that it lacks."""
    values = {**dict.fromkeys(common, NOTHING), **run}
    return {key: value for key, value in values.items() if key not in common or value != common[key]}


def _add(common: Flat, run: Flat) -> Flat:
    return {key: value for key, value in {**common, **run}.items() if value != NOTHING}


def _nest(flat: Flat) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def _shorten(value: float | None) -> float | None:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _parse(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        head = lines[0]
        complete = head["format"] == FORMAT and {"study", "plan", "frozen", "changes", "common"} <= head.keys()
        complete = complete and all({"run", "config", "result", "rows"} <= run.keys() for run in lines[1:])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"records={path} cannot be read ({one_line(error)}); restore it") from error
    if not complete:
        raise UserError(f"records={path} is not as a study writes it; restore it")
    return lines
