"""Tasks of lm-eval, on local files or on data sets of the hub.

Protocol of the benchmark: 0-shot; hellaswag, arc_easy and piqa report acc_norm, winogrande acc; in percent.

Source: EleutherAI/lm-evaluation-harness 0.4.13.
"""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from src.errors import one_line
from src.files import sha256_file

FEWSHOT_SEED = 1234
TASKS = Path(lm_eval.__file__).parent / "tasks"
#: Items of the published data sets, of which a shorter file is a part.
PUBLISHED_ITEMS = {
    "arc_easy": 2376,
    "hellaswag": 10042,
    "piqa": 1838,
    "winogrande": 1267,
    "lambada_openai": 5153,
}
#: Metrics that a task is reported by, the first that it has; shares, reported in percent.
HEADLINES = ("acc_norm", "acc", "exact_match")


def run_tasks(
    adapter: LM,
    tasks: list[str],
    files: dict[str, Path],
    *,
    limit: int | None,
    num_fewshot: int | None,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Return lm-eval's results on `tasks`, each on its file in `files` or else on its hub data set.

    Args:
        adapter: the model.
        tasks: lm-eval's names.
        files: local files by task; their rows have the field names of the hub data set.
        limit: items of each task, from its start; None scores all.
        num_fewshot: solved examples before each item; None leaves each task its own number.
        log_samples: also return every item's request and score.
    """
    local = [_configure_on_file(name, files[name]) for name in tasks if name in files]
    remote = [name for name in tasks if name not in files]
    # Building the full index takes seconds; tasks on local files are fully configured here.
    manager = TaskManager() if remote else TaskManager(include_defaults=False)
    with _hide_progress_bars():
        loaded = manager.load([*local, *remote])
        for task in loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            if num_fewshot is not None and own != 0:  # 0 in a task's own file forbids examples
                task.set_config(key="num_fewshot", value=num_fewshot)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        # Not simple_evaluate: it seeds the process's generators and keeps results from all ranks but one.
        found = lm_eval.evaluate(lm=adapter, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=log_samples)
    return dict(found)


def fetch(tasks: list[str]) -> None:
    """Load `tasks` from the hub into its cache, so that they can be scored later.

    Raises:
        ValueError: lm-eval has no such task, or its data cannot be fetched.
    """
    manager = TaskManager()
    unknown = [name for name in tasks if name not in manager._index]
    if unknown:
        raise ValueError(f"evaluation.lm_eval.tasks: lm-eval has no task {unknown[0]}; `lm-eval ls tasks` lists them")
    try:
        with _hide_progress_bars():
            manager.load(list(tasks))
    except Exception as error:  # the hub's client raises many kinds: the network, access, a wrong name
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(
            f"evaluation.lm_eval.tasks={','.join(tasks)} could not be fetched ({cause}); "
            "name no task twice, check the network, or give evaluation.lm_eval.files.<task>=<file>"
        ) from error


def summarize(found: dict[str, Any], tasks: list[str], files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the headline metric of each of `tasks`, with what it is computed from.

    A group is reported by the mean that lm-eval computes over its tasks, or task by task if it computes none; a tag by
    the tasks that have it.
    """
    children = found.get("group_subtasks", {})
    grouped = {child for group in children.values() for child in group}
    named = [name for name in tasks if name in found["results"]]
    tagged = [name for name in found["results"] if name not in {*named, *grouped}]
    entries: dict[str, dict[str, Any]] = {}
    while named or tagged:
        name = named.pop(0) if named else tagged.pop(0)
        if _read_metrics(found["results"][name]):
            entries[name] = _make_entry(name, found, files.get(name))
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


def _configure_on_file(name: str, file: Path) -> dict[str, Any]:
    path = find_task_file(name) or TaskManager()._index[name].yaml_path
    config: dict[str, Any] = load_yaml(path)
    split = "test" if config.get("test_split") else "validation"
    return {
        **config,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file)}},
        "training_split": None,
        "validation_split": split if split == "validation" else None,
        "test_split": split if split == "test" else None,
        "fewshot_split": split,
    }


def _read_metrics(values: dict[str, Any]) -> dict[str, float]:
    """Return a task's metrics by name; of a metric with several filters, the value of the first."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        metric, filtered, _filter = key.partition(",")
        if filtered and isinstance(value, int | float) and not metric.endswith("_stderr"):
            numbers.setdefault(metric, value)
    return numbers


def _list_tasks(name: str, found: dict[str, Any]) -> list[str]:
    """Return the tasks of `name`, which is a task or a group of tasks."""
    if name in found["n-samples"]:
        return [name]
    return [task for child in found["group_subtasks"][name] for task in _list_tasks(child, found)]


def _make_entry(name: str, found: dict[str, Any], file: Path | None) -> dict[str, Any]:
    numbers = _read_metrics(found["results"][name])
    metric = next((m for m in HEADLINES if m in numbers), None) or next(iter(numbers))
    task_names = _list_tasks(name, found)
    n, of = (sum(found["n-samples"][task][key] for task in task_names) for key in ("effective", "original"))
    total = max(of, PUBLISHED_ITEMS.get(name, 0))
    scale = 100.0 if metric in HEADLINES else 1.0
    share = numbers[metric]
    single = metric in HEADLINES and task_names == [name]  # a group's error depends on how it weighs its tasks
    shots = {found["n-shot"][task] for task in task_names}
    return {
        "score": share * scale,
        "stderr": scale * (share * (1 - share) / max(1, n - 1)) ** 0.5 if single else None,
        "metric": metric,
        "unit": "%" if metric in HEADLINES else None,
        **{m: numbers[m] for m in HEADLINES if m in numbers},
        "items": n,
        "limited": None if n == total else f"first {n} of {total} items",
        "num_fewshot": shots.pop() if len(shots) == 1 else sorted(shots),
        "task_version": found["versions"].get(name),
        "lm_eval": importlib.metadata.version("lm-eval"),
        "sha256": None if file is None else sha256_file(file),
    }
