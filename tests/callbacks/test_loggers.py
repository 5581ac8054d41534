"""Loggers in addition to TensorBoard, and the contents of a run's TensorBoard."""

import csv
import hashlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.callbacks import loggers
from src.callbacks.loggers import RunInfo
from src.errors import UserError
from tests.runs import SMALL, make_shards, metrics, run
from tests.settings.test_read import settled

#: Package of each service.
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml", "aim": "aim", "trackio": "trackio"}
#: Of the folder of a run.
HASH = hashlib.sha256(b"/runs/r").hexdigest()[:32]
#: GPT-2's whole vocabulary, so that there is text to sample.
TRAIN = [*(a for a in SMALL if not a.startswith("model.vocab_size=")), "samples.tokens=3", "check=off"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("trained")
    shards = make_shards(cwd / "shards")
    done = run(*TRAIN, "logger=csv", f"data.path={shards}", "hydra.run.dir=r", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "r"


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of training steps; what else is logged has rows of its own."""
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def test_csv_has_the_scalars_of_the_record(trained: Path) -> None:
    rows = csv_rows(trained / "csv/from_step_0/metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    for row, stated in zip(rows, metrics(trained), strict=True):
        for key in ("train/loss", "lr", "tokens"):
            assert float(row[key]) == pytest.approx(stated[key], rel=1e-12)
    assert (trained / "csv/from_step_0/hparams.yaml").read_text().count("optimizer.lr") == 1


def test_a_resumed_run_keeps_the_rows_of_its_first_session(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "r"))
    done = run(f"resume={folder}", "trainer.max_steps=14", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(csv_rows(folder / "csv/from_step_0/metrics.csv")) == 12
    assert [int(row["step"]) for row in csv_rows(folder / "csv/from_step_12/metrics.csv")] == [13, 14]


def test_tensorboard_has_samples_and_the_layout(trained: Path) -> None:
    events: Any = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    samples = events.Tensors("sample/text_summary")
    assert [sample.step for sample in samples] == [6, 12]
    text = samples[0].tensor_proto.string_val[0].decode()
    assert text.startswith("The people of the United States**")
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert set(events.Tags()["scalars"]) >= {"train/loss", "val/loss", "lr", "grad_norm", "tokens_per_s"}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_logger_whose_package_is_missing_names_the_way_to_install_it(name: str, tmp_path: Path) -> None:
    package = PACKAGES[name]
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    (make,) = settled(f"logger={name}", "trainer=cpu").loggers
    with pytest.raises(ValueError, match=f"logger={name} needs the package {package}.*pip install {package}"):
        make(RunInfo(tmp_path, "x", 0))


@pytest.mark.filterwarnings("ignore")  # what these packages say of their own dependencies
@pytest.mark.parametrize(
    ("name", "argument", "first", "resumed"),
    [
        ("wandb", "id", HASH[:16], "known"),
        ("mlflow", "run_id", None, "known"),  # the server gives the id
        ("comet", "experiment_key", HASH, "known"),
        ("aim", "run_hash", None, "known"),  # Aim gives the id
        ("trackio", "name", f"x-{HASH[:8]}", "known"),
    ],
)
def test_every_service_is_given_the_id_of_the_first_session(
    name: str, argument: str, first: str | None, resumed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    def stand_in(*_: Any, **keys: Any) -> Any:
        given.append(keys)
        return SimpleNamespace(log=print, config={}, finish=lambda: None)

    for kind in ("WandbLogger", "MLFlowLogger", "CometLogger"):
        monkeypatch.setattr(loggers, kind, stand_in)
    monkeypatch.setitem(sys.modules, "aim.pytorch_lightning", SimpleNamespace(AimLogger=stand_in))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=stand_in))  # type: ignore[arg-type]
    (make,) = settled(f"logger={name}", "trainer=cpu").loggers
    for earlier in (None, "known"):
        logger = make(RunInfo(Path("/runs/r"), "x", 0, earlier))
        _ = getattr(logger, "experiment", None)  # Trackio opens its run here
    assert [keys[argument] for keys in given] == [first, resumed]


def test_comet_is_offline_by_its_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setenv("COMET_START_ONLINE", "")  # restored at the end
    monkeypatch.setattr(loggers, "CometLogger", lambda **keys: given.update(keys))
    (make,) = settled("logger=comet", "logger.comet.offline=true", "trainer=cpu").loggers
    make(RunInfo(Path("/runs/r"), "x", 0))
    assert (given["online"], os.environ["COMET_START_ONLINE"]) == (None, "false")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_an_installed_logger_writes_metrics(name: str, tmp_path: Path) -> None:
    if not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed")
    offline = ["logger.wandb.offline=true"] if name == "wandb" else []
    (make,) = settled(f"logger={name}", *offline, "trainer=cpu").loggers
    logger = make(RunInfo(tmp_path, "x", 0))
    logger.log_hyperparams({"optimizer.lr": 0.1})
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.finalize("success")
    assert list(tmp_path.iterdir())


def test_several_loggers_are_built_and_a_wrong_key_is_named() -> None:
    assert len(settled("logger=[csv,wandb]", "trainer=cpu").loggers) == 2
    assert settled("trainer=cpu").loggers == []
    with pytest.raises(UserError, match=r"logger\.csv\.flush is not a key"):
        settled("logger=csv", "+logger.csv.flush=1", "trainer=cpu")
