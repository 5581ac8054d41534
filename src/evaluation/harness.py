"""lm-eval's own tasks, on local files where they are given and from the hub otherwise.

Protocol of the benchmark: 0-shot; hellaswag, arc_easy and piqa report acc_norm, winogrande acc; times 100.

Source: EleutherAI/lm-evaluation-harness 0.4.13.
"""

import logging
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from src.artefacts import sha256_file
from src.evaluation.lm_adapter import GPTAdapter

log = logging.getLogger(__name__)

TASKS = Path(lm_eval.__file__).parent / "tasks"
#: Items of the published sets, to say of what a shorter file is a part.
PUBLISHED_ITEMS = {
    "arc_easy": 2376,
    "hellaswag": 10042,
    "piqa": 1838,
    "winogrande": 1267,
    "lambada_openai": 5153,
}
HEADLINES = ("acc_norm", "acc")


def run_tasks(
    adapter: GPTAdapter, tasks: list[str], files: dict[str, Path], *, limit: int | None, num_fewshot: int
) -> dict[str, dict[str, Any]]:
    """Scores of `tasks`, each on its file in `files` or else on its hub data set.

    Args:
        adapter: the model.
        tasks: lm-eval's names.
        files: local files by task; rows carry the hub set's field names.
        limit: items of each task, from its start; None takes all.
        num_fewshot: solved examples before each item.
    """
    local = [_on_file(name, files[name]) for name in tasks if name in files]
    remote = [name for name in tasks if name not in files]
    # Building the full index takes seconds; local tasks carry their own configuration.
    manager = TaskManager() if remote else TaskManager(include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=adapter,
        tasks=[*local, *remote],
        num_fewshot=num_fewshot,
        limit=limit,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=False,
    )
    return {name: _entry(name, found, files.get(name)) for name in tasks}


def task_file(name: str) -> Path | None:
    """The YAML in which lm-eval defines `name`, looked for where its tasks usually are."""
    stem = name.partition("_")[0]
    for folder in (TASKS / name, TASKS / stem):
        for path in (folder / f"{name}.yaml", folder / "default.yaml"):
            if path.is_file() and load_yaml(path, resolve_func=False).get("task") == name:
                return path
    return None


def _on_file(name: str, file: Path) -> dict[str, Any]:
    path = task_file(name) or TaskManager()._index[name].yaml_path
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


def _entry(name: str, found: dict[str, Any], file: Path | None) -> dict[str, Any]:
    values = {key.partition(",")[0]: value for key, value in found["results"][name].items()}
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not k.endswith("_stderr")}
    metric = next((m for m in HEADLINES if m in numbers), None) or next(
        key for key in numbers if key not in ("sample_len", "sample_count")
    )
    n = found["n-samples"][name]
    total = max(n["original"], PUBLISHED_ITEMS.get(name, 0))
    scale = 100.0 if metric in HEADLINES else 1.0
    share = numbers[metric]
    error = (share * (1 - share) / max(1, n["effective"] - 1)) ** 0.5 if metric in HEADLINES else None
    return {
        "score": share * scale,
        "stderr": None if error is None else error * scale,
        "metric": metric,
        **{m: numbers[m] for m in HEADLINES if m in numbers},
        "items": n["effective"],
        "limited": None if n["effective"] == total else f"first {n['effective']} of {total} items",
        "num_fewshot": found["n-shot"][name],
        "task_version": found["versions"][name],
        "lm_eval": lm_eval.__version__ if hasattr(lm_eval, "__version__") else None,
        "sha256": None if file is None else sha256_file(file),
    }
