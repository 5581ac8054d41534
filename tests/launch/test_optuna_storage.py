"""Storage of an Optuna study: the URL of a SQLite file waits for other processes; errors are one sentence."""

import sqlite3
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from src.errors import UserError
from src.launch.job import enter
from src.launch.optuna_storage import TIMEOUT_S, find_storage_error, prepare_storage
from src.launch.outcomes import Outcomes
from tests.launch.test_hydra_plugins import QUICK, needs
from tests.runs import make_shards, result, start


class Storages:
    """Fake of `optuna.storages`: records URLs; opening one of a server raises an error."""

    def __init__(self) -> None:
        self.urls: list[str] = []

    def RDBStorage(self, url: str) -> None:  # as it is called there
        self.urls.append(url)
        if "sqlite" not in url:
            raise ImportError("Failed to import DB access module\nfor the specified storage URL.")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    fake = Storages()
    monkeypatch.setitem(sys.modules, "optuna", SimpleNamespace(storages=fake))  # type: ignore[arg-type]  # a fake
    return fake.urls


def test_a_sqlite_file_gets_a_timeout_and_is_opened_once(opened: list[str], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/o.db"
    found = prepare_storage(["-m", f"hydra.sweeper.storage={url}", "seed=1"])
    assert found == ["-m", f"hydra.sweeper.storage='{url}?timeout={TIMEOUT_S}'", "seed=1"]
    assert opened == [f"{url}?timeout={TIMEOUT_S}"]
    assert parse_qs(urlsplit(opened[0]).query) == {"timeout": ["600"]}
    given = f"hydra.sweeper.storage='{url}?timeout=5'"
    assert prepare_storage([given]) == [given]


@pytest.mark.parametrize("url", ["null", "sqlite://", "redis://host/0"])
def test_no_other_storage_is_changed(url: str, opened: list[str]) -> None:
    assert prepare_storage([f"hydra.sweeper.storage={url}"]) == [f"hydra.sweeper.storage={url}"]


def test_a_storage_that_cannot_be_opened_is_one_sentence(opened: list[str], tmp_path: Path) -> None:
    expected = r"hydra.sweeper.storage cannot be opened \(Failed to import DB access module for the specified"
    with pytest.raises(UserError, match=expected) as caught:
        prepare_storage(["hydra.sweeper.storage=postgresql://me:secret@host/db"])
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="the folder of the file does not exist; create it"):
        prepare_storage([f"hydra.sweeper.storage=sqlite:///{tmp_path}/gone/o.db"])


def test_a_storage_that_fails_during_the_search_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py"])
    operational = type("OperationalError", (Exception,), {"__module__": "sqlalchemy.exc"})

    def main() -> None:
        try:
            raise operational("database is\nlocked")
        except Exception:
            raise ValueError("Values were told.")  # noqa: B904  # as Optuna does

    assert enter(main, Outcomes()) == 1
    assert "error: hydra.sweeper.storage failed (database is locked); the study keeps" in capsys.readouterr().err
    assert find_storage_error(ValueError("database is locked")) is None


@pytest.mark.stress
@needs("hydra_optuna_sweeper")
def test_two_processes_share_a_new_sqlite_file_which_is_locked_for_longer_than_sqlite_waits(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    search = ["-m", "hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.n_jobs=1"]
    study = ["hydra.sweeper.storage=sqlite:///o.db", "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=4"]
    keys = [*search, *study, *QUICK, f"data.path={shards}", "name=x"]
    both = [start(*keys, f"hydra.sweep.dir=s{number}", cwd=tmp_path) for number in (1, 2)]
    while not list(tmp_path.glob("s*/1-x/config.yaml")):
        assert all(process.poll() is None for process in both)
        threading.Event().wait(0.1)
    other = sqlite3.connect(tmp_path / "o.db", timeout=60)
    other.execute("BEGIN EXCLUSIVE")
    threading.Event().wait(8)
    other.rollback()
    ends = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    folders = sorted(tmp_path.glob("s*/*-x"))
    assert [result(folder)["status"] for folder in folders] == ["completed"] * 8
    values = [row[0] for row in other.execute("SELECT value FROM trial_values")]
    assert sorted(values) == pytest.approx(sorted(result(folder)["val_loss"] for folder in folders))
    other.close()


def test_a_cluster_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py"])

    def main() -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 192.0.2.2:6399")

    assert enter(main, Outcomes()) == 2
    assert capsys.readouterr().err == (
        "error: Failed to connect to Ray cluster at 192.0.2.2:6399; start the server or correct its address\n"
    )
