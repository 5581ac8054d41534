"""Run folders in the format that task=train writes, with given losses."""

import json
from pathlib import Path
from typing import Any

STEP_TOKENS = 128
FLOPS_PER_TOKEN = 1000


def entry_ppl(value: float, limited: str | None = None, sha256: str = "a" * 64) -> dict[str, Any]:
    """Return a perplexity entry of result.json."""
    return {
        "ppl": value,
        "loss": 1.0,
        "tokens": 4096,
        "windows": 32,
        "block_size": 128,
        "protocol": "non-overlapping windows of block_size, token level",
        "sha256": sha256,
        "limited": limited,
    }


def entry_task(score: float, metric: str = "acc_norm", limited: str | None = None) -> dict[str, Any]:
    """Return an lm-eval entry of result.json."""
    return {
        "score": score,
        "stderr": 1.0,
        "metric": metric,
        "acc": score / 100,
        metric: score / 100,
        "items": 2376,
        "limited": limited,
        "num_fewshot": 0,
        "task_version": 1.0,
        "lm_eval": "0.4.13",
        "sha256": "b" * 64,
    }


def write_run(
    folder: Path,
    *,
    name: str,
    seed: int,
    losses: list[float],
    tokens_per_s: float = 1000.0,
    flops_per_token: int = FLOPS_PER_TOKEN,
    scores: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **result: Any,
) -> Path:
    """Write one run with two steps per loss: every second step is validated, the last loss is the final one."""
    folder.mkdir(parents=True)
    steps = 2 * len(losses)
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "tokens": step * STEP_TOKENS, "train/loss": 10.0 - step, "lr": 1e-3}
        speed = tokens_per_s * (0.5 if step == 1 else 1.0)
        row |= {"grad_norm": 1.0, "tokens_per_s": speed}
        row |= {"flops_per_s": speed * flops_per_token, "memory_gib": 0.5}
        if step % 2 == 0:
            row["val/loss"] = losses[step // 2 - 1]
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "name": name,
        "seed": seed,
        "resume": None,
        "check": "quick",
        "init_from": None,
        "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]},
        "trainer": {"max_steps": steps, "devices": 1, "precision": "32-true", "threads": 1},
        "task": {"_target_": "src.tasks.train.run"},
        "model": {"n_layer": 2, "block_size": 32},
        "residual": {"_target_": f"src.residual.{name}.X", "_partial_": True},
        "norm": {"_target_": "src.norm.layernorm.LayerNorm", "_partial_": True, "eps": 1e-5},
        "data": {"path": str(folder / "shards"), "global_batch_size": 4},
        "evaluation": {"perplexity": {}, "lm_eval": {"tasks": []}, "batch_size": 16},
        **(config or {}),
    }
    (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    results = {
        "status": "completed",
        "reason": None,
        "name": name,
        "seed": seed,
        "steps": steps,
        "max_steps": steps,
        "tokens": steps * STEP_TOKENS,
        "n_params": 40_000,
        "n_params_without_positions": 39_000,
        "n_params_residual": 0,
        "flops_per_token": flops_per_token,
        "config_hash": f"{name}{seed}",
        "data": {"folder": "shards", "hash": "d" * 64},
        "accelerator": "cpu",
        "device": "x86_64",
        "world_size": 1,
        "precision": "32-true",
        "compile": False,
        "threads": 1,
        "resumed_at": [],
        "versions": {"torch": "2.13.0", "lm-eval": "0.4.13"},
        "git": "c" * 40,
        "seconds": 12.5,
        "perplexity": {},
        "lm_eval": {},
        "peak_memory_bytes": 2**30,
        "val_loss": losses[-1],
        "best_val_loss": min(losses),
        "tokens_per_s": tokens_per_s,
        **(scores or {}),
        **result,
    }
    (folder / "result.json").write_text(json.dumps(results))
    return folder
