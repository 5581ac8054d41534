"""CORE: its tasks are lm-eval's, with the source's examples and baselines, and its mean is named by how many they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.evaluation import core, harness
from src.evaluation.core import LEFT_OUT, SCORE, TASKS, summarize_core
from src.evaluation.lm_adapter import GPTAdapter
from src.evaluation.suite import EvaluationSuite
from tests.support import component, tiny_gpt

#: mlfoundations/dclm @ 361714b: examples (eval/heavy.yaml) and baselines in percent (eval/eval_meta_data.csv).
SOURCE = {
    "hellaswag_zeroshot": (0, 25),
    "jeopardy": (10, 0),
    "bigbench_qa_wikidata": (10, 0),
    "arc_easy": (10, 25),
    "arc_challenge": (10, 25),
    "copa": (0, 50),
    "commonsense_qa": (10, 40.3),
    "piqa": (10, 50),
    "openbook_qa": (0, 25),
    "lambada_openai": (0, 0),
    "hellaswag": (10, 25),
    "winograd": (0, 50),
    "winogrande": (0, 50),
    "bigbench_dyck_languages": (10, 0),
    "agi_eval_lsat_ar": (3, 25),
    "bigbench_cs_algorithms": (10, 0),
    "bigbench_operators": (10, 0),
    "bigbench_repeat_copy_logic": (10, 0),
    "squad": (10, 0),
    "coqa": (0, 0),
    "boolq": (10, 62),
    "bigbench_language_identification": (10, 25),
}
#: Tasks whose items have more choices in lm-eval than in the source: their number.
CHOICES = {"commonsense_qa": 5, "agi_eval_lsat_ar": 5, "bigbench_language_identification": 11}

QUESTION = {"question": "1 + 1 =", "choices": {"text": ["1", "2", "3", "4"], "label": list("ABCD")}, "answerKey": "B"}
BIGBENCH = {
    "inputs": "one, two,",
    "targets": ["three"],
    "multiple_choice_targets": ["two", "three"],
    "multiple_choice_scores": [0, 1],
}
SUPER_GLUE_COPA = {
    "premise": "It fell.",
    "choice1": "It broke.",
    "choice2": "It flew.",
    "question": "effect",
    "label": 0,
}
#: A row of each data set, by lm-eval's name of the task.
ROWS: dict[str, dict[str, Any]] = {
    "hellaswag": {
        "activity_label": "Cooking",
        "ctx_a": "She opens",
        "ctx_b": "and",
        "endings": ["sleeps.", "stirs.", "flies.", "sings."],
        "label": "1",
    },
    "arc_easy": QUESTION,
    "arc_challenge": QUESTION,
    "copa": SUPER_GLUE_COPA,
    "commonsense_qa": {
        "question": "Where is it?",
        "choices": {"label": list("ABCDE"), "text": ["in", "on", "by", "at", "to"]},
        "answerKey": "C",
    },
    "piqa": {"goal": "Cut it", "sol1": "with a knife", "sol2": "with a spoon", "label": 0},
    "openbookqa": {"question_stem": "The sun is", **{k: QUESTION[k] for k in ("choices", "answerKey")}},
    "lambada_openai": {"text": "It was the best of times"},
    "wsc273": {
        "text": "The cup does not fit because it is large.",
        "pronoun": "it",
        "pronoun_loc": 29,
        "options": ["The cup", "The box"],
        "label": 0,
    },
    "winogrande": {"sentence": "The cup holds tea as _ is big.", "option1": "cup", "option2": "tea", "answer": "1"},
    "agieval_lsat_ar": {
        "query": "Who is first? Answer:",
        "choices": ["(A)a", "(B)b", "(C)c", "(D)d", "(E)e"],
        "gold": [2],
    },
    "boolq": {"passage": "Ice is cold.", "question": "is ice cold", "label": 1},
    **{task.lm_eval: BIGBENCH for task in TASKS if task.label.startswith("bigbench")},
}


def test_the_tasks_are_the_sources_without_those_that_lm_eval_lacks() -> None:
    assert {task.label for task in TASKS} | {*LEFT_OUT} == {*SOURCE}
    assert len(TASKS) + len(LEFT_OUT) == len(SOURCE) == 22
    assert SCORE == "core_19of22"
    for task in TASKS:
        shots, percent = SOURCE[task.label]
        assert task.num_fewshot == shots
        choices = CHOICES.get(task.label)
        assert task.baseline == pytest.approx(percent / 100 if choices is None else 1 / choices)


def test_the_mean_is_that_of_centred_accuracies() -> None:
    entries = {
        task.label: {"score": 100 * task.baseline, "items": 10, "limited": None, "cut": 1, "lm_eval": "0"}
        for task in TASKS
    }
    assert summarize_core(entries)["score"] == 0  # guesses
    entries["piqa"]["score"] = 75  # (0.75 - 0.5) / (1 - 0.5) = 0.5
    entries["boolq"]["score"] = 43  # (0.43 - 0.62) / (1 - 0.62) = -0.5
    entries["lambada_openai"]["score"] = 38  # of a baseline of 0
    entries["copa"]["score"] = 100
    found = summarize_core(entries)
    assert found["parts"]["piqa"]["centred"] == pytest.approx(50)
    assert found["parts"]["boolq"]["centred"] == pytest.approx(-50)
    assert found["score"] == pytest.approx((50 - 50 + 38 + 100) / 19)
    assert (found["items"], found["limited"], set(found["left_out"])) == (190, None, {"jeopardy", "squad", "coqa"})
    assert found["cut"] == 19
    entries["piqa"]["limited"] = "first 10 of 1838 items"
    assert summarize_core(entries)["limited"] == "first items only of piqa"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("core")
    for name, row in ROWS.items():
        key = next(
            key for key in ("inputs", "question", "ctx_a", "goal", "text", "sentence", "query", *row) if key in row
        )
        rows = [{**row, key: f"{i} {row[key]}"} for i in range(13)] if name not in ("copa", "wsc273") else [row] * 13
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {name: folder / f"{name}.jsonl" for name in ROWS}


def test_every_task_is_scored_as_lm_eval_defines_it(files: dict[str, Path]) -> None:
    adapter = GPTAdapter(
        tiny_gpt(vocab_size=50304, block_size=16).eval(), gpt2_tokenizer(), batch_size=64, between_batches=lambda: None
    )
    loaded = harness.load(["core", "arc_easy"], files, 1)
    found = harness.run_tasks(adapter, loaded, limit=2, log_samples=True)
    entries = harness.summarize(found, ["core", "arc_easy"], files)
    assert list(entries) == ["core_19of22", "arc_easy"]
    parts = entries["core_19of22"]["parts"]
    assert {label: part["num_fewshot"] for label, part in parts.items()} == {t.label: t.num_fewshot for t in TASKS}
    assert entries["arc_easy"]["num_fewshot"] == 1  # the key does not change CORE
    by_characters = {"hellaswag_zeroshot", "hellaswag", "arc_easy", "arc_challenge", "piqa", "openbook_qa"}
    for label, part in parts.items():
        assert part["metric"] == ("acc_norm" if label in {*by_characters, "agi_eval_lsat_ar"} else "acc")
        assert part["items"] == 2
    assert parts["hellaswag"]["limited"] == "first 2 of 10042 items"
    assert entries["core_19of22"]["limited"] == "first items only of all 19 tasks"
    # One space before each answer.
    answers = {name: sample[0]["arguments"][0][1] for name, sample in found["samples"].items()}
    assert {answer[:1] for answer in answers.values()} == {" "}
    assert not any(answer.startswith("  ") for answer in answers.values())
    # The examples of BIG-bench, which has one split, are ten others of its items.
    sample = found["samples"]["core_bigbench_operators"][0]
    prompt, answer = sample["arguments"][0]
    assert answer == " three"
    assert prompt.count("one, two, three\n\n") == 10
    assert prompt.endswith("\n\n0 one, two,")
    assert prompt.count("0 one, two,") - prompt.count("10 one, two,") == 1


def test_core_is_checked_on_its_files_before_training(files: dict[str, Path]) -> None:
    lm_eval = {"tasks": ["core"], "files": {k: str(v) for k, v in files.items()}, "limit": None, "num_fewshot": 0}
    suite = EvaluationSuite(perplexity={}, lm_eval=lm_eval, batch_size=1, every_steps=None, log_samples=False)
    suite.check(gpt2_tokenizer(), 50304, 16)


def test_lm_eval_has_the_tasks_at_their_paths() -> None:
    for task in TASKS:
        config = harness.load_yaml(harness.TASKS / task.path)
        assert config["task"] == task.lm_eval
        configured = task.configure(config)
        assert configured["task"] == f"core_{task.label}"
        # Of other splits lm-eval draws an item as its own example.
        assert configured["fewshot_split"] == configured["test_split"] in ("test", "validation", "default")
        assert configured["output_type"] in ("multiple_choice", "loglikelihood")  # nothing is generated


def test_the_shipped_option_runs_core_alone() -> None:
    suite = component("evaluation", "core")
    assert suite.tasks.tasks == [core.NAME]
    assert suite.tasks.limit is None
    assert {*suite.tasks.files} <= {task.lm_eval for task in TASKS}
