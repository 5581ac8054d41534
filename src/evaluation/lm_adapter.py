"""lm-eval's view of a GPT: log-likelihoods and greedy generation, batched by length.

Requests are sorted by length and padded on the right, which a causal model does not see; the head is
applied only where a token is scored. Inputs longer than block_size lose their left end, as in lm-eval's
own Hugging Face model. Under torch.distributed each rank scores a share of the batches and all ranks get
all results, so lm-eval itself sees a single process.

Source: EleutherAI/lm-evaluation-harness 0.4.13, api/model.py (TemplateLM) and models/huggingface.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, distributed
from torch.nn import functional as F

from src.datamodules.tokenizer import END_OF_TEXT, N_VOCAB, gpt2_encoding
from src.models.gpt import GPT

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Row = tuple[list[int], list[int]]
Scored = tuple[float, bool]
T = TypeVar("T")

#: Rows of logits that exist at once.
HEAD_ROWS = 512
MAX_GEN_TOKS = 256


class GPTAdapter(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """A GPT under GPT-2's tokenizer as an lm-eval model.

    Args:
        model: in evaluation mode, under whatever autocast is active.
        batch_size: sequences of a forward.
        between_batches: called after each forward.
    """

    def __init__(self, model: GPT, *, batch_size: int, between_batches: Callable[[], None]) -> None:
        super().__init__()
        self.model = model
        self.batch_size = batch_size
        self.between_batches = between_batches
        self._device = next(model.parameters()).device
        self._encoding = gpt2_encoding()

    @property
    def eot_token_id(self) -> int:
        """End of text, also the prefix of an empty context."""
        return END_OF_TEXT

    @property
    def max_length(self) -> int:
        """The longest input."""
        return self.model.config.block_size

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids; `<|endoftext|>` in the text is the special token, as in the Hugging Face tokenizer."""
        return self._encoding.encode(string, allowed_special="all")

    # ---- log-likelihoods

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: object) -> list[Scored]:
        rows: list[Row] = []
        owner: list[int] = []
        for i, (_strings, context, continuation) in enumerate(requests):
            pieces = self._rows(context, continuation)
            rows += pieces
            owner += [i] * len(pieces)
        order = sorted(range(len(rows)), key=lambda r: (-len(rows[r][0]), rows[r][0]))
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        scored = self._shared_out(batches, lambda batch: self._score([rows[r] for r in batch]))
        out: list[Scored] = [(0.0, True)] * len(requests)
        for r, i in enumerate(owner):
            out[i] = (out[i][0] + scored[r][0], out[i][1] and scored[r][1])
        return out

    def _rows(self, context: list[int], continuation: list[int]) -> list[Row]:
        """Inputs, cut on the left, and the targets of their last positions.

        One row, unless the continuation alone is longer than block_size: then it is scored in pieces of
        that length, each after what precedes it, so that every token counts once. (lm-eval's Hugging Face
        model stops with an assertion there.)
        """
        size = self.max_length
        rows = []
        for at in range(0, len(continuation), size):
            piece, before = continuation[at : at + size], context + continuation[:at]
            rows.append(((before + piece)[-(size + 1) :][:-1], piece))
        return rows

    @torch.no_grad()
    def _score(self, rows: Sequence[Row]) -> list[Scored]:
        x_BTD = self.model.hidden(self._padded([inputs for inputs, _ in rows]))
        spans = [x_BTD[b, len(inputs) - len(t) : len(inputs)] for b, (inputs, t) in enumerate(rows)]
        lengths = [len(targets) for _, targets in rows]
        targets_N = torch.tensor([t for _, targets in rows for t in targets], device=self._device)
        logp_N, greedy_N = self._head(torch.cat(spans), targets_N)
        return [
            (float(logp.sum()), bool(greedy.all()))
            for logp, greedy in zip(torch.split(logp_N, lengths), torch.split(greedy_N, lengths), strict=True)
        ]

    def _head(self, x_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each target, in float64, and whether it is the likeliest token."""
        logps, greedy = [], []
        for x, target in zip(torch.split(x_ND, HEAD_ROWS), torch.split(targets_N, HEAD_ROWS), strict=True):
            logits = F.linear(x, self.model.embedding.get_lm_head_weight()).float()
            logps.append(logits.log_softmax(-1).gather(1, target[:, None])[:, 0].double().cpu())
            greedy.append((logits.argmax(-1) == target).cpu())
        return torch.cat(logps), torch.cat(greedy)

    def _padded(self, rows: Sequence[list[int]]) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [END_OF_TEXT] * (width - len(row)) for row in rows], device=self._device)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token once, over disjoint windows of block_size."""
        windows: list[Request] = []
        owner: list[int] = []
        for i, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owner.append(i)
        totals = [0.0] * len(requests)
        for i, (logp, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
            totals[i] += logp
        return totals

    # ---- generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to the first of each request's stop strings.

        Raises:
            ValueError: a task asks for sampling.
        """
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: -len(prompts[i]))
        texts = self._shared_out(
            [[i] for i in order], lambda batch: [self._generate(prompts[batch[0]], requests[batch[0]].args[1])]
        )
        return [texts[i] for i in range(len(requests))]

    @torch.no_grad()
    def _generate(self, prompt: list[int], how: dict[str, Any]) -> str:
        if how.get("do_sample") and how.get("temperature", 1.0) > 0:
            raise ValueError("this adapter generates greedily; the task asks for do_sample=true")
        until = [how["until"]] if isinstance(how.get("until"), str) else list(how.get("until") or [])
        n_new = min(int(how.get("max_gen_toks", MAX_GEN_TOKS)), self.max_length - 1)
        tokens = prompt[-(self.max_length - n_new) :] or [END_OF_TEXT]
        new: list[int] = []
        while len(new) < n_new:
            x_BTD = self.model.hidden(self._padded([tokens + new]))
            logits_V = F.linear(x_BTD[0, -1], self.model.embedding.get_lm_head_weight())
            token = int(logits_V[:N_VOCAB].argmax())  # never a padding id
            if token == END_OF_TEXT:
                break
            new.append(token)
            text = self._encoding.decode(new)
            if any(stop in text for stop in until):
                break
        text = self._encoding.decode(new)
        for stop in until:
            text = text.split(stop)[0]
        return text

    # ---- sharing

    def _shared_out(self, batches: list[list[int]], work: Callable[[list[int]], list[T]]) -> dict[int, T]:
        """Each item's result; every rank works on its share of the batches and all get everything."""
        shared = distributed.is_available() and distributed.is_initialized()
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if shared else (0, 1)
        done: dict[int, T] = {}
        for batch in batches[rank::world]:
            done.update(zip(batch, work(batch), strict=True))
            self.between_batches()
        if world > 1:
            parts: list[Any] = [None] * world
            distributed.all_gather_object(parts, done)
            for part in parts:
                done.update(part)
        return done
