"""CORE: mean centred accuracy over tasks whose scores vary little, for base models.

    centred accuracy = (accuracy - baseline) / (1 - baseline),  CORE = its mean over 22 tasks

The baseline is a random guess, or the most frequent answer (boolq). The tasks are those of the source as lm-eval
defines them, which is 19 of the 22; so the mean is named `core_19of22` and is not CORE. It also differs in

    prompts         lm-eval's wording; commonsense_qa answers by letter
    few-shot        examples drawn, as in the source, from the scored split without the item, but by lm-eval's generator
    normalisation   of several answers, lm-eval's acc_norm divides a log-likelihood by characters, the source by tokens
    baselines       of three tasks whose items have more choices in lm-eval than in the source, one over that number

Tasks of one answer count an item if every token of it is the most likely one, as in the source. lm-eval generates
instead for those of BIG-bench; they are asked for the log-likelihood here, which is one forward pass.

Source: Li et al. 2024, "DataComp-LM", appendix G; mlfoundations/dclm @ 361714b, eval/heavy.yaml (few-shot numbers),
additional_aggregation.json (low_variance_datasets), eval_meta_data.csv (baselines), aggregated_metrics.py;
karpathy/nanochat @ 92d63d4, nanochat/core_eval.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAME = "core"
#: Keys of a task of BIG-bench that ask for the log-likelihood of the answer instead of generated text.
ONE_ANSWER = {
    "output_type": "loglikelihood",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": None,
    "target_delimiter": "",  # lm-eval puts none between a prompt and the answer whose log-likelihood it asks for
    "doc_to_target": "{{' ' + targets[0]}}",
}


@dataclass(frozen=True)
class CoreTask:
    """Task of CORE.

    Args:
        label: name in the source.
        lm_eval: name in lm-eval.
        path: lm-eval's file of it, below its folder of tasks.
        num_fewshot: solved examples before each item.
        baseline: accuracy of a guess.
        changes: keys of lm-eval's configuration with another value here.
    """

    label: str
    lm_eval: str
    path: str
    num_fewshot: int
    baseline: float
    changes: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the name under which lm-eval scores the task, which may be there with other examples too."""
        return f"{NAME}_{self.label}"

    def configure(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return lm-eval's configuration of the task as CORE asks it."""
        split = config.get("test_split") or config["validation_split"]
        # As its test split, of which lm-eval leaves the item itself out when it draws examples.
        splits = {"validation_split": None, "test_split": split, "fewshot_split": split}
        return {**config, "task": self.name, "num_fewshot": self.num_fewshot, **splits, **self.changes}


def _task(
    label: str, num_fewshot: int, baseline: float, path: str, lm_eval: str | None = None, **changes: Any
) -> CoreTask:
    return CoreTask(label, lm_eval or label, path, num_fewshot, baseline, changes)


def _bigbench(task: str) -> CoreTask:
    path = f"bigbench/generate_until/{task}.yaml"
    return _task(f"bigbench_{task}", 10, 0.0, path, f"bigbench_{task}_generate_until", **ONE_ANSWER)


TASKS = (
    _task("hellaswag_zeroshot", 0, 0.25, "hellaswag/hellaswag.yaml", "hellaswag"),
    _bigbench("qa_wikidata"),
    _task("arc_easy", 10, 0.25, "arc/arc_easy.yaml"),
    _task("arc_challenge", 10, 0.25, "arc/arc_challenge.yaml"),
    _task("copa", 0, 0.5, "super_glue/copa/default.yaml", target_delimiter=""),  # the answers begin with a space
    _task("commonsense_qa", 10, 1 / 5, "commonsense_qa/default.yaml"),  # baseline 0.403 in the source
    _task("piqa", 10, 0.5, "piqa/piqa.yaml"),
    _task("openbook_qa", 0, 0.25, "openbookqa/openbookqa.yaml", "openbookqa"),
    _task("lambada_openai", 0, 0.0, "lambada/lambada_openai.yaml"),
    _task("hellaswag", 10, 0.25, "hellaswag/hellaswag.yaml"),
    _task("winograd", 0, 0.5, "wsc273/default.yaml", "wsc273", target_delimiter=""),
    _task("winogrande", 0, 0.5, "winogrande/default.yaml"),
    _bigbench("dyck_languages"),
    _task(  # baseline 0.25 in the source; in lm-eval's file, an example's answer is a list, which its prompts cannot hold
        "agi_eval_lsat_ar",
        3,
        1 / 5,
        "agieval/lsat-ar.yaml",
        "agieval_lsat_ar",
        fewshot_config={"doc_to_target": "{{gold[0]}}"},
    ),
    _bigbench("cs_algorithms"),
    _bigbench("operators"),
    _bigbench("repeat_copy_logic"),
    _task("boolq", 10, 0.62, "super_glue/boolq/default.yaml"),
    _task(  # baseline 0.25 in the source, whose items have 4 of the 11 choices
        "bigbench_language_identification",
        10,
        1 / 11,
        "bigbench/multiple_choice/language_identification.yaml",
        "bigbench_language_identification_multiple_choice",
    ),
)
#: Tasks of the source that lm-eval lacks.
LEFT_OUT = {
    "jeopardy": "lm-eval has no such task",
    "squad": "lm-eval's squadv2 adds questions without an answer, and squad_completion is another selection and metric",
    "coqa": "lm-eval's coqa asks the last question of each conversation only, and scores generated text",
}
#: Name of the mean.
SCORE = NAME if not LEFT_OUT else f"{NAME}_{len(TASKS)}of{len(TASKS) + len(LEFT_OUT)}"


def summarize_core(entries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the mean centred accuracy in percent, from the entries of all `TASKS` by label."""
    parts = {}
    for task in TASKS:
        entry = entries[task.label]
        share = entry["score"] / 100
        centred = 100 * (share - task.baseline) / (1 - task.baseline)
        parts[task.label] = {**entry, "baseline": task.baseline, "centred": centred}
    limited = [label for label, part in parts.items() if part["limited"]]
    which = f"all {len(TASKS)} tasks" if len(limited) == len(TASKS) else ", ".join(limited)
    return {
        "score": sum(part["centred"] for part in parts.values()) / len(parts),
        "stderr": None,
        "metric": "centred_acc",
        "unit": "%",
        "items": sum(part["items"] for part in parts.values()),
        "limited": f"first items only of {which}" if limited else None,
        "cut": sum(part["cut"] or 0 for part in parts.values()),
        "num_fewshot": sorted({task.num_fewshot for task in TASKS}),
        "task_version": None,
        "lm_eval": next(iter(parts.values()))["lm_eval"],
        "sha256": None,
        "parts": parts,
        "left_out": LEFT_OUT,
    }
