"""task=check data=<option> or data.path=<place>: whether the data are what they should be.

Reads every token; writes check.json; leaves with 0, with 1 where something is wrong with the content, with 2
where the place cannot be read at all.
"""

import dataclasses
import json
import logging
from typing import Any

from src.datamodules.batches import BatchSpec
from src.datamodules.fineweb import FineWebDataModule
from src.datamodules.open import open_shards
from src.datamodules.prepare.verify import Verdict, verify
from src.errors import UserError, one_line
from src.files import write_atomic
from src.launch.job import COMPLETED, FAILED, Job, TaskEnd
from src.settings.read import read_settings

log = logging.getLogger(__name__)


def is_asked(job: Job) -> bool:
    """Whether a check is of the data: they were named on the command line."""
    return any(o.lstrip("+").partition("=")[0] in ("data", "data.path") for o in job.overrides)


def run(job: Job) -> TaskEnd:
    """Verify every source of `data`; a table, check.json, and an exit code.

    Raises:
        UserError: nothing that can be read.
    """
    settings = read_settings(job.config, own_keys=("gpu_gib",))
    spec = BatchSpec(settings.model.block_size, settings.model.vocab_size, settings.seed, 1)
    try:
        data: FineWebDataModule = settings.data(spec)
        data.prepare_data()
        stated = {
            name: _verified(name, addresses, data, spec) for name, (addresses, _) in data.sources().items()
        }
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error
    failed = [f"{name}: {kind}" for name, found in stated.items() for kind, v in found.items() if v["faults"]]
    whole = {"ok": not failed, "data": settings.config["data"], "checks": stated}
    write_atomic(job.folder / "check.json", json.dumps(whole, indent=2) + "\n")
    line = f"data check failed: {', '.join(failed)}" if failed else "data check passed"
    return TaskEnd(FAILED if failed else COMPLETED, line)


def _verified(name: str, addresses: list[str], data: FineWebDataModule, spec: BatchSpec) -> dict[str, Any]:
    place = open_shards(addresses, data.cache, streamed=True)
    found = verify(place, spec.vocab_size)
    log.info("%s", table(f"{name} ({', '.join(addresses)})", found))
    return {kind: dataclasses.asdict(verdict) for kind, verdict in found.items()}


def table(name: str, found: dict[str, Verdict]) -> str:
    """The verdicts as lines of text, with each fault."""
    lines = [f"check of {name}"]
    for kind, verdict in found.items():
        figures = ", ".join(
            f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.3g}" for k, v in verdict.figures.items()
        )
        lines.append(f"  {'FAIL' if verdict.faults else 'ok  '} {kind:12} {figures}")
        lines += [f"       {fault}" for fault in verdict.faults]
    return "\n".join(lines)
