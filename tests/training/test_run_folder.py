"""Table of a completed run's scores."""

from src.training.run_folder import score_lines, table


def test_scores_have_their_unit_and_limits_are_stated() -> None:
    scores = {
        "perplexity": {"wikitext2": {"ppl": 30.25}, "lambada": {"skipped": "no data"}},
        "lm_eval": {"arc_easy": {"score": 40.5, "metric": "acc_norm", "limited": "10 items"}},
    }
    wikitext, lambada, arc = score_lines(scores)
    assert wikitext.split() == ["wikitext2", "perplexity", "30.25"]
    assert lambada.endswith("left out: no data")
    assert arc.split() == ["arc_easy", "acc_norm", "40.50", "%", "limited:", "10", "items"]


def test_the_table_has_loss_scores_and_speed() -> None:
    result = {"name": "x", "val_loss": 3.25, "tokens": 4096, "tokens_per_s": 1234.5, "seconds": 9.7}
    first, loss, speed = table(result).splitlines()
    assert first == "x completed"
    assert loss.split() == ["validation", "loss", "3.2500", "nats", "after", "4,096", "tokens"]
    assert speed.split()[:3] == ["speed", "1,234", "tokens/s,"]
