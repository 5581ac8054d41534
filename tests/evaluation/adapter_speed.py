"""How much faster the lm-eval adapter is than one that scores a request at a time; run it by hand.

    python -m tests.evaluation.adapter_speed [items of each task] [model] [batch_size]

Both adapters score the same items with the same weights in the same process, in turns; the fastest turn of
each counts. `one by one` is what an adapter without batches is: a forward a request, logits of every position.
`batch_size=1` is this project's adapter without batches, so what is left of its lead is head and sharing.
The processor's seconds stand beside those of the clock, since other processes slow the clock's.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from omegaconf import OmegaConf

from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenizer import END_OF_TEXT, gpt2_encoding
from src.evaluation.harness import load, run_tasks
from src.evaluation.lm_adapter import GPTAdapter
from src.evaluation.sources import EMBEDDED
from src.models.gpt import GPT
from tests.support import option, tiny_gpt

TASKS = ["arc_easy", "hellaswag", "piqa", "winogrande", "lambada_openai"]
FILES = {name: next(EMBEDDED.glob(f"{name}_*.jsonl.xz")) for name in TASKS}
TURNS = 3


class OneByOne(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """A forward a request, full logits, by lm-eval's rules."""

    eot_token_id = END_OF_TEXT

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def tok_encode(self, string: str, add_special_tokens: Any = None, **_: Any) -> list[int]:
        return gpt2_encoding().encode(string, allowed_special="all")

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        out = []
        for _, context, continuation in requests:
            inputs = torch.tensor((context + continuation)[-(self.model.config.block_size + 1) :][:-1])
            logp = self.model(inputs[None])[0].log_softmax(-1)[-len(continuation) :]
            target = torch.tensor(continuation)
            out.append((float(logp.gather(1, target[:, None]).sum()), bool((logp.argmax(-1) == target).all())))
        return out

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError


class Timed:
    """An adapter whose scoring is timed, apart from lm-eval's own work on items and metrics."""

    def __init__(self, adapter: Any) -> None:
        self.adapter, self.seconds, self.processor, self.answers = adapter, 0.0, 0.0, []
        score = adapter._loglikelihood_tokens

        def timed(requests: Sequence[Any], **keys: Any) -> list[tuple[float, bool]]:
            begin, worked = time.perf_counter(), time.process_time()
            found: list[tuple[float, bool]] = score(requests, **keys)
            self.seconds += time.perf_counter() - begin
            self.processor += time.process_time() - worked
            self.answers += found
            return found

        adapter._loglikelihood_tokens = timed


def compare(gpt: GPT, limit: int, batch_size: int, turns: int) -> dict[str, Timed]:
    """The adapters after scoring the first `limit` items of each task `turns` times."""

    def ours(size: int) -> GPTAdapter:
        return GPTAdapter(gpt, gpt2_tokenizer(), batch_size=size, between_batches=lambda: None)

    adapters = {
        "one by one": Timed(OneByOne(gpt)),
        "batch_size=1": Timed(ours(1)),
        f"batch_size={batch_size}": Timed(ours(batch_size)),
    }
    turns_of: dict[str, list[tuple[float, float]]] = {name: [] for name in adapters}
    for _ in range(turns):
        for name, timed in adapters.items():
            timed.seconds, timed.processor, timed.answers = 0.0, 0.0, []
            run_tasks(timed.adapter, load(TASKS, FILES, 0), limit=limit)
            turns_of[name].append((timed.seconds, timed.processor))
    for name, timed in adapters.items():
        timed.seconds, timed.processor = (min(column) for column in zip(*turns_of[name], strict=True))
    return adapters


def main(limit: int, model: str, batch_size: int) -> None:
    """Print one line an adapter."""
    sizes: dict[str, Any] = OmegaConf.to_container(option("model", model))  # type: ignore[assignment]  # a mapping
    gpt = tiny_gpt(**sizes).eval()
    found = compare(gpt, limit, batch_size, TURNS)
    slowest = found["one by one"]
    for name, timed in found.items():
        clock, processor = slowest.seconds / timed.seconds, slowest.processor / timed.processor
        rate = len(timed.answers) / timed.seconds
        print(
            f"{name:14} {timed.seconds:8.2f} s {rate:8.0f} requests/s {clock:6.2f} x   "
            f"{timed.processor:8.2f} s of processor {processor:6.2f} x"
        )


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given[0]) if given else 40, given[1] if given[1:] else "tiny", int(given[2]) if given[2:] else 16)
