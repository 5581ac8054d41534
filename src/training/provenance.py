"""Provenance of a run: hash of its configuration, code, libraries, device."""

import functools
import hashlib
import importlib.metadata
import json
import logging
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from src import __version__
from src.datamodules.tokenization.base import Tokenizer
from src.errors import UserError
from src.files import ROOT
from src.settings.read import Settings
from src.source import find_sources

log = logging.getLogger(__name__)

#: Suffixes of the source files under src/.
CODE = (".py", ".cpp", ".h")
PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "numpy", "tiktoken", "tokenizers", "datasets", "lm-eval")
#: Sections that do not change what a run computes.
NOT_COMPUTED = (
    *("name", "resume", "from_run", "task", "study", "check", "logger", "profiler", "samples", "safety"),
    "trusted_targets",
)
#: Keys of `trainer` that do not, either.
TRAINER_NOT_COMPUTED = ("max_time", "keep_steps", "restarts", "peak_flops", "detect_anomaly")
#: Keys that earlier versions lack, with the value that computes what those did.
ADDED: dict[tuple[str, str], object] = {
    ("trainer", "num_nodes"): 1,
    ("trainer", "checkpoint_activations"): False,
    ("trainer", "shard_within_node"): False,
    ("trainer", "overfit_batches"): None,
    ("schedule", "decay_steps"): None,
    ("data", "val_sets"): None,
    ("data", "document_attention"): False,
    ("evaluation", "every_steps"): None,
    ("evaluation", "log_samples"): False,
}
#: Sections that a checkpoint's weights depend on; they cannot change on resume.
ARCHITECTURE = ("model", "residual", "norm", "embedding", "recurrence", "mlp", "seed")


def config_hash(config: dict[str, Any]) -> str:
    """Hash what a configuration computes: all of it but its name and its place."""
    kept = {key: value for key, value in config.items() if key not in NOT_COMPUTED}
    if not kept.get("callbacks"):  # runs stored before the group existed lack the key and keep their hash
        kept.pop("callbacks", None)
    trainer = {key: v for key, v in kept.get("trainer", {}).items() if key not in TRAINER_NOT_COMPUTED}
    kept["trainer"] = trainer
    for (section, key), value in ADDED.items():
        if section in kept and kept[section].get(key, value) == value:
            kept[section] = {name: v for name, v in kept[section].items() if name != key}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def checkpoint_identity(
    settings: Settings, identity: dict[str, Any], tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
    """Return what a checkpoint states about the run that it belongs to, and the tokenizer of its data as a whole."""
    return {
        "tokenizer": None if tokenizer is None else {**tokenizer.statement(), "content": tokenizer.content()},
        "config": settings.config,
        "config_hash": config_hash(settings.config),
        "data_hash": identity["hash"],
        "code": code_identity(),
        "version": __version__,
    }


def reject_changed_methods(stored: Mapping[str, Any], settings: Settings, path: object) -> None:
    """Reject a checkpoint of a version in which a class of its model computed something else.

    Raises:
        UserError: the class, the two versions, and the way out.
    """
    version = stored.get("version", "0.2.0")  # not stored before 0.3.0
    for axis in ("residual", "norm", "embedding", "recurrence", "mlp"):
        for name, source in find_sources(getattr(settings, axis)):
            if source is not None and source.changed_in and _numbers(version) < _numbers(source.changed_in):
                raise UserError(
                    f"{path} was written by reslab {version}, and {axis} {name} computes something else since "
                    f"{source.changed_in} (see CHANGELOG.md); resume or evaluate it with reslab {version}"
                )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def versions() -> dict[str, str]:
    """Return the versions of reslab, Python and the packages that a run's numbers depend on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"reslab": __version__, "python": platform.python_version(), **packages}


def device_name(accelerator: str) -> str:
    """Return the name of the device that the run computes on."""
    if accelerator == "gpu":
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def describe_machine() -> str:
    """Return the processor with its number of threads, and the system: what speeds depend on besides the settings."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = f"{names[0]} x{len(names)}" if names else cpu
    return f"{cpu}, {platform.system()} {platform.machine()}"


def git_commit() -> str | None:
    """Return the commit of this checkout, marked `-dirty` where the tree differs from it; None outside git."""
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return text.strip()


@functools.cache
def code_identity() -> dict[str, str | None]:
    """Return the commit of this process's code and the SHA-256 of its source files."""
    sources = hashlib.sha256()
    for path in sorted(path for path in (ROOT / "src").rglob("*") if path.suffix in CODE):
        sources.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return {"git": git_commit(), "sources": sources.hexdigest()}


def code_by_step(earlier: Sequence[Mapping[str, Any]], step: int) -> list[dict[str, Any]]:
    """List the code that trained a run: one entry for each change, with the first step that it trained."""
    kept = [dict(code) for code in earlier if code["step"] < step]
    now = code_identity()
    if kept and kept[-1]["sources"] == now["sources"]:
        return kept
    return [*kept, {"step": step, **now}]


def warn_about_other_code(then: Mapping[str, Any] | None) -> None:
    """Log a warning if other code wrote the checkpoint: the numbers may differ from here on."""
    now = code_identity()
    if then is not None and then["sources"] != now["sources"]:
        log.warning(
            "changed on resume: code %s -> %s; the same numbers are not promised",
            _format_code(then),
            _format_code(now),
        )


def _format_code(code: Mapping[str, Any]) -> str:
    sources = str(code["sources"])[:12]
    if code["git"] is None:
        return f"sources {sources}"
    commit, dirty, _ = str(code["git"]).partition("-dirty")
    return f"{commit[:12]}{dirty} (sources {sources})" if dirty else commit[:12]
