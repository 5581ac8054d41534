"""task=check data=<option> or data.path=<place>: verify the content of the data.

Reads every token and writes check.json. Exits with 0, with 1 if the content is faulty, or with 2 if the data
cannot be read at all.
"""

import dataclasses
import logging
from typing import Any

from src.checks.base import format_figures
from src.datamodules.base import BatchSpec, build_data
from src.datamodules.open import open_shards
from src.datamodules.prepare.verify import Verdict, verify
from src.datamodules.token_shards import TokenShardDataModule
from src.errors import UserError, raise_user_errors
from src.files import write_json
from src.launch.job import COMPLETED, FAILED, Job, TaskEnd
from src.settings.read import Settings

log = logging.getLogger(__name__)


def is_requested(job: Job) -> bool:
    """Return true if the command line names data, so that the check is of the data."""
    return any(o.lstrip("+").partition("=")[0] in ("data", "data.path") for o in job.overrides)


def run(job: Job, settings: Settings) -> TaskEnd:
    """Verify every source of `data` and write the table and check.json.

    Raises:
        UserError: the data cannot be read, or are not token shards.
    """
    spec = BatchSpec(settings.model.block_size, settings.model.vocab_size, settings.seed, 1)
    with raise_user_errors():
        data = build_data(settings.data, spec)
        if not isinstance(data, TokenShardDataModule):
            raise UserError(
                f"task=check verifies token shards, data._target_ is {type(data).__qualname__}; "
                "leave out data=... to check the residual strategy"
            )
        data.prepare_data()
        sources = data.sources().items()
        checks = {name: _verify_source(name, addresses, data) for name, (addresses, _) in sources}
    failed = [f"{name}: {kind}" for name, found in checks.items() for kind, v in found.items() if v["faults"]]
    report = {"ok": not failed, "data": settings.config["data"], "checks": checks}
    write_json(job.folder / "check.json", report)
    line = f"data check failed: {', '.join(failed)}" if failed else "data check passed"
    return TaskEnd(FAILED if failed else COMPLETED, line)


def _verify_source(name: str, addresses: list[str], data: TokenShardDataModule) -> dict[str, Any]:
    verdicts = verify(open_shards(addresses, data.cache, streamed=True), data.spec.vocab_size)
    log.info("%s", format_table(f"{name} ({', '.join(addresses)})", verdicts))
    return {kind: dataclasses.asdict(verdict) for kind, verdict in verdicts.items()}


def format_table(name: str, verdicts: dict[str, Verdict]) -> str:
    """Return the verdicts as lines of text, each fault on a line of its own."""
    lines = [f"check of {name}"]
    for kind, verdict in verdicts.items():
        mark = "FAIL" if verdict.faults else "ok  "
        lines.append(f"  {mark} {kind:12} {format_figures(verdict.figures)}")
        lines += [f"       {fault}" for fault in verdict.faults]
    return "\n".join(lines)
