"""Tasks of jobs: their exit codes, their lines, and the files that they leave, in process."""

import json
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from src.errors import Interrupted, UserError
from src.launch import job as jobs
from src.launch.job import COMPLETED, DIVERGED, FAILED, USER_ERROR, Job, TaskEnd, enter, format_resume, run_task
from src.launch.outcomes import Outcome, Outcomes

Run = Callable[[object], tuple[int, str, float | None]]


def job_in(folder: Path, target: str = "src.tasks.train.run", *, resumes: bool = True) -> Job:
    config = {"task": {"_target_": target}, "name": "x", "seed": 1, "trainer": {"max_steps": 9}}
    return Job(folder, OmegaConf.create(config), resumes=resumes)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a job whose task returns or raises the argument."""

    def run_with(outcome: object) -> tuple[int, str, float | None]:
        def task(job: Job) -> TaskEnd:
            assert (job.folder / ".lock").exists()
            if isinstance(outcome, TaskEnd):
                return outcome
            assert isinstance(outcome, BaseException)
            raise outcome

        def load(config: DictConfig) -> Callable[[Job], TaskEnd]:
            return task

        monkeypatch.setattr(jobs, "load_task", load)
        return run_task(job_in(tmp_path / "r"))

    return run_with


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (TaskEnd(COMPLETED, "done", 2.5), (COMPLETED, "done", 2.5)),
        (TaskEnd(DIVERGED, "loss nan"), (DIVERGED, "loss nan", None)),
        (UserError("seed must be\nint"), (USER_ERROR, "seed must be int", None)),
        (RuntimeError("boom"), (FAILED, "failed: boom", None)),
        (Interrupted(signal.SIGUSR1), (143, "stopped by SIGUSR1", None)),
        (KeyboardInterrupt(), (130, "stopped by SIGINT", None)),
    ],
)
def test_the_end_of_a_task_has_its_code_and_line(
    outcome: object, expected: tuple[int, str, float | None], run: Run, tmp_path: Path
) -> None:
    assert run(outcome) == expected
    assert not (tmp_path / "r/.lock").exists()


def test_an_interrupted_training_is_recorded(run: Run, tmp_path: Path) -> None:
    run(Interrupted(signal.SIGTERM))
    assert json.loads((tmp_path / "r/result.json").read_text())["status"] == "interrupted"


def test_the_command_that_continues_a_run_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    """It repeats the trusted packages, which no file can declare."""
    job = job_in(tmp_path / "stop me's")
    assert shlex.split(format_resume(job)) == ["python", "run.py", f"resume={tmp_path}/stop me's"]
    job.config.trusted_targets = ["mine", "theirs"]
    assert shlex.split(format_resume(job))[-1] == "trusted_targets=[mine,theirs]"


@pytest.mark.parametrize("error", [UserError("u"), RuntimeError("r")])
def test_the_traceback_of_an_error_is_in_run_log_only(
    error: Exception, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(error)
    assert "Traceback" in (tmp_path / "r/run.log").read_text()
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, RuntimeError)


def test_a_new_run_in_the_folder_of_another_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    code, line, _ = run_task(job_in(tmp_path, resumes=False))
    assert (code, line) == (
        USER_ERROR,
        f"{tmp_path} holds a run already; continue with: python run.py resume={tmp_path}",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, line, _ = run_task(job_in(tmp_path / "file" / "r"))
    assert code == USER_ERROR
    assert "cannot be written to" in line


@pytest.mark.parametrize("target", ["os.system", "src.tasks.train.other", "src.models.gpt.run"])
def test_only_the_tasks_of_this_project_run(target: str, tmp_path: Path) -> None:
    code, line, _ = run_task(job_in(tmp_path, target))
    assert (code, line) == (USER_ERROR, f"task._target_={target} is not a task of this project; see --help")


def test_a_run_folder_that_hydra_cannot_make_is_an_error_and_a_closed_pipe_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py"])

    def fail(error: OSError) -> Callable[[], None]:
        def main() -> None:
            raise error

        return main

    assert jobs.enter(fail(NotADirectoryError("README.md/x")), Outcomes()) == USER_ERROR
    assert "the run folder cannot be made (README.md/x)" in capsys.readouterr().err
    with pytest.raises(BrokenPipeError):
        jobs.enter(fail(BrokenPipeError()), Outcomes())


@pytest.fixture
def run_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a new job in a folder under multirun/ whose task writes a file and raises an error."""

    def write_hydra(job: Job) -> None:
        (job.folder / ".hydra").mkdir(parents=True)
        (job.folder / ".hydra/config.yaml").touch()

    def run_with(error: Exception, writes: str = "", folder: str = "multirun/2020-01-01/x") -> int:
        def task(job: Job) -> TaskEnd:
            (job.folder / "checkpoints").mkdir()
            if writes:
                (job.folder / writes).touch()
            raise error

        monkeypatch.setattr(jobs, "load_task", lambda config: task)
        monkeypatch.setattr(jobs, "write_hydra_folder", write_hydra)
        return run_task(job_in(tmp_path / folder, resumes=False))[0]

    return run_with


def test_a_rejected_launch_leaves_no_folder(run_new: Callable[..., int], tmp_path: Path) -> None:
    assert run_new(UserError("seed must be int")) == USER_ERROR
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "multirun/.data").mkdir(parents=True)  # of data=embedded
    run_new(UserError("u"))
    assert [path.name for path in (tmp_path / "multirun").iterdir()] == [".data"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    run_new(UserError("u"), folder="mine/r")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_launch_that_did_something_leaves_its_log(run_new: Callable[..., int], tmp_path: Path) -> None:
    folder = tmp_path / "multirun/2020-01-01/x"
    assert run_new(UserError("no such data"), "metrics.jsonl") == USER_ERROR
    assert {path.name for path in folder.iterdir()} == {".hydra", "run.log", "metrics.jsonl"}
    assert run_new(RuntimeError("r"), folder="multirun/2020-01-01/y") == FAILED
    assert (folder.parent / "y/run.log").is_file()


def test_a_sweep_of_rejected_launches_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run.py"])
    for code in (COMPLETED, USER_ERROR):
        sweep = tmp_path / "multirun/2020-01-01/sweep"
        sweep.mkdir(parents=True, exist_ok=True)
        (sweep / "multirun.yaml").touch()
        outcomes = Outcomes([Outcome(0, sweep / "0-x", (), code, "line", 1.0)])
        assert jobs.enter(lambda: None, outcomes) == code
        assert (sweep / "multirun.yaml").exists() == (code == COMPLETED)
    assert list(tmp_path.iterdir()) == []


def test_every_rank_that_a_launcher_starts_resumes_in_the_folder_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    monkeypatch.setattr(sys, "argv", ["run.py", f"resume={tmp_path}"])
    for name, value in {"TORCHELASTIC_RUN_ID": "abc", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    found: list[str] = []
    monkeypatch.setattr(jobs, "stop_with_parent", lambda: None)
    enter(lambda: found.extend(a for a in sys.argv if a.startswith("hydra.run.dir=")), Outcomes())
    assert found == [f"hydra.run.dir='{tmp_path}'"]
