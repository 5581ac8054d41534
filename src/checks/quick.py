"""Seconds-long checks of a configured strategy that run before every training."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from src.checks import properties
from src.checks.base import Figures, Finding, Subject
from src.errors import UserError, one_line
from src.models.config import GPTConfig
from src.models.gpt import GPT
from src.settings.read import Settings

log = logging.getLogger(__name__)

Check = Callable[[], tuple[list[str], Figures]]

QUICK = {
    "contract": properties.contract,
    "causality": properties.causality,
    "batch": properties.batch_independence,
    "gradients": properties.gradients,
    "initial_loss": properties.initial_loss,
}


def quick(settings: Settings) -> None:
    """The checks that take seconds, before a training.

    Raises:
        UserError: the first one that does not hold, with its way out.
    """
    began = time.monotonic()
    subject = subject_of(settings)
    for name, check in QUICK.items():
        finding = judged(name, lambda check=check: (check(subject), {}))  # type: ignore[misc]  # lambda default
        if not finding.ok:
            raise UserError(f"check {name}: {finding.faults[0]} (task=check tells all, check=off skips this)")
    log.info(
        "quick check passed (%s; %.1f s); task=check does the rest", ", ".join(QUICK), time.monotonic() - began
    )


def subject_of(settings: Settings) -> Subject:
    """The configured parts, buildable at any size."""
    make = functools.partial(
        build,
        residual=settings.residual,
        norm=settings.norm,
        embedding=settings.embedding,
        recurrence=settings.recurrence,
    )
    return Subject(make, settings.model)


def build(config: GPTConfig, seed: int, **parts: Any) -> GPT:  # Hydra's partials
    """A GPT of given sizes from configured parts."""
    return GPT(config, seed=seed, **parts)


def judged(name: str, check: Check) -> Finding:
    """Run one check; a crash is a finding too."""
    began = time.monotonic()
    try:
        faults, figures = check()
    except Exception as error:  # a strategy may do anything; the check says so and goes on with the next
        log.debug("check %s crashed", name, exc_info=True)
        faults, figures = [f"the model raises {type(error).__name__}: {one_line(error)[:300]}"], {}
    return Finding(name, faults, figures, time.monotonic() - began)
