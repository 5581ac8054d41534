"""Evaluation after training: the numbers of dashboards."""

from src.callbacks.final_evaluation import headline


def test_the_headline_has_each_score_and_leaves_out_what_was_skipped() -> None:
    scores = {
        "perplexity": {"wikitext2": {"ppl": 30, "loss": 3.4}, "lambada": {"skipped": "no data"}},
        "lm_eval": {"arc_easy": {"score": 40.5, "acc": 0.4}},
    }
    assert headline(scores) == {"perplexity/wikitext2": 30.0, "lm_eval/arc_easy": 40.5}
    assert headline({}) == {}
