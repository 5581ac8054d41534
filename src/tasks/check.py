"""task=check: run all checks of the configured strategy on small models, in about a minute on a CPU.

Properties are checked at initialization and again with all parameters moved, since a zero gate hides what is behind it.
Writes check.json. Exits with 0, or with 1 if a check fails.

With `data=` or `data.path=` on the command line the data are checked instead.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from src.checks import cost, graph, learning, properties
from src.checks.backends import list_backends
from src.checks.base import Finding, Subject, draw_tokens
from src.checks.quick import QUICK, Check, build_subject, run_check
from src.datamodules.embedded_text import read_embedded_tokens
from src.errors import UserError
from src.files import CONF, write_atomic
from src.launch.job import COMPLETED, FAILED, Job, TaskEnd
from src.models.config import GPTConfig
from src.settings.read import Settings, read_settings
from src.tasks import check_data

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Run all checks of the configured parts, or of the data if the command line names them."""
    if check_data.is_asked(job):
        return check_data.run(job)
    settings = read_settings(job.config, own_keys=("gpu_gib",))
    gpu_gib = job.config.gpu_gib
    if not isinstance(gpu_gib, int | float) or gpu_gib <= 0:
        raise UserError(f"gpu_gib must be > 0 GiB, got {gpu_gib}")
    torch.set_num_threads(1)  # for such small models more threads only wait for each other
    subject = build_subject(settings)
    device = "cuda" if settings.trainer.accelerator == "gpu" else "cpu"
    backends = list_backends(subject, device=device, bf16=settings.trainer.precision.startswith("bf16"))
    checks = list_checks(subject, settings, float(gpu_gib))
    findings = [run_check(name, check) for name, check in checks.items()]
    results = {
        "name": settings.name,
        "ok": all(finding.ok for finding in findings),
        "config": settings.config,
        "checks": {f.name: {**dataclasses.asdict(f), "ok": f.ok} for f in findings},
    }
    write_atomic(job.folder / "check.json", json.dumps(results, indent=2) + "\n")
    log.info("%s\n%s", format_table(settings.name, findings), backends)
    failed = [finding.name for finding in findings if not finding.ok]
    line = f"check failed: {', '.join(failed)}" if failed else "check passed"
    return TaskEnd(FAILED if failed else COMPLETED, line)


def list_checks(subject: Subject, settings: Settings, gpu_gib: float) -> dict[str, Check]:
    """Return every check by name, in the order of the table."""

    def without_figures(check: Callable[[Subject], list[str]]) -> Check:
        return lambda: (check(subject), {})

    vanilla = instantiate(OmegaConf.load(CONF / "residual" / "vanilla.yaml"))
    plain = dataclasses.replace(subject, make=functools.partial(subject.make, residual=vanilla))  # type: ignore[call-arg]  # a partial's keyword
    medium_file = OmegaConf.load(CONF / "model" / "gpt2_medium.yaml")
    shape = {key: getattr(settings.model, key) for key in ("norm_placement", "positions")}
    sizes: Any = OmegaConf.to_container(medium_file)  # a mapping, as shipped
    medium = GPTConfig(**{**sizes, **shape})
    micro = int(settings.config["data"]["micro_batch_size"])
    return {
        **{name: without_figures(check) for name, check in QUICK.items()},
        "float32_stream": without_figures(properties.check_stream_dtype),
        "degenerate_input": without_figures(properties.check_degenerate_input),
        "one_graph": without_figures(graph.check_one_graph),
        "two_ranks": without_figures(graph.check_two_ranks),
        "depth": lambda: cost.check_depth(subject, draw_tokens()),
        "cost": lambda: cost.check_cost(subject, medium, micro, gpu_gib),
        "learning": lambda: learning.check_learning(subject, plain, read_embedded_tokens()),
        "random_tokens": lambda: learning.check_random_tokens(subject),
    }


def format_table(name: str, findings: list[Finding]) -> str:
    """Return one line per finding with its scalar figures, each followed by its faults."""
    lines = [f"check of {name}"]
    for finding in findings:
        lines.append(
            f"  {'ok  ' if finding.ok else 'FAIL'} {finding.name:18}{finding.seconds:6.1f} s  {_format_figures(finding)}"
        )
        lines += [f"       {fault}" for fault in finding.faults]
    return "\n".join(lines)


def _format_figures(finding: Finding) -> str:
    shown = {k: v for k, v in finding.figures.items() if isinstance(v, int | float)}
    return ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.3g}" for k, v in shown.items())
