"""Weights that are there already: a run's checkpoint, a checkpoint file, or an exported or Hugging Face folder.

    run=<run folder> [checkpoint=last|best|all|<file>|[<file>,...]]
    checkpoint=<file> or [<file>,...]
    hf=<folder>

They are tied to their file's hash and step; a missing or foreign checkpoint is refused, never replaced by
another. The strategy's schedule stands at the step of the weights. Model, seed and schedule are the
checkpoint's; evaluation and trainer are the command line's.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from src.callbacks.checkpoints import read_checkpoint
from src.callbacks.run_record import read_result
from src.errors import UserError, one_line
from src.files import flatten, sha256_file
from src.models.formats.pretrained import ROOMS, Recipe, from_pretrained, read_recipe
from src.models.gpt import GPT
from src.settings.read import Settings, read_settings
from src.training import provenance
from src.training.run import build_gpt

KEYS = ("run", "checkpoint", "hf")
OWN = (*KEYS, "output")
NAMED, ALL = ("last", "best"), "all"

log = logging.getLogger(__name__)

#: What a checkpoint brings along; the rest is the command line's.
CHECKPOINTS_OWN = (*provenance.ARCHITECTURE, "optimizer", "schedule", "name")
#: Where a run's checkpoints may differ from its record: the place, the end, and what the data's hash says.
MAY_CHANGE = (*provenance.NOT_COMPUTED, "guard", "trainer", "evaluation", "data", "init_from")


@dataclass(frozen=True)
class Subject:
    """Weights, and what identifies them: the run they belong to, and the configuration they were trained with."""

    gpt: GPT
    settings: Settings
    identity: dict[str, Any]
    folder: Path | None
    trained_with: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """What the model is built from, for an export."""
        config = self.settings.config
        run = {"name": self.settings.name, **{k: self.identity.get(k) for k in ("config_hash", "data_hash")}}
        return Recipe(
            model=config["model"],
            rooms={room: config[room] for room in ROOMS},
            seed=self.settings.seed,
            step=self.identity["step"],
            max_steps=self.settings.trainer.max_steps,
            run=run,
        )


def subjects(config: DictConfig) -> Iterator[Subject]:
    """What the keys name, one after the other; the same weights under two names once.

    Raises:
        UserError: nothing or too much was named, or the weights are missing, damaged or foreign.
    """
    run_folder, checkpoint, hf = (config.get(key) for key in KEYS)
    if hf is not None and run_folder is None and checkpoint is None:
        yield _from_hf(config, Path(str(hf)))
        return
    if hf is not None or (run_folder is None and checkpoint in (None, *NAMED, ALL)):
        raise UserError(
            "give one of run=<folder> (with checkpoint=last|best|all), checkpoint=<file> or hf=<folder>"
        )
    folder = None if run_folder is None else Path(str(run_folder))
    if folder is not None and read_result(folder) is None:
        raise UserError(f"run={folder} is no run folder (it has no result.json)")
    seen: set[str] = set()
    for path in _files(folder, checkpoint):
        subject = _from_checkpoint(config, path, folder or _run_around(path), seen)
        if subject is not None:
            yield subject


def with_files(config: DictConfig) -> DictConfig:
    """`config` with checkpoint=all settled: the files that are there now."""
    if config.get("checkpoint") != ALL or config.get("run") is None:
        return config
    settled = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(settled, DictConfig)  # a mapping in, a mapping out
    settled.checkpoint = [str(path) for path in _files(Path(str(config.run)), ALL)]
    return settled


def _files(folder: Path | None, checkpoint: str | ListConfig | None) -> list[Path]:
    if isinstance(checkpoint, ListConfig) and not checkpoint:
        raise UserError("checkpoint=[] names none; give checkpoint=<file>, or all with run=<folder>")
    if folder is not None and checkpoint == ALL:
        found = list((folder / "checkpoints").rglob("[!.]*.ckpt"))
        found.sort(key=lambda path: (path.stem != "last", path))  # best may be a second name of it
        if not found:
            raise UserError(f"{folder}/checkpoints holds no checkpoint yet; try again later")
        return found
    if folder is not None and checkpoint in (None, *NAMED):
        return [folder / "checkpoints" / f"{checkpoint or 'last'}.ckpt"]
    given = list(checkpoint) if isinstance(checkpoint, ListConfig) else [checkpoint]
    return [Path(str(path)) for path in given]


def _run_around(path: Path) -> Path | None:
    folder = path.resolve().parent.parent
    there = path.parent.name == "checkpoints" or path.resolve().parent.name == "checkpoints"
    return folder if there and (folder / "result.json").is_file() else None


def _from_checkpoint(config: DictConfig, path: Path, folder: Path | None, seen: set[str]) -> Subject | None:
    """The checkpoint in `path`, unless its hash is in `seen`."""
    sha256, stored = _read_unchanged(path)
    if sha256 in seen:
        return None
    seen.add(sha256)
    own = stored.get("reslab")
    if own is None:
        raise UserError(f"{path} is not a checkpoint of this project; give one that task=train wrote")
    if folder is not None:
        _refuse_foreign(path, folder, own)
    settings = read_settings(_with_stored(config, own["config"]), OWN)
    gpt = build_gpt(settings)
    weights = {key.removeprefix("gpt."): value for key, value in stored["state_dict"].items()}
    gpt.load_state_dict(weights, strict=True)
    step = int(own["step"])
    gpt.follow(max(step - 1, 0), settings.trainer.max_steps)  # as in the validation of that step
    status = (read_result(folder) or {}).get("status") if folder is not None else None
    if status == "diverged":
        log.warning("%s diverged: these are weights from before it, not those of a sound run", folder)
    identity = {
        "step": step,
        "run_status": status,
        "checkpoint": {"file": str(path), "sha256": sha256},
        "config_hash": own["config_hash"],
        "data_hash": own["data_hash"],
    }
    return Subject(gpt, settings, identity, folder, own["config"])


def _read_unchanged(path: Path) -> tuple[str, dict[str, Any]]:
    """A checkpoint with the hash of the very bytes that were read; a running run may replace it meanwhile."""
    for _ in range(3):
        before = sha256_file(path) if path.is_file() else None
        stored = read_checkpoint(path)
        if before is not None and sha256_file(path) == before:
            return before, stored
    raise UserError(f"{path} is replaced faster than it can be read; give checkpoint=best, or try again later")


def _refuse_foreign(path: Path, folder: Path, own: dict[str, Any]) -> None:
    result = read_result(folder) or {}
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    resumed = own["step"] <= max(result.get("resumed_at") or [-1])  # with other values, perhaps, since
    then, now = flatten(own["config"]), flatten(dict(config))  # type: ignore[arg-type]  # a mapping
    for key in sorted({*then, *now}):
        section = key.partition(".")[0]
        kept = section in provenance.ARCHITECTURE or not (resumed or section in MAY_CHANGE)
        if kept and then.get(key) != now.get(key):
            raise UserError(
                f"{path} belongs to another run than {folder}: {key} is {then.get(key)} there and {now.get(key)} "
                "here; give checkpoint=<file> alone, outside a run folder, to score it by itself"
            )
    if own["data_hash"] != (result.get("data") or {}).get("hash"):
        raise UserError(f"{path} belongs to another run than {folder}: it was trained on other data")
    if path.name == "last.ckpt" and result.get("status") == "completed" and own["step"] != result["steps"]:
        raise UserError(
            f"{path} is of step {own['step']}, but {folder} is completed at step {result['steps']}; "
            "restore the file, or copy it elsewhere and give checkpoint=<file>"
        )


def _with_stored(config: DictConfig, stored: dict[str, Any]) -> DictConfig:
    """The command line's configuration with the checkpoint's model, seed and schedule."""
    merged: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a mapping
    merged.update({key: stored[key] for key in CHECKPOINTS_OWN if key in stored})  # older ones lack a room
    merged["trainer"]["max_steps"] = stored["trainer"]["max_steps"]
    return OmegaConf.create(merged)


def _from_hf(config: DictConfig, folder: Path) -> Subject:
    try:
        recipe, gpt = read_recipe(folder), from_pretrained(folder)
    except ValueError as error:
        raise UserError(one_line(error).replace(f"init_from={folder}", f"hf={folder}")) from error
    merged: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a mapping
    rooms = {room: {**keys, "_partial_": True} for room, keys in recipe.rooms.items()}
    own = {**rooms, "model": recipe.model, "name": recipe.run["name"]}
    settings = read_settings(OmegaConf.create({**merged, **own}), OWN)
    file = {"file": str(folder), "sha256": sha256_file(folder / "model.safetensors")}
    hashes = {key: value for key, value in recipe.run.items() if key != "name"}
    return Subject(gpt, settings, {"step": recipe.step, "checkpoint": file, **hashes}, None, settings.config)
