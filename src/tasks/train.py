"""task=train: pretrain, validate, evaluate and record, in the phases of `src/training/session.py`."""

from src.callbacks.guard import DivergedError
from src.errors import raise_user_errors
from src.launch.elastic import launches_ranks
from src.launch.job import Job, TaskEnd
from src.launch.stop_request import StopRequest
from src.training.preflight import preflight
from src.training.resume import continue_or_skip
from src.training.session import close, close_diverged, fit, launch, open_run, read


def run(job: Job) -> TaskEnd:
    """Train to `trainer.max_steps`; resume where the job says so.

    Raises:
        UserError: the configuration or the run folder is wrong; nothing has been overwritten.
        Interrupted: a signal or `trainer.max_time` stopped the run, after its checkpoint was saved.
    """
    stop = StopRequest(grace_s=60.0)
    with stop.installed():
        with raise_user_errors():
            settings = read(job, stop)
            job_or_end = continue_or_skip(job, settings)
            if isinstance(job_or_end, TaskEnd):
                return job_or_end
        if launches_ranks(settings.trainer.devices, settings.trainer.restarts):
            return launch(job_or_end, settings, stop)
        with raise_user_errors():
            run = open_run(job_or_end, settings, stop)
            preflight(run)
        try:
            fit(run)
        except DivergedError as error:
            return close_diverged(run, error)
        return close(run)
