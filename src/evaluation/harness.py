"""Tasks of lm-eval, on local files or on data sets of the hub.

Protocol of the benchmark: 0-shot; hellaswag, arc_easy and piqa report acc_norm, winogrande acc; in percent. Beside
lm-eval's names there is `core` (`core.py`).

Source: EleutherAI/lm-evaluation-harness 0.4.13.
"""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from src.errors import one_line
from src.evaluation import core
from src.evaluation.generation import reject_sampling
from src.evaluation.lm_adapter import GPTAdapter
from src.evaluation.sources import PUBLISHED_ITEMS
from src.files import sha256_file
from src.launch.suggestions import nearest

#: Number of solved examples: of every task, by the name of a task or group, or each task's own.
Shots = int | Mapping[str, int] | None
Loaded = Any  # lm-eval's dict of tasks and groups

FEWSHOT_SEED = 1234
TASKS = Path(lm_eval.__file__).parent / "tasks"
#: Metrics that a task is reported by, the first that it has; shares, reported in percent.
HEADLINES = ("acc_norm", "acc", "exact_match")


def run_tasks(adapter: LM, loaded: Loaded, *, limit: int | None, log_samples: bool = False) -> dict[str, Any]:
    """Return lm-eval's results on the tasks of `load`.

    Args:
        adapter: the model.
        loaded: tasks and groups.
        limit: items of each task, from its start; None scores all.
        log_samples: also return every item's request and score.
    """
    with _hide_progress_bars():
        # Not simple_evaluate: it seeds the process's generators and keeps results from all ranks but one.
        found = lm_eval.evaluate(lm=adapter, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=log_samples)
    return dict(found)


def count_cut(adapter: GPTAdapter, loaded: Loaded) -> dict[str, int]:
    """Return the number of items with a prompt that was cut to the context, by task, after `run_tasks`."""
    return {
        name: len({request.doc_id for request in task.instances if adapter.exceeds_context(request)})
        for name, task in loaded["tasks"].items()
    }


def load(tasks: list[str], files: dict[str, Path], num_fewshot: Shots) -> Loaded:
    """Load tasks and their data, each from its file in `files` or else from the hub or its cache.

    Args:
        tasks: lm-eval's names, and `core`.
        files: local files by task; their rows have the field names of the hub data set.
        num_fewshot: solved examples before each item.

    Raises:
        ValueError: lm-eval has no such task, its data cannot be fetched, a number of examples cannot be given, or a task
            asks for sampling.
    """
    if repeated := [name for name in tasks if tasks.count(name) > 1]:
        raise ValueError(f"evaluation.lm_eval.tasks names {repeated[0]} twice; name it once")
    try:
        with _hide_progress_bars():
            loaded = _load(tasks, files)
    except UnknownTaskError:
        raise
    except Exception as error:  # the hub's client raises many kinds: the network, access, a wrong name
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(
            f"evaluation.lm_eval.tasks={','.join(tasks)} could not be fetched ({cause}); "
            "check the network, or give evaluation.lm_eval.files.<task>=<file>"
        ) from error
    for name, task in loaded["tasks"].items():
        reject_sampling(task.get_config("generation_kwargs") or {}, name)
    _set_fewshot(loaded, num_fewshot)
    return loaded


class UnknownTaskError(ValueError):
    """Name that lm-eval has no task, group or tag of."""


def _load(tasks: list[str], files: dict[str, Path]) -> Loaded:
    """Return lm-eval's tasks and groups, with their data.

    Raises:
        UnknownTaskError: names the task, and the nearest name that exists.
    """
    by_name = [name for name in tasks if name != core.NAME]
    paths = {name: find_task_file(name) for name in by_name if name in files}
    # Building the full index takes seconds; tasks on local files are fully configured here.
    manager = TaskManager(include_defaults=any(paths.get(name) is None for name in by_name))
    for name in by_name:
        if paths.get(name) is None and name not in manager._index:
            raise UnknownTaskError(
                f"evaluation.lm_eval.tasks: lm-eval has no task {name}{nearest(name, list(manager._index))}; "
                "`lm-eval ls tasks` lists them"
            )
    specs: list[str | dict[str, Any]] = [name for name in by_name if name not in files]
    specs += [
        _put_on_file(load_yaml(path or manager._index[name].yaml_path), files[name]) for name, path in paths.items()
    ]
    for task in core.TASKS if core.NAME in tasks else ():
        config = load_yaml(TASKS / task.path)
        specs.append(task.configure(_put_on_file(config, files[task.lm_eval]) if task.lm_eval in files else config))
    return manager.load(specs)


def _set_fewshot(loaded: Loaded, num_fewshot: Shots) -> None:
    """Give the tasks their number of examples and the seed by which they are drawn.

    Raises:
        ValueError: a name in `num_fewshot` is none of the tasks and groups.
    """
    children: dict[str, list[str]] = loaded.get("group_map", {})
    shots: dict[str, int] = {}
    if isinstance(num_fewshot, int):
        shots = dict.fromkeys(loaded["tasks"], num_fewshot)
    for name, number in num_fewshot.items() if isinstance(num_fewshot, Mapping) else ():
        members = _list_members(name, children)
        if unknown := [member for member in members if member not in loaded["tasks"]]:
            raise ValueError(
                f"evaluation.lm_eval.num_fewshot.{unknown[0]} is of no task or group in evaluation.lm_eval.tasks; "
                "of a tag, name its tasks"
            )
        shots |= dict.fromkeys(members, number)
    fixed = {task.name for task in core.TASKS}
    for name, task in loaded["tasks"].items():
        # 0 in a task's own file forbids examples.
        if name in shots and name not in fixed and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=shots[name])
        task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _list_members(name: str, children: Mapping[str, list[str]]) -> list[str]:
    """Return the tasks of `name`, which is a task or a group of tasks."""
    if name not in children:
        return [name]
    return [task for child in children[name] for task in _list_members(child, children)]


def summarize(found: dict[str, Any], tasks: list[str], files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the headline metric of each of `tasks`, with what it is computed from.

    `found` is a result of `run_tasks`; its key `cut`, if it has one, is a result of `count_cut`.

    A group is reported by the mean that lm-eval computes over its tasks, which are `parts` of its entry, or task by
    task if it computes none; a tag by the tasks that have it; `core` by its mean.
    """
    children = found.get("group_subtasks", {})
    grouped = {child for group in children.values() for child in group}
    named = [name for name in tasks if name in found["results"]]
    of_core = {task.name for task in core.TASKS}
    tagged = [name for name in found["results"] if name not in {*named, *grouped, *of_core}]
    entries: dict[str, dict[str, Any]] = {}
    if core.NAME in tasks:
        parts = {task.label: _make_entry(task.name, found, files, task.lm_eval) for task in core.TASKS}
        entries[core.SCORE] = core.summarize_core(parts)
    while named or tagged:
        name = named.pop(0) if named else tagged.pop(0)
        if _read_metrics(found["results"][name]):
            entries[name] = _make_entry(name, found, files, name)
        else:
            named = [*children.get(name, []), *named]
    return entries


@contextlib.contextmanager
def _hide_progress_bars() -> Iterator[None]:
    """Hide the progress bars of lm-eval and datasets; the log is not affected."""
    datasets.disable_progress_bars()
    try:
        with Path(os.devnull).open("w") as devnull, contextlib.redirect_stderr(devnull):
            yield
    finally:
        datasets.enable_progress_bars()


def find_task_file(name: str) -> Path | None:
    """Return the YAML in which lm-eval defines `name`, or None if it is not in one of the usual folders."""
    stem = name.partition("_")[0]
    for folder in (TASKS / name, TASKS / stem):
        for path in (folder / f"{name}.yaml", folder / "default.yaml"):
            if path.is_file() and load_yaml(path, resolve_func=False).get("task") == name:
                return path
    return None


def _put_on_file(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return a task's configuration on a local file.

    It is the test split, the only one from which lm-eval draws examples without the item itself.
    """
    return {
        **config,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "test",
    }


def _read_metrics(values: dict[str, Any]) -> dict[str, float]:
    """Return a task's metrics by name; of a metric with several filters, the value of the first."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        metric, filtered, _filter = key.partition(",")
        if filtered and isinstance(value, int | float) and not metric.endswith("_stderr"):
            numbers.setdefault(metric, value)
    return numbers


def _make_entry(name: str, found: dict[str, Any], files: dict[str, Path], data: str) -> dict[str, Any]:
    """Return the entry of a task or group whose items are those of lm-eval's task `data`."""
    numbers = _read_metrics(found["results"][name])
    metric = next((m for m in HEADLINES if m in numbers), None) or next(iter(numbers))
    task_names = [name] if name in found["n-samples"] else _list_members(name, found["group_subtasks"])
    n, of = (sum(found["n-samples"][task][key] for task in task_names) for key in ("effective", "original"))
    total = max(of, PUBLISHED_ITEMS.get(data, 0))
    scale = 100.0 if metric in HEADLINES else 1.0
    share = numbers[metric]
    # The error is that of items that score 0 or 1, whose sum is whole; a group's depends on how it weighs its tasks.
    has_error = metric in HEADLINES and task_names == [name] and abs(share * n - round(share * n)) < 1e-6
    shots = {found["n-shot"][task] for task in task_names}
    file = files.get(data)
    entry = {
        "score": share * scale,
        "stderr": scale * (share * (1 - share) / max(1, n - 1)) ** 0.5 if has_error else None,
        "metric": metric,
        "unit": "%" if metric in HEADLINES else None,
        **{m: numbers[m] for m in HEADLINES if m in numbers},
        "items": n,
        "limited": None if n == total else f"first {n} of {total} items",
        "cut": sum(found["cut"][task] for task in task_names) if "cut" in found else None,
        "num_fewshot": shots.pop() if len(shots) == 1 else sorted(shots),
        "task_version": found["versions"].get(name),
        "lm_eval": importlib.metadata.version("lm-eval"),
        "sha256": None if file is None else sha256_file(file),
    }
    if task_names != [name]:
        entry["parts"] = {task: _make_entry(task, found, files, task) for task in task_names}
    return entry
