"""task=check: run all checks of the configured strategy on small models, in about a minute on a CPU.

Properties are checked at initialization and again with all parameters moved, since a zero gate hides what is behind it.
Writes check.json. Exits with 0, or with 1 if a check fails.

With `data=` or `data.path=` on the command line the data are checked instead. With `coordinates=true`, and by default
where a transfer rule is configured, it also measures how activations move with width and depth, and draws
coordinates.png.
"""

import dataclasses
import functools
import logging

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from src.checks import coordinates, cost, graph, learning, properties
from src.checks.backends import list_backends
from src.checks.base import Finding, Subject, draw_tokens, format_figures
from src.checks.quick import QUICK, Check, build_subject, run_check
from src.datamodules.embedded_text import read_embedded_tokens
from src.errors import UserError
from src.files import CONF, write_json
from src.launch.job import COMPLETED, FAILED, Job, TaskEnd
from src.reporting.coordinates import draw_coordinates
from src.settings.read import Settings, read_settings
from src.source import Source, find_sources
from src.tasks import check_data

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Run all checks of the configured parts, or of the data if the command line names them."""
    settings = read_settings(job.config, own_keys=("gpu_gib", "coordinates"))
    if check_data.is_requested(job):
        return check_data.run(job, settings)
    gpu_gib = job.config.gpu_gib
    if not isinstance(gpu_gib, int | float) or gpu_gib <= 0:
        raise UserError(f"gpu_gib must be > 0 GiB, got {gpu_gib}")
    if job.config.coordinates not in ("auto", True, False):
        raise UserError(f"coordinates must be auto, true or false, got {job.config.coordinates}")
    torch.set_num_threads(1)  # for such small models more threads only wait for each other
    subject = build_subject(settings)
    device = "cuda" if settings.trainer.accelerator == "gpu" else "cpu"
    backends = list_backends(subject, device=device, bf16=settings.trainer.precision.startswith("bf16"))
    checks = list_checks(subject, settings, float(gpu_gib))
    if job.config.coordinates is True or (job.config.coordinates == "auto" and settings.model.has_transfer_rule):
        checks["coordinates"] = lambda: coordinates.check_coordinates(subject, settings.optimizer)
    findings = [run_check(name, check) for name, check in checks.items()]
    results = {
        "name": settings.name,
        "ok": not any(finding.faults for finding in findings),
        "config": settings.config,
        "checks": {f.name: {**dataclasses.asdict(f), "ok": not f.faults} for f in findings},
        "sources": [
            {"axis": axis, "class": name, "source": dataclasses.asdict(source) if source else None}
            for axis, name, source in _sources(settings)
        ],
    }
    write_json(job.folder / "check.json", results)
    table = format_table(settings.name.removeprefix("check-"), findings)
    log.info("%s\n%s\n%s", table, backends, format_sources(settings))
    _show_coordinates(job, findings)
    failed = [finding.name for finding in findings if finding.faults]
    line = f"check failed: {', '.join(failed)}" if failed else "check passed"
    return TaskEnd(FAILED if failed else COMPLETED, line)


def _show_coordinates(job: Job, findings: list[Finding]) -> None:
    """Log the tables of the coordinate check and draw them, if it ran."""
    tables = [table for finding in findings for table in finding.figures.get("coordinates", [])]
    if tables:
        found = [coordinates.Coordinates(**table) for table in tables]
        log.info("%s\ndrawn in %s", coordinates.format_coordinates(found), job.folder / "coordinates.png")
        draw_coordinates(tables, job.folder / "coordinates.png")


def list_checks(subject: Subject, settings: Settings, gpu_gib: float) -> dict[str, Check]:
    """Return every check by name, in the order of the table."""
    vanilla = instantiate(OmegaConf.load(CONF / "residual" / "vanilla.yaml"))
    plain = dataclasses.replace(subject, make=functools.partial(subject.make, residual=vanilla))  # type: ignore[call-arg]  # a partial's keyword
    shape = {key: getattr(settings.model, key) for key in ("norm_placement", "positions")}
    medium = dataclasses.replace(cost.read_medium(), **shape)
    micro = int(settings.config["data"]["micro_batch_size"])
    return {
        **{name: functools.partial(check, subject) for name, check in QUICK.items()},
        "float32_stream": lambda: properties.check_stream_dtype(subject),
        "degenerate_input": lambda: properties.check_degenerate_input(subject),
        "one_graph": lambda: graph.check_one_graph(subject),
        "two_ranks": lambda: graph.check_two_ranks(subject),
        "depth": lambda: cost.check_depth(subject, draw_tokens()),
        "cost": lambda: cost.check_cost(subject, medium, micro, gpu_gib),
        "learning": lambda: learning.check_learning(subject, plain, read_embedded_tokens()),
        "random_tokens": lambda: learning.check_random_tokens(subject),
    }


def _sources(settings: Settings) -> list[tuple[str, str, Source | None]]:
    """Return (axis, class name, source) of every configured part."""
    axes = ("residual", "norm", "embedding", "recurrence", "mlp")
    return [(axis, *found) for axis in axes for found in find_sources(getattr(settings, axis))]


def format_sources(settings: Settings) -> str:
    """Return one line per configured part with its source, each followed by the known deviations."""
    lines = ["sources"]
    for axis, name, source in _sources(settings):
        lines.append(f"  {axis:11}{name:32}{source or 'not stated'}")
        lines += [f"             deviation: {deviation}" for deviation in (source.deviations if source else ())]
    return "\n".join(lines)


def format_table(name: str, findings: list[Finding]) -> str:
    """Return one line per finding with its scalar figures, each followed by its faults."""
    lines = [f"check of {name}"]
    for finding in findings:
        mark = "FAIL" if finding.faults else "ok  "
        figures = format_figures(finding.figures)
        lines.append(f"  {mark} {finding.name:18}{finding.seconds:6.1f} s  {figures}")
        lines += [f"       {fault}" for fault in finding.faults]
    return "\n".join(lines)
