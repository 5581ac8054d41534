"""Data frames of runs hold what the records state; the notebook that reads them runs to its end."""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from src.errors import UserError
from src.reporting.frames import read_curves, read_runs
from src.training.saved_weights import load_run
from tests.runs import SMALL, make_shards, metrics, result, run
from tests.support import ROOT

NOTEBOOK = ROOT / "notebooks" / "read_a_run.ipynb"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("frames")
    keys = [*SMALL, f"data.path={make_shards(cwd / 'shards')}", "hydra.sweep.dir=s"]
    done = run("-m", *keys, "residual=vanilla,hyperconn_static", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "s"


def test_a_row_holds_the_record_of_a_run(sweep: Path) -> None:
    frame = read_runs(sweep)
    assert list(frame["name"]) == ["vanilla", "hyperconn_static"]
    assert set(frame["status"]) == {"completed"}
    for folder, row in frame.iterrows():
        stated = result(Path(str(folder)))
        assert row["val loss"] == stated["val_loss"]
        assert row["n_params"] == stated["n_params"]
        assert row["model.n_embd"] == 32
    assert not any("." in column for column in read_runs(sweep, config=False))
    copy = sweep / "0-vanilla"
    assert read_runs(copy, sweep)["name"].tolist() == frame["name"].tolist()  # a run that is named twice is one


def test_an_unfinished_run_has_a_row_without_a_loss(sweep: Path, tmp_path: Path) -> None:
    stated = result(sweep / "0-vanilla") | {"status": "interrupted", "reason": "stopped by SIGTERM"}
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((sweep / "0-vanilla" / name).read_bytes())
    (tmp_path / "result.json").write_text(json.dumps(stated))
    both = read_runs(sweep, tmp_path)
    assert both.loc[str(tmp_path), "status"] == "interrupted"
    assert math.isnan(both.loc[str(tmp_path), "val loss"])
    (tmp_path / "result.json").write_text(json.dumps(stated)[:50])
    both = read_runs(sweep, tmp_path)
    assert both.loc[str(tmp_path), "status"] == "unreadable"
    assert set(read_curves(sweep, tmp_path)["name"]) == {"vanilla", "hyperconn_static"}
    with pytest.raises(ValueError, match="can be read"):
        read_curves(tmp_path)


def test_curves_hold_the_logged_steps_of_each_run(sweep: Path) -> None:
    curves = read_curves(sweep)
    for name, curve in curves.groupby("name"):
        rows = metrics(next(sweep.glob(f"*-{name}")))
        assert curve["step"].tolist() == [row["step"] for row in rows]
        assert curve["train/loss"].tolist() == [row["train/loss"] for row in rows]
        assert curve["seconds"].is_monotonic_increasing
    with pytest.raises(ValueError, match="no such folder"):
        read_curves(sweep / "nothing")


def test_a_run_is_loaded_at_a_step_with_its_own_configuration(sweep: Path) -> None:
    saved = load_run(sweep / "1-hyperconn_static", 12)
    assert saved.identity["step"] == 12
    assert saved.settings.name == "hyperconn_static"
    assert type(saved.gpt.residual).__name__ == "StaticHyperConnections"
    with pytest.raises(UserError, match="not a run folder"):
        load_run(sweep)


def test_the_notebook_runs_to_its_end(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setenv("RESLAB_RUNS", str(sweep))
    shown: list[plt.Figure] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
            assert cell["outputs"] == []  # outputs of some run of ours would not be the reader's
    frame = names["runs"]
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) == 2
    losses, stream = shown
    assert len(losses.axes[0].lines) == 2
    assert [len(axis.lines) for axis in stream.axes[:2]] == [0, 3]
    plt.close("all")
