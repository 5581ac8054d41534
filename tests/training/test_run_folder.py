"""Table of a completed run's scores, and TensorBoard's tab of hyperparameters."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from src.training.run_folder import score_lines, table, write_hparams


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
