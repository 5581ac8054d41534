"""Table of a completed run's scores, and TensorBoard's tab of hyperparameters."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from src.callbacks.best_effort import BestEffort
from src.callbacks.run_record import RunRecord
from src.training import run_folder
from src.training.run_folder import complete_record, score_lines, table, write_hparams
from tests.runs import result


def test_scores_have_their_unit_and_limits_are_stated() -> None:
    scores = {
        "perplexity": {"wikitext2": {"ppl": 30.25}, "lambada": {"skipped": "no data"}},
        "lm_eval": {"arc_easy": {"score": 40.5, "metric": "acc_norm", "limited": "10 items", "cut": 3}},
    }
    wikitext, lambada, arc = score_lines(scores)
    assert wikitext.split() == ["wikitext2", "perplexity", "30.25"]
    assert lambada.endswith("left out: no data")
    assert arc.split()[:4] == ["arc_easy", "acc_norm", "40.50", "%"]
    assert arc.endswith("limited: 10 items   3 prompts cut to the context")


def test_the_tasks_of_core_stand_below_their_mean_and_those_of_other_groups_do_not() -> None:
    part = {"score": 62.5, "metric": "acc_norm", "num_fewshot": 10, "centred": 25.0}
    core = {"score": 25.0, "metric": "centred_acc", "unit": "%", "parts": {"piqa": part}}
    group = {"score": 30.0, "metric": "acc", "unit": "%", "parts": {"mmlu_virology": {"score": 30.0, "metric": "acc"}}}
    mean, piqa, mmlu = score_lines({"lm_eval": {"core_19of22": core, "mmlu": group}})
    assert mean.split() == ["core_19of22", "centred_acc", "25.00", "%"]
    assert piqa.split() == ["piqa", "62.50", "%", "acc_norm,", "10-shot,", "centred", "25.00", "%"]
    assert mmlu.split() == ["mmlu", "acc", "30.00", "%"]


def test_the_table_has_loss_scores_and_speed() -> None:
    result = {"name": "x", "val_loss": 3.25, "tokens": 4096, "tokens_per_s": 1234.5, "seconds": 9.7}
    first, loss, speed = table(result).splitlines()
    assert first == "x completed"
    assert loss.split() == ["validation", "loss", "3.2500", "nats", "after", "4,096", "tokens"]
    assert speed.split()[:3] == ["speed", "1,234", "tokens/s,"]


def test_the_record_states_last_and_best_loss_of_the_run_itself_and_its_median_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, float]] = [
        {"step": 2, "train/loss": 4.5, "tokens_per_s": 900.0, "val/loss": 1.0, "val/bpb": 0.5},  # before the branch
        {"step": 4, "train/loss": 4.0, "tokens_per_s": 100.0, "val/loss": 2.0, "val/bpb": 1.0},
        {"step": 5, "train/loss": 3.5, "tokens_per_s": 300.0},
        {"step": 6, "val/loss": 2.5, "val/bpb": 1.25},
    ]
    text = "".join(json.dumps({"tokens": 10 * row["step"], **row}) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    monkeypatch.setattr(run_folder, "_draw_summary", lambda *_: None)
    record = RunRecord(tmp_path, writes=True)
    record.update(name="x", tokens=60, seconds=2.0, branched_from={"step": 2})
    settings = SimpleNamespace(trainer=SimpleNamespace(overfit_batches=1))
    run: Any = SimpleNamespace(
        job=SimpleNamespace(folder=tmp_path), record=record, settings=settings, best_effort=BestEffort()
    )
    assert complete_record(run) == 2.5
    stated = result(tmp_path)
    assert (stated["val_loss"], stated["best_val_loss"], stated["val_bpb"]) == (2.5, 2.0, 1.25)
    assert (stated["tokens_per_s"], stated["overfit_loss"]) == (300.0, [4.5, 3.5])
    assert stated["status"] == "completed"


def test_hyperparameters_name_the_scores_and_add_no_point_to_a_curve(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path, name="", version="t", default_hp_metric=False)
    board.log_metrics({"val_loss": 2.5, "perplexity/lambada": 9.0}, 80)
    write_hparams(board, {"seed": 1, "model.bias": False, "betas": [0.9, 0.95]}, ["val_loss", "perplexity/lambada"])
    board.finalize("success")
    events = EventAccumulator(str(tmp_path / "t")).Reload()
    for tag, value in (("val_loss", 2.5), ("perplexity/lambada", 9.0)):
        assert [(point.step, point.value) for point in events.Scalars(tag)] == [(80, value)]
    found = {tag: HParamsPluginData.FromString(text) for tag, text in events.PluginTagToContent("hparams").items()}
    metrics = found["_hparams_/experiment"].experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["val_loss", "perplexity/lambada"]
    values = found["_hparams_/session_start_info"].session_start_info.hparams
    assert (values["seed"].number_value, values["betas"].string_value) == (1.0, "[0.9, 0.95]")
