"""Saved weights: a run's checkpoint, a checkpoint file, or an exported or Hugging Face folder.

    run=<run folder> [checkpoint=last|best|all|<step>|<file>|[<file>,...]]
    checkpoint=<file> or [<file>,...]
    hf=<folder>

Every model carries the hash of its file and its optimizer step. A missing checkpoint, or one of another run, is an
error; no other checkpoint replaces it. The strategy's schedule is set to the step of the weights. Model, seed and
schedule are taken from the checkpoint, evaluation and trainer from the command line.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from src import __version__
from src.callbacks.checkpoints import checkpoint_path, identifying_file, list_steps, read_checkpoint, step_of
from src.callbacks.run_record import read_result
from src.datamodules.tokenization.base import FILE, Tokenizer
from src.datamodules.tokenization.open import open_stated, or_gpt2, read_tokenizer
from src.errors import UserError, one_line
from src.files import flatten, sha256_file
from src.models.formats.hub import identify, locate
from src.models.formats.pretrained import read_pretrained
from src.models.formats.recipe import ROOMS, Recipe
from src.models.gpt import GPT
from src.settings.read import Settings, read_settings
from src.training import provenance
from src.training.run import build_gpt

#: Keys that name weights, and all keys that only the tasks on saved weights have.
KEYS = ("run", "checkpoint", "hf")
OWN = (*KEYS, "output", "push_to", "push_private", "sequences", "sample")
#: Values of `checkpoint` that name one file, and every file.
NAMED, ALL = ("last", "best"), "all"

log = logging.getLogger(__name__)

#: Sections that are taken from the checkpoint; the rest is the command line's.
FROM_CHECKPOINT = (*provenance.ARCHITECTURE, "optimizer", "schedule", "name")
#: Sections in which a run's checkpoints may differ from its record: place and length of the run, and data (by its hash).
MAY_CHANGE = (*provenance.NOT_COMPUTED, "guard", "trainer", "evaluation", "data", "init_from")


@dataclass(frozen=True)
class SavedWeights:
    """Model with loaded weights, their identity, the run and configuration they come from, and the tokenizer."""

    gpt: GPT
    settings: Settings
    identity: dict[str, Any]
    folder: Path | None
    trained_with: dict[str, Any]
    tokenizer: Tokenizer | None

    @property
    def recipe(self) -> Recipe:
        """Description of the model, for an export."""
        config = self.settings.config
        hashes = {key: self.identity.get(key) for key in ("config_hash", "data_hash")}
        run = {"name": self.settings.name, **hashes, "version": __version__}
        return Recipe(
            model=config["model"],
            rooms={room: config[room] for room in ROOMS if room in config},
            seed=self.settings.seed,
            step=self.identity["step"],
            max_steps=self.settings.trainer.max_steps,
            run=run,
        )


def load_saved_weights(config: DictConfig) -> Iterator[SavedWeights]:
    """Yield the models that the keys name, one after the other; a file with two names once.

    Raises:
        UserError: the keys name none or too many, or a file is missing, damaged or of another run.
    """
    run_folder, checkpoint, hf = (config.get(key) for key in KEYS)
    if hf is not None and run_folder is None and checkpoint is None:
        yield _load_pretrained(config, Path(str(hf)))
        return
    if hf is not None or (run_folder is None and checkpoint in (None, *NAMED, ALL)):
        raise UserError(
            "give one of run=<folder> (with checkpoint=last|best|all|a step), checkpoint=<file> or hf=<folder>"
        )
    folder = None if run_folder is None else Path(str(run_folder))
    if folder is not None and read_result(folder) is None:
        raise UserError(f"run={folder} is not a run folder (it has no result.json)")
    seen: set[str] = set()
    for path in _list_checkpoints(folder, checkpoint):
        sha256, stored = _read_unchanged(path)
        if sha256 not in seen:
            seen.add(sha256)
            yield _load_checkpoint(config, path, folder or _find_run(path), sha256, stored)


def load_run(folder: str | os.PathLike[str], checkpoint: str | int = "last") -> SavedWeights:
    """Return the model of a run with the weights of one checkpoint, from the configuration that the run stored.

    Args:
        folder: run folder.
        checkpoint: last, best, a step, or a file.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged or of another run.
    """
    path = Path(folder)
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is not a run folder (it has no config.yaml)")
    config = OmegaConf.merge(OmegaConf.load(path / "config.yaml"), {"run": str(path), "checkpoint": checkpoint})
    assert isinstance(config, DictConfig)  # OmegaConf keeps a mapping a mapping
    return next(load_saved_weights(config))


def resolve_checkpoints(config: DictConfig) -> DictConfig:
    """Return `config` with checkpoint=all replaced by the files that exist now."""
    if config.get("checkpoint") != ALL or config.get("run") is None:
        return config
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(resolved, DictConfig)  # OmegaConf keeps a mapping a mapping
    resolved.checkpoint = [str(path) for path in _list_checkpoints(Path(str(config.run)), ALL)]
    return resolved


def _list_checkpoints(folder: Path | None, checkpoint: str | int | ListConfig | None) -> list[Path]:
    if isinstance(checkpoint, ListConfig) and not checkpoint:
        raise UserError("checkpoint=[] names none; give checkpoint=<file>, or all with run=<folder>")
    if folder is not None and checkpoint == ALL:
        found = list((folder / "checkpoints").rglob("[!.]*.ckpt"))
        found.sort(key=lambda path: (path.stem != "last", path))  # best may be another name of the same file
        if not found:
            raise UserError(f"{folder}/checkpoints holds no checkpoint yet; try again later")
        return found
    if folder is not None and checkpoint in (None, *NAMED):
        return [folder / "checkpoints" / f"{checkpoint or 'last'}.ckpt"]
    if folder is not None and isinstance(checkpoint, int):
        path = checkpoint_path(folder / "checkpoints", checkpoint)
        if not path.exists():  # a folder where it is sharded
            steps = [step_of(other) for other in list_steps(path.parent)]
            raise UserError(f"{folder} has no checkpoint of step {checkpoint}; there are those of steps {steps}")
        return [path]
    paths = list(checkpoint) if isinstance(checkpoint, ListConfig) else [checkpoint]
    return [Path(str(path)) for path in paths]


def _find_run(path: Path) -> Path | None:
    """Return the run folder that a checkpoint file lies in, if any."""
    folder = path.resolve().parent.parent
    is_inside = path.parent.name == "checkpoints" or path.resolve().parent.name == "checkpoints"
    return folder if is_inside and (folder / "result.json").is_file() else None


def _load_checkpoint(
    config: DictConfig, path: Path, folder: Path | None, sha256: str, stored: dict[str, Any]
) -> SavedWeights:
    own = stored.get("reslab")
    if own is None:
        raise UserError(f"{path} is not a checkpoint of this project; give one that task=train wrote")
    if folder is not None:
        _require_checkpoint_of_run(path, folder, own)
    settings = read_settings(_merge_stored(config, own["config"]), OWN)
    provenance.reject_changed_methods(own, settings, path)
    gpt = build_gpt(settings)
    weights = {key.removeprefix("gpt."): value for key, value in stored["state_dict"].items()}
    gpt.load_state_dict(weights, strict=True)
    step = int(own["step"])
    gpt.follow(max(step - 1, 0), settings.trainer.max_steps)  # as in the validation after that step
    status = (read_result(folder) or {}).get("status") if folder is not None else None
    if status == "diverged":
        log.warning("%s diverged; its checkpoints are from before that", folder)
    identity = {
        "step": step,
        "run_status": status,
        "checkpoint": {"file": str(path), "sha256": sha256},
        "config_hash": own["config_hash"],
        "data_hash": own["data_hash"],
    }
    tokenizer = _open_tokenizer(path, own.get("tokenizer"), settings)
    return SavedWeights(gpt, settings, identity, folder, own["config"], tokenizer)


def _open_tokenizer(path: Path, stored: dict[str, Any] | None, settings: Settings) -> Tokenizer | None:
    """Return the tokenizer that a checkpoint holds; GPT-2's where it holds none and the vocabulary has its ids."""
    try:
        known = open_stated(stored, stored.get("content") if stored else None)
    except ValueError as error:
        raise UserError(f"{path}: its {error}") from error
    return or_gpt2(known, settings.model.vocab_size)


def _read_unchanged(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a checkpoint and the hash of its bytes; retry if a running run replaces the file meanwhile."""
    hashed = identifying_file(path)
    for _ in range(3):
        before = sha256_file(hashed) if hashed.is_file() else None
        stored = read_checkpoint(path)
        if before is not None and sha256_file(hashed) == before:
            return before, stored
    raise UserError(f"{path} is replaced faster than it can be read; give checkpoint=best, or try again later")


def _require_checkpoint_of_run(path: Path, folder: Path, own: dict[str, Any]) -> None:
    """Reject a checkpoint whose configuration, data or step contradicts the record of the run folder."""
    result = read_result(folder) or {}
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    begins = [*(result.get("resumed_at") or []), (result.get("branched_from") or {}).get("step", -1)]
    resumed = own["step"] <= max(begins)  # perhaps with other values since
    then, now = flatten(own["config"]), flatten(dict(config))  # type: ignore[arg-type]  # a mapping
    for key in sorted({*then, *now}):
        section = key.partition(".")[0]
        kept = section in provenance.ARCHITECTURE or not (resumed or section in MAY_CHANGE)
        if kept and then.get(key) != now.get(key):
            raise UserError(
                f"{path} belongs to another run than {folder}: {key} is {then.get(key)} there and {now.get(key)} "
                "here; give checkpoint=<file> alone, outside a run folder, to load it by itself"
            )
    if own["data_hash"] != (result.get("data") or {}).get("hash"):
        raise UserError(f"{path} belongs to another run than {folder}: it was trained on other data")
    if path.name == "last.ckpt" and result.get("status") == "completed" and own["step"] != result["steps"]:
        raise UserError(
            f"{path} is of step {own['step']}, but {folder} completed at step {result['steps']}; "
            "restore the file, or copy it elsewhere and give checkpoint=<file>"
        )


def _merge_stored(config: DictConfig, stored: dict[str, Any]) -> DictConfig:
    """Return the command line's configuration with the checkpoint's model, seed and schedule."""
    merged: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a mapping
    merged.update({key: stored[key] for key in FROM_CHECKPOINT if key in stored})  # old ones lack a section
    merged["trainer"]["max_steps"] = stored["trainer"]["max_steps"]
    return OmegaConf.create(merged)


def _load_pretrained(config: DictConfig, folder: Path) -> SavedWeights:
    try:
        place = locate(folder)
        recipe, gpt = read_pretrained(folder)
    except ValueError as error:
        raise UserError(f"hf={one_line(error)}") from error
    merged: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a mapping
    rooms = {room: {**keys, "_partial_": True} for room, keys in recipe.rooms.items()}
    own = {**rooms, "model": recipe.model, "name": recipe.run["name"]}
    settings = read_settings(OmegaConf.create({**merged, **own}), OWN)
    provenance.reject_changed_methods(recipe.run, settings, folder)
    found = identify(folder)
    file = {"file": found["source"], "sha256": found["sha256"]}
    file |= {"revision": found["revision"]} if found["revision"] else {}
    hashes = {key: value for key, value in recipe.run.items() if key not in ("name", "version")}
    identity = {"step": recipe.step, "checkpoint": file, **hashes}
    try:
        known = read_tokenizer(place / FILE, folder.name) if (place / FILE).is_file() else None
    except ValueError as error:
        raise UserError(f"hf={folder}: {FILE} {one_line(error)}") from error
    tokenizer = or_gpt2(known, settings.model.vocab_size)
    return SavedWeights(gpt, settings, identity, None, settings.config, tokenizer)
