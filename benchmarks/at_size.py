"""Time and memory of what grows with a training or a study: `python -m benchmarks.at_size data|metrics|report`.

    data      the order of data over `--shards` files, sparse ones, of `--tokens` tokens each
    metrics   metrics.jsonl of `--rows` rows: writing, the cut of a resumed run, the end of a run, a report
    report    task=report over `--runs` run folders of `--rows` rows each; `--seeds` of them are one system

Every part runs in a process of its own; times are CPU time, peak memory includes the imports. Files are written below
`--folder`, and used again where they exist.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from omegaconf import OmegaConf

from src.callbacks.run_record import RunRecord
from src.datamodules.base import BatchSpec
from src.datamodules.shards import manifest
from src.datamodules.shards.format import BLOCK_BYTES, HEADER_BYTES, N_BLOCKS, encode_header
from src.datamodules.token_shards import TokenShardDataModule
from src.files import CONF, write_atomic, write_json
from src.launch.arguments import stored_yaml
from src.reporting.document import write_report
from src.reporting.figures import draw_loss_curves
from src.reporting.report import build_report
from src.reporting.runs import read_run
from src.settings.compose import compose_config
from src.training.run_folder import summarize_rows

Part = Callable[[], object]
#: Curves of a report's runs that differ; the others are copies.
N_CURVES = 20


def measure(name: str, part: Part) -> None:
    """Run `part` in a forked process and print its seconds, the peak of its memory and what it returns."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run_part, args=(name, part))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{name} failed")


def _run_part(name: str, part: Part) -> None:
    began = time.process_time()
    found = part()
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {name} | {seconds:.4g} s | {peak:,.0f} MiB | {'' if found is None else found} |", flush=True)


# ---- order of data


def write_sparse_shards(folder: Path, n_shards: int, n_tokens: int) -> None:
    """Write shards of `n_tokens` zeros, above 8 MiB, that take no disk space, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    size = HEADER_BYTES + 2 * n_tokens
    header = encode_header(n_tokens)
    blocks = header.ljust(BLOCK_BYTES, b"\0") + bytes(N_BLOCKS * BLOCK_BYTES)  # what `hash_blocks` reads
    for number in range(n_shards):
        split = "train" if number else "val"
        path = folder / f"fineweb_{split}_{number:06d}.bin"
        with path.open("wb") as file:
            file.write(header)
            file.truncate(size)
        sampled = hashlib.sha256(f"{path.name} {n_tokens}\n".encode() + blocks).hexdigest()
        whole = hashlib.sha256(sampled.encode()).hexdigest()  # nothing reads it here
        entries.append(manifest.ShardEntry(path.name, split, n_tokens, size, whole, sampled, "0"))
    listed = manifest.Manifest({}, {}, n_shards, n_shards * n_tokens, {}, tuple(entries))
    write_atomic(folder / manifest.NAME, listed.dump())


def build_module(path: Path, order: str) -> TokenShardDataModule:
    """Open shards for steps of 512 sequences of 1,024 tokens."""
    data = TokenShardDataModule(
        BatchSpec(block_size=1024, vocab_size=50257, seed=1, max_steps=1_100_000),
        path=str(path),
        order=order,  # type: ignore[arg-type]  # one of the names of the command line
        document_attention=False,
        epochs=None,
        val_tokens=1_048_576,
        val_sets=None,
        micro_batch_size=32,
        global_batch_size=512,
        workers=0,
        cache=str(path / "cache"),
        cache_gib=1,
        accept_changed=False,
    )
    data.setup()
    return data


def measure_data(folder: Path, n_shards: int, n_tokens: int, orders: list[str]) -> None:
    """Measure opening, identity and batches of steps 1 and 1,000,000 of each order."""
    path = folder / f"shards-{n_shards}"
    if not (path / manifest.NAME).exists():
        write_sparse_shards(path, n_shards, n_tokens)
    for order in orders:
        for name, part in (("identity", _describe_identity), ("batches", _time_steps)):

            def run(order: str = order, part: Callable[[TokenShardDataModule], str] = part) -> str:
                began = time.process_time()
                data = build_module(path, order)
                return f"open {time.process_time() - began:.3g} s, {part(data)}"

            measure(f"{order}: {name}", run)


def _describe_identity(data: TokenShardDataModule) -> str:
    began = time.process_time()
    size = len(json.dumps(data.identity(), indent=2))
    return f"identity {time.process_time() - began:.3g} s, {size:,} bytes of result.json"


def _time_steps(data: TokenShardDataModule) -> str:
    times = []
    for step in (999_999, 1_000_000, 1_000_001, 1_000_002):
        began = time.process_time()
        data.train_batch(step, 0, 1)
        times.append(f"{time.process_time() - began:.3f}")
    return f"batches of steps 999,999 to 1,000,002 {', '.join(times)} s"


# ---- metrics


def write_metrics(folder: Path, n_rows: int, every: int, seed: int, n_validations: int) -> None:
    """Write metrics.jsonl as a run of `n_rows * every` steps does."""
    folder.mkdir(parents=True, exist_ok=True)
    record, noise = RunRecord(folder, writes=True), random.Random(seed)
    for number in range(1, n_rows + 1):
        step = number * every
        loss = 3.0 + 8.0 * math.exp(-10 * number / n_rows) + noise.gauss(0, 0.05)
        values = {"tokens": step * 524288, "train/loss": loss, "lr": 6e-4 * (1 - number / n_rows)}
        record.note(step, {**values, "grad_norm": noise.random(), "tokens_per_s": 2e5 * (1 + 0.01 * noise.random())})
        if number % max(1, n_rows // n_validations) == 0:
            record.note(step, {"val/loss": loss - 0.01 * seed / 1e3})
        record.close_row()


def measure_metrics(folder: Path, n_rows: int) -> None:
    """Measure the rows of one long run."""
    run = folder / f"metrics-{n_rows}"
    path = run / "metrics.jsonl"
    if not path.exists():
        measure(f"write {n_rows:,} rows", lambda: write_metrics(run, n_rows, 1, 1, n_rows // 1000))
    print(f"metrics.jsonl: {path.stat().st_size / 2**20:.0f} MiB", flush=True)
    measure("cut to the last checkpoint", lambda: RunRecord(run, writes=True).keep_until(n_rows - 100))
    measure("end of the run: losses, speed, curve", lambda: _end_run(path))
    write_atomic(run / "config.yaml", stored_yaml({"name": "run"}))
    write_json(run / "result.json", _build_result("run", 1, n_rows, 1))
    measure("read by a report", lambda: f"{len(read_run(run).rows):,} rows kept")


def _end_run(path: Path) -> None:
    columns, _, _ = summarize_rows(path, 0)
    draw_loss_curves({"run": columns}, path.parent / "figures" / "loss.png")


# ---- report


def write_runs(folder: Path, n_runs: int, n_rows: int, n_seeds: int, *, one_name: bool) -> None:
    """Write `n_runs` folders of completed runs; systems differ in name and residual, or in learning rate alone."""
    with initialize_config_dir(str(CONF), version_base=None):
        config: dict[str, Any] = _plain(compose_config(["model=gpt2_medium", "scale=gpu"]))
    for number in range(n_runs):
        system, seed = divmod(number, n_seeds)
        run = folder / f"{number:05d}"
        name = "vanilla" if one_name or not system else f"strategy_{system}"
        own = {**config, "name": name, "seed": seed}
        own["optimizer"] = {**own["optimizer"], "lr": 6e-4 + (1e-6 * system if one_name else 0)}
        if number < N_CURVES:
            write_metrics(run, n_rows, 10, number, 100)
        else:
            run.mkdir()
            shutil.copy(folder / f"{number % N_CURVES:05d}" / "metrics.jsonl", run)
        write_atomic(run / "config.yaml", stored_yaml(own))
        write_json(run / "result.json", _build_result(name, seed, n_rows, number))


def _plain(config: Any) -> dict[str, Any]:  # Any: a DictConfig
    found: Any = OmegaConf.to_container(config)  # unresolved: `hydra` is not composed here
    return {**found, "resume": None, "from_run": None}


def _build_result(name: str, seed: int, n_rows: int, number: int) -> dict[str, Any]:
    noise = random.Random(number)
    ppl: dict[str, Any] = {"ppl": 30 + noise.random(), "loss": 3.4, "tokens": 4096, "windows": 4, "block_size": 1024}
    ppl |= {"protocol": "windows", "sha256": "a" * 64, "limited": None, "bits_per_byte": 1.1}
    task: dict[str, Any] = {
        "score": 50 + noise.random(),
        "stderr": 1.0,
        "metric": "acc_norm",
        "acc": 0.5,
        "items": 2376,
    }
    task |= {"limited": None, "num_fewshot": 0, "task_version": 1.0, "sha256": "b" * 64}
    shards = [{"name": f"fineweb_train_{i:06d}.bin", "tokens": 10**8, "sha256": "c" * 64} for i in range(100)]
    return {
        **{"status": "completed", "reason": None, "name": name, "seed": seed, "steps": 10 * n_rows},
        **{"max_steps": 10 * n_rows, "tokens": 5242880 * n_rows, "n_params": 354_000_000, "flops_per_token": 2.4e9},
        **{"config_hash": f"{number:064d}", "data": {"folder": "shards", "hash": "d" * 64, "shards": shards}},
        **{"accelerator": "gpu", "device": "GPU", "world_size": 1, "precision": "bf16-mixed", "threads": 1},
        **{"compile": True, "onednn": "auto", "versions": {"torch": "2.13.0", "lm-eval": "0.4.13"}, "git": "e" * 40},
        **{"seconds": 2e4, "peak_memory_bytes": 2**36, "tokens_per_s": 2e5, "best_val_loss": 3.0},
        "val_loss": 3.0 + 0.05 * noise.random(),
        "perplexity": {"wikitext2": ppl, "lambada": ppl},
        "lm_eval": dict.fromkeys(("arc_easy", "hellaswag", "piqa", "winogrande"), task),
    }


def measure_report(folder: Path, n_runs: int, n_rows: int, n_seeds: int, kinds: list[str]) -> None:
    """Measure a report over many systems, and over one name with many learning rates."""
    for kind in kinds:
        one_name = kind == "one-name"
        runs = folder / f"runs-{kind}-{n_runs}x{n_rows}"
        if not runs.exists():
            write_runs(runs, n_runs, n_rows, 1 if one_name else n_seeds, one_name=one_name)
        baseline = "vanilla optimizer.lr=0.0006" if one_name else "vanilla"
        axis = ["optimizer"] if one_name else ["residual"]
        out = folder / f"report-{kind}"
        out.mkdir(exist_ok=True)

        def write(runs: Path = runs, baseline: str = baseline, axis: list[str] = axis, out: Path = out) -> str:
            page = write_report(build_report([runs], baseline, axis), out)
            return f"report.html {page.stat().st_size / 2**20:.1f} MiB"

        measure(f"{n_runs} runs, {n_runs // (1 if one_name else n_seeds)} systems ({kind})", write)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.at_size", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["data", "metrics", "report"])
    parser.add_argument("--folder", type=Path, default=Path("at_size"))
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--orders", nargs="+", default=["shuffled", "shard_shuffled", "sequential"])
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["names", "one-name"], choices=["names", "one-name"])
    keys = parser.parse_args()
    print("| part | time | peak memory | |\n|---|---:|---:|---|")
    if keys.what == "data":
        measure_data(keys.folder, keys.shards, keys.tokens, keys.orders)
    elif keys.what == "metrics":
        measure_metrics(keys.folder, keys.rows or 1_000_000)
    else:
        measure_report(keys.folder, keys.runs, keys.rows or 200, keys.seeds, keys.kinds)


if __name__ == "__main__":
    main()
