"""lm-eval's tasks, groups and tags by name, on local files."""

import functools
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.metrics import mean_stderr
from lm_eval.tasks import TaskManager

from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.evaluation import harness
from src.evaluation.lm_adapter import GPTAdapter
from src.evaluation.suite import EvaluationSuite
from tests.support import tiny_gpt

TASK = """\
task: {name}
tag: [sums]
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: {kind}
test_split: test
fewshot_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{choices}
num_fewshot: {shots}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3.0}}
"""
GROUP = """\
group: {name}
task: [first, second]
{mean}
"""


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two choice tasks, a generation task, two groups of the choice tasks, and a tag on all, as lm-eval's own."""
    rows = [{"question": f"{a} + 1 =", "answer": f" {a + 1}", "choices": [" 1", f" {a + 1}"]} for a in range(6)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, shots in (("first", 1), ("second", 2)):
        text = TASK.format(
            name=name,
            file=file,
            kind="multiple_choice",
            choices='doc_to_choice: "{{choices}}"',
            metric="acc",
            shots=shots,
        )
        (tasks / f"{name}.yaml").write_text(text)
    how = "generation_kwargs: {until: ['\\n'], max_gen_toks: 3}"
    text = TASK.format(name="third", file=file, kind="generate_until", choices=how, metric="exact_match", shots=0)
    (tasks / "third.yaml").write_text(text)
    mean = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]"
    (tasks / "pair.yaml").write_text(GROUP.format(name="pair", mean=mean))
    (tasks / "loose.yaml").write_text(GROUP.format(name="loose", mean=""))
    manager = functools.partial(TaskManager, include_path=str(tasks))

    def build(include_defaults: bool = False) -> TaskManager:
        return manager(include_defaults=False)

    monkeypatch.setattr(harness, "TaskManager", build)
    return tmp_path


def scored(tasks: list[str], num_fewshot: Any = 0) -> dict[str, dict[str, Any]]:
    gpt = tiny_gpt(vocab_size=50304, block_size=32).eval()
    adapter = GPTAdapter(gpt, gpt2_tokenizer(), batch_size=4, between_batches=lambda: None)
    loaded = harness.load(tasks, {}, num_fewshot)
    found = harness.run_tasks(adapter, loaded, limit=4)
    found["cut"] = harness.count_cut(adapter, loaded)
    return harness.summarize(found, tasks, {})


def test_a_group_is_stated_by_lm_evals_mean_over_its_tasks(catalogue: Path) -> None:
    whole = scored(["pair"])
    parts = scored(["first", "second"])
    assert list(whole) == ["pair"]
    assert list(parts) == ["first", "second"]
    assert whole["pair"]["score"] == pytest.approx(sum(e["score"] for e in parts.values()) / 2)
    assert (whole["pair"]["items"], whole["pair"]["limited"]) == (8, "first 8 of 12 items")
    assert whole["pair"]["stderr"] is None
    assert whole["pair"]["parts"] == parts
    assert parts["first"]["stderr"] is not None
    assert parts["first"]["task_version"] == 3.0


def test_a_group_without_a_mean_and_a_tag_are_stated_task_by_task(catalogue: Path) -> None:
    assert list(scored(["loose"])) == ["first", "second"]
    assert sorted(scored(["sums"])) == ["first", "second", "third"]


def test_shots_are_a_key_and_null_is_each_tasks_own(catalogue: Path) -> None:
    def shots(tasks: list[str], given: Any) -> list[Any]:
        return [entry["num_fewshot"] for entry in scored(tasks, given).values()]

    assert shots(["first", "second"], 3) == [3, 3]
    assert shots(["first", "second"], None) == [1, 2]
    assert shots(["pair"], None) == [[1, 2]]
    assert shots(["first", "second"], {"first": 4}) == [4, 2]
    assert shots(["pair", "third"], {"pair": 5}) == [5, 0]  # of each task of the group
    with pytest.raises(ValueError, match=r"num_fewshot\.sums is of no task or group in evaluation\.lm_eval\.tasks"):
        harness.load(["sums"], {}, {"sums": 1})
    keys = {"tasks": [], "files": {}, "limit": None}
    suite = functools.partial(EvaluationSuite, perplexity={}, batch_size=1, every_steps=None, log_samples=False)
    suite(lm_eval={**keys, "num_fewshot": None})
    with pytest.raises(
        ValueError, match=r"evaluation\.lm_eval\.num_fewshot must be int >= 0, dict\[str, int >= 0\] or null, got -1"
    ):
        suite(lm_eval={**keys, "num_fewshot": -1})


def test_a_task_of_generated_answers_is_scored(catalogue: Path) -> None:
    entry = scored(["third"])["third"]
    assert (entry["metric"], entry["unit"], entry["items"]) == ("exact_match", "%", 4)
    assert 0 <= entry["score"] <= 100


def test_items_whose_prompt_does_not_fit_into_the_context_are_counted(catalogue: Path) -> None:
    # Three examples of 8 tokens and 6 of the item are within the 33 that the context scores, four are not.
    assert [scored(["first"], shots)["first"]["cut"] for shots in (0, 3, 4)] == [0, 0, 4]
    assert scored(["pair"], 4)["pair"]["cut"] == 8


def test_a_task_that_asks_for_sampling_is_named_before_anything_runs(catalogue: Path) -> None:
    file = catalogue / "tasks/third.yaml"
    file.write_text(file.read_text().replace("max_gen_toks: 3", "do_sample: true, temperature: 0.7"))
    with pytest.raises(ValueError, match=r"but third asks for do_sample=true; leave it out of evaluation\.lm_eval"):
        harness.load(["first", "third"], {}, None)


def test_tasks_whose_scoring_fails_are_left_out(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no examples")

    monkeypatch.setattr(harness, "run_tasks", fail)
    monkeypatch.setattr("src.evaluation.hub.find_obstacle", lambda: None)
    lm_eval = {"tasks": ["first"], "files": {}, "limit": 1, "num_fewshot": 0}
    suite = EvaluationSuite(perplexity={}, lm_eval=lm_eval, batch_size=1, every_steps=None, log_samples=False)
    scores = suite.run(tiny_gpt(vocab_size=50304).eval(), gpt2_tokenizer(), lambda: None)
    assert scores["lm_eval"]["first"]["skipped"].startswith("no examples; task=evaluate")


def test_an_unknown_task_is_named_before_anything_runs(catalogue: Path) -> None:
    for known in (["pair"], ["sums"], ["loose", "third"]):
        harness.load(known, {}, None)
    with pytest.raises(ValueError, match=r"tasks=pair,first could not be fetched \(ValueError: Duplicate task"):
        harness.load(["pair", "first"], {}, None)
    with pytest.raises(ValueError, match=r"lm-eval has no task thrid, did you mean third\?; `lm-eval ls tasks`"):
        harness.load(["first", "thrid"], {}, None)
    with pytest.raises(ValueError, match="lm-eval has no task thrid"):  # a file does not make it one
        harness.load(["thrid"], {"thrid": catalogue / "rows.jsonl"}, None)


def test_of_a_metric_under_several_filters_the_first_counts() -> None:
    found = {
        "results": {
            "gsm8k": {
                "exact_match,strict": 0.2,
                "exact_match_stderr,strict": "N/A",
                "exact_match,flexible": 0.4,
            }
        },
        "n-samples": {"gsm8k": {"original": 5, "effective": 5}},
        "n-shot": {"gsm8k": 5},
        "versions": {"gsm8k": 3.0},
    }
    entry = harness.summarize(found, ["gsm8k"], {})["gsm8k"]
    assert (entry["score"], entry["num_fewshot"], entry["limited"]) == (20.0, 5, None)


def test_the_error_is_that_of_items_that_score_0_or_1() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    entry = harness.summarize(of_five("arc_easy", statistics.mean(values)), ["arc_easy"], {})["arc_easy"]
    assert entry["stderr"] == pytest.approx(100 * mean_stderr(values))
    # truthfulqa_mc2 scores an item by a share of probability, which varies less.
    found = of_five("truthfulqa_mc2", statistics.mean([0.5, 0.4, 0.45, 0.5, 0.41]))
    assert harness.summarize(found, ["truthfulqa_mc2"], {})["truthfulqa_mc2"]["stderr"] is None


def of_five(task: str, acc: float) -> dict[str, Any]:
    return {
        "results": {task: {"acc,none": acc, "acc_stderr,none": "N/A"}},
        "n-samples": {task: {"original": 5, "effective": 5}},
        "n-shot": {task: 0},
        "versions": {task: 1.0},
    }
