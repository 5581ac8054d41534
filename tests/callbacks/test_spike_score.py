"""The spike score of a series, and its exact continuation."""

import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.callbacks.run_record import RunRecord
from src.callbacks.spike_score import Series, SpikeScore
from src.files import write_json
from tests.runs import SMALL, computed, make_shards, metrics, result, run


def test_a_jump_of_more_than_seven_deviations_is_a_spike_and_a_fall_is_none() -> None:
    series = Series()
    for i in range(100):
        series.add((-1.0) ** i)  # mean 0, deviation 1
    assert series.score() is None
    series.add(7.0)
    assert (series.spikes, series.judged) == (0, 1)
    series = Series([(-1.0) ** i for i in range(100)])
    series.add(7.001)
    assert series.score() == 100.0
    series = Series([(-1.0) ** i for i in range(100)])
    series.add(-50.0)
    assert series.score() == 0.0


def test_values_are_compared_with_the_thousand_before_them() -> None:
    series = Series([100.0] * 5 + [(-1.0) ** i for i in range(1000)])
    series.add(8.0)  # the five are too old: with them the deviation would be 7
    assert series.score() == 100.0


def test_a_constant_series_has_no_spikes_and_what_is_not_finite_is_left_out() -> None:
    series = Series()
    for _ in range(1500):
        series.add(0.1)
    series.add(float("nan"))
    assert (series.spikes, series.judged, len(series.window)) == (0, 1400, 1000)


def test_the_score_agrees_with_a_reference_after_a_resume(tmp_path: Path) -> None:
    rng = random.Random(1)
    values = [rng.gauss(3.0, 0.1) + 2.0 * (rng.random() < 0.004) for _ in range(2500)]
    expected = 0
    for i in range(100, 2500):
        before = values[max(0, i - 1000) : i]
        mean = sum(before) / len(before)
        expected += values[i] > mean + 7 * (sum((v - mean) ** 2 for v in before) / len(before)) ** 0.5
    assert expected > 3
    first = SpikeScore(RunRecord(tmp_path, writes=False), every_steps=1)
    for value in values[:1234]:
        first.add(value, 1.0)
    second = SpikeScore(RunRecord(tmp_path, writes=False), every_steps=1)
    second.load_state_dict(first.state_dict())
    for value in values[1234:]:
        second.add(value, 1.0)
    assert second.scores() == {"loss": 100 * expected / 2400, "grad_norm": 0.0}


def test_the_scores_are_in_the_rows_of_logged_steps(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, writes=False)
    spikes: Any = SpikeScore(record, every_steps=4)
    for _ in range(101):
        spikes.add(1.0, 1.0)
    spikes.on_train_batch_end(SimpleNamespace(global_step=103, max_steps=200))
    assert record.close_row() == {}
    spikes.on_train_batch_end(SimpleNamespace(global_step=104, max_steps=200))
    assert record.close_row() == {"step": 104, "spike_score/loss": 0.0, "spike_score/grad_norm": 0.0}


@pytest.mark.slow
def test_a_checkpoint_holds_the_values_of_all_its_steps(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    few = ["check=off", "trainer.max_steps=4", "trainer.val_every_steps=4", "data.val_tokens=64"]
    done = run(*SMALL, *few, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "r/checkpoints/last.ckpt", weights_only=True)["callbacks"]["SpikeScore"]
    for name, key in (("loss", "train/loss"), ("grad_norm", "grad_norm")):
        assert state[name]["window"].tolist() == [row[key] for row in metrics(tmp_path / "r")]


@pytest.mark.stress
def test_a_resumed_run_has_the_score_of_one_that_never_stopped(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    few = [*SMALL, "check=off", "trainer.max_steps=112", "trainer.val_every_steps=112", "data.val_tokens=64"]
    few += ["trainer.checkpoint_every_steps=56", "model.n_layer=1", "samples.tokens=0", f"data.path={shards}"]
    done = run(*few, "hydra.run.dir=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = computed(tmp_path / "whole")
    scores = {name: rows[-1][f"spike_score/{name}"] for name in ("loss", "grad_norm")}
    assert result(tmp_path / "whole")["spike_score"] == scores
    assert "spike_score/loss" not in rows[99]
    parts = Path(shutil.copytree(tmp_path / "whole", tmp_path / "parts", symlinks=True))
    for name in ("last.ckpt", "best.ckpt", "step00000112.ckpt"):
        (parts / "checkpoints" / name).unlink()
    write_json(parts / "result.json", {**result(parts), "status": "interrupted"})
    done = run(f"resume={parts}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(parts)["resumed_at"] == [56]
    assert computed(parts) == rows
