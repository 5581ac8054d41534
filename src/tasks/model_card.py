"""Model card of an exported run: what it is, how to load it, how it was trained, and its scores.

All of it is taken from the run's record and configuration. What only means something on the machine of the
run (its folders) stays out.
"""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.datamodules.tokenization.base import describe
from src.models.formats.pretrained import MODEL_TYPE
from src.training.saved_weights import SavedWeights

#: Sections of a configuration that describe the model and its training; of the data, only these keys.
SECTIONS = ("model", "residual", "norm", "embedding", "recurrence", "mlp", "optimizer", "trainer", "seed")
OF_DATA = ("global_batch_size", "micro_batch_size", "val_tokens")
LOADING = {
    "gpt2": """\
The model is GPT-2 in what it computes, and loads as such:

```python
from transformers import GPT2LMHeadModel

model = GPT2LMHeadModel.from_pretrained("<this folder>")
```
""",
    "llama": """\
The model is a Llama in what it computes, and loads as such:

```python
from transformers import LlamaForCausalLM

model = LlamaForCausalLM.from_pretrained("<this folder>")
```
""",
    MODEL_TYPE: """\
The folder carries the model's code, in PyTorch alone:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("<this folder>", trust_remote_code=True)
```

`trust_remote_code` runs the `.py` files of this folder. With the package reslab none of them runs, and the model has
reslab's kernels: `reslab.from_pretrained("<this folder>")` takes token ids [B, T] and returns logits [B, T, V].
""",
}


def build_model_card(saved: SavedWeights, result: dict[str, Any] | None, *, model_format: str) -> str:
    """Return the README.md of an exported folder, with the front matter that model hubs read."""
    record = result or {}
    name, step = saved.settings.name, saved.identity["step"]
    kinds = ("custom_code",) if model_format == MODEL_TYPE else (model_format,)
    tags = "\n".join(f"- {tag}" for tag in (MODEL_TYPE, *kinds, "text-generation"))
    config = saved.trained_with
    sections = {section: config[section] for section in SECTIONS if section in config}
    data = {key: config["data"][key] for key in OF_DATA if key in config["data"]}
    front = f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n{tags}\n---\n"
    return "\n".join(
        [
            front,
            f"# {name}\n",
            f"A language model of {saved.gpt.n_params(positions=True):,} parameters, after {step:,} of "
            f"{saved.settings.trainer.max_steps:,} optimizer steps. {_describe_tokenizer(saved)}\n",
            "## Loading\n",
            LOADING[model_format],
            "## Scores\n",
            *_tabulate_scores(saved, record),
            "## The run\n",
            *_list_facts(saved, record),
            "## Configuration\n",
            f"```yaml\n{OmegaConf.to_yaml(OmegaConf.create({**sections, 'data': data}))}```\n",
        ]
    )


def _describe_tokenizer(saved: SavedWeights) -> str:
    if saved.tokenizer is None:
        return "The data stated no tokenizer, so the folder has none."
    if saved.tokenizer.content() is None:
        return "Texts are GPT-2's tokens; `tokenizer.json` is its tokenizer."
    statement = saved.tokenizer.statement()
    return (
        f"Texts are the tokens of `tokenizer.json`: {describe(statement)}, sha256 {statement['sha256']}, end of text "
        f"{statement['end_of_text']}."
    )


def _tabulate_scores(saved: SavedWeights, record: dict[str, Any]) -> list[str]:
    """Return the lines of a table with all scores of these weights (compared by hash)."""
    step, sha256 = saved.identity["step"], saved.identity["checkpoint"]["sha256"]
    rows: list[tuple[str, str, str]] = []
    if record.get("status") == "completed" and record.get("steps") == step:
        rows.append(("validation loss", f"{record['val_loss']:.4f} nats", "the run's validation set"))
        if "val_bpb" in record:
            rows.append(("validation bits per byte", f"{record['val_bpb']:.4f}", "the run's validation set"))
        rows += _rows(record)
    for path in sorted((saved.folder / "evaluations").glob("*.json")) if saved.folder else []:
        record_of_file = json.loads(path.read_text(encoding="utf-8"))
        if record_of_file["checkpoint"]["sha256"] == sha256:
            rows += [row for row in _rows(record_of_file["scores"]) if row not in rows]
    if not rows:
        return ["These weights have no scores.\n"]
    return ["| measure | value | on |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _rows(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for name, entry in (scores.get("perplexity") or {}).items():
        if "ppl" in entry:
            rows.append((f"{name} perplexity", f"{entry['ppl']:.2f}", entry.get("limited") or "all tokens"))
    for name, entry in (scores.get("lm_eval") or {}).items():
        if "score" not in entry:  # left out
            continue
        unit = "" if entry.get("unit", "%") is None else " %"
        on = entry.get("limited") or f"all {entry['items']} items"
        cut = f", {entry['cut']} prompts cut to the context" if entry.get("cut") else ""
        shots = f"{entry['num_fewshot']}-shot, {on}{cut}"
        rows.append((f"{name} {entry['metric']}", f"{entry['score']:.2f}{unit}", shots))
    return rows


def _list_facts(saved: SavedWeights, record: dict[str, Any]) -> list[str]:
    identity = saved.identity
    tokens = record.get("tokens") if record.get("steps") == identity["step"] else None
    facts = {
        "status of the run": record.get("status"),
        "tokens seen": _format_count(tokens),
        "parameters of the residual strategy": _format_count(record.get("n_params_residual")),
        "FLOPs per token": _format_count(record.get("flops_per_token")),
        "device": record.get("device"),
        "precision": record.get("precision"),
        "configuration": identity.get("config_hash"),
        "data": identity.get("data_hash"),
        "checkpoint": f"{Path(identity['checkpoint']['file']).name}, sha256 {identity['checkpoint']['sha256']}",
        "code": record.get("git"),
        "versions": ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items()) or None,
    }
    return [*(f"- {key}: {value}" for key, value in facts.items() if value is not None), ""]


def _format_count(number: float | None) -> str | None:
    return None if number is None else f"{number:,.0f}"
