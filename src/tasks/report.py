"""task=report: compare runs in tables, figures and sentences.

python run.py task=report runs=<folder> [baseline=vanilla] [axis=residual] [bench=<folder>]
python run.py task=report 'runs=[<folder>,<folder>]'
python run.py task=report runs=<folder of a study>            its verdict; baseline and axis are those of the plan
"""

import logging
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from src.errors import UserError, raise_user_errors
from src.launch.job import COMPLETED, Job, TaskEnd
from src.reporting.document import write_report
from src.reporting.report import build_report
from src.study.page import write_verdict
from src.study.verdict import is_study

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Write report.md, report.html, leaderboard.csv and comparison.csv into the job's folder.

    Raises:
        UserError: there are no runs, or no run has the baseline's name.
    """
    folders = [Path(folder) for folder in _read_names(job.config, "runs")]
    axis = _read_names(job.config, "axis")
    baseline = job.config.baseline
    if len(folders) == 1 and is_study(folders[0]):
        return report_study(folders[0], job.folder)
    with raise_user_errors():
        bench = None if job.config.bench is None else Path(str(job.config.bench))
        report = build_report(folders, None if baseline is None else str(baseline), axis, bench)
        page = write_report(report, job.folder)
    for line in report.sentences():
        log.info("%s", line)
    n_failed = len(report.found.failures)
    if n_failed:
        log.warning("%d runs are in no mean; see the table of failures in the report", n_failed)
    line = f"{len(report.found.systems)} systems compared in {page}"
    log.info("%s", line)
    return TaskEnd(COMPLETED, line)


def report_study(study: Path, folder: Path) -> TaskEnd:
    """Write the page of a study's verdict into `folder`.

    Raises:
        UserError: the study's record or a run cannot be read, or nothing has been timed yet.
    """
    with raise_user_errors():
        page, sentences = write_verdict(study, folder)
    for line in sentences:
        log.info("%s", line)
    log.info("%s", page)
    return TaskEnd(COMPLETED, f"study reported in {page}")


def _read_names(config: DictConfig, key: str) -> list[str]:
    """Read a key that is one name or a list of names.

    Raises:
        UserError: the key is missing or empty.
    """
    if OmegaConf.is_missing(config, key):
        raise UserError(f"{key} is missing; give {key}=<folder> or '{key}=[<folder>,<folder>]'")
    value = config[key]
    names = [str(name) for name in value] if isinstance(value, ListConfig) else [str(value)]
    if not names or value is None:
        raise UserError(f"{key} must name at least one, got {value}")
    return names
