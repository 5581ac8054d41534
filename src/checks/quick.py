"""Quick checks: the checks of a configured strategy that take seconds and run before every training."""

import functools
import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from src.checks import properties
from src.checks.base import Figures, Finding, Subject
from src.errors import UserError, one_line
from src.files import ROOT
from src.models.config import GPTConfig
from src.models.gpt import GPT
from src.settings.read import Settings

log = logging.getLogger(__name__)

#: Faults, with or without figures for the table.
Check = Callable[[], list[str] | tuple[list[str], Figures]]

QUICK = {
    "contract": properties.check_contract,
    "causality": properties.check_causality,
    "batch": properties.check_batch_independence,
    "gradients": properties.check_gradients,
    "initial_loss": properties.check_initial_loss,
}


def run_quick_checks(settings: Settings) -> None:
    """Run the checks that take seconds.

    Raises:
        UserError: the configured parts exclude one another, or the first fault, with a way to fix it.
    """
    start = time.monotonic()
    subject = build_subject(settings)
    try:
        subject.make(subject.small_config(), 0)
    except ValueError as error:
        raise UserError(one_line(error)) from error
    for name, check in QUICK.items():
        finding = run_check(name, functools.partial(check, subject))
        if finding.faults:
            raise UserError(f"check {name}: {finding.faults[0]} (task=check runs all checks, check=off skips these)")
    seconds = time.monotonic() - start
    log.info("quick check passed (%s; %.1f s); task=check runs the others", ", ".join(QUICK), seconds)


def build_subject(settings: Settings) -> Subject:
    """Return the configured parts as a model that can be built at any size."""
    make = functools.partial(
        build_gpt,
        residual=settings.residual,
        norm=settings.norm,
        embedding=settings.embedding,
        recurrence=settings.recurrence,
        mlp=settings.mlp,
    )
    return Subject(make, settings.model)


def build_gpt(config: GPTConfig, seed: int, **parts: Any) -> GPT:  # Hydra's partials
    """Build a GPT of the given sizes from configured parts; a top-level function, so that subjects can be pickled."""
    return GPT(config, seed=seed, **parts)


def run_check(name: str, check: Check) -> Finding:
    """Run one check; an exception is a fault too."""
    start = time.monotonic()
    try:
        found = check()
        faults, figures = found if isinstance(found, tuple) else (found, {})
    except Exception as error:  # a strategy may raise anything; the other checks still run
        log.debug("check %s crashed", name, exc_info=True)
        where = locate(error)
        faults, figures = [f"the model raises {type(error).__name__} in {where}: {one_line(error)[:300]}"], {}
    return Finding(name, faults, figures, time.monotonic() - start)


def locate(error: BaseException) -> str:
    """Return `<function> (<file>:<line>)` of the last call outside this project and torch, else outside torch."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_below(frame, torch.__file__)]
    own = [frame for frame in frames if not _is_below(frame, str(ROOT / "src" / "__init__.py"))]
    frame = (own or frames)[-1]
    path = Path(frame.filename)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{frame.name} ({shown}:{frame.lineno})"


def _is_below(frame: traceback.FrameSummary, package: str) -> bool:
    return Path(frame.filename).is_relative_to(Path(package).parent)
