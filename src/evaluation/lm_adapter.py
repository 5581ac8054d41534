"""Adapter of a GPT to lm-eval: log-likelihoods and greedy generation, batched by length.

Requests with the same inputs share a forward pass (`shared_forwards`); passes are sorted by length and padded on the
right, which a causal model does not see; the head is applied only where a token is scored. Inputs longer than
block_size lose their left end, as in lm-eval's own Hugging Face model. Under torch.distributed each rank scores a
share of the batches and all ranks get all results, so lm-eval itself sees a single process.

Source: EleutherAI/lm-evaluation-harness 0.4.13, api/model.py (TemplateLM) and models/huggingface.py.
Shape letters: B sequences of a forward pass, T tokens, D n_embd, P positions that the head is applied to, M scored
(position, target) pairs.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, distributed

from src.datamodules.tokenization.base import Tokenizer
from src.evaluation.generation import generate, pad, start_continuation
from src.evaluation.shared_forwards import Forward, Row, list_positions, plan_forwards
from src.kernels.cross_entropy import ChunkLogits, log_softmax_, product_dtype
from src.models.gpt import GPT
from src.models.sharding import divide_forwards

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[float, bool]
T = TypeVar("T")
R = TypeVar("R")


class GPTAdapter(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """GPT with its tokenizer as an lm-eval model.

    Args:
        model: a model in evaluation mode; runs under the active autocast.
        tokenizer: tokenizer of its training data.
        batch_size: sequences of a forward pass.
        between_batches: called after each forward pass.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, *, batch_size: int, between_batches: Callable[[], None]
    ) -> None:
        super().__init__()
        self.model = model
        self.batch_size = batch_size
        self.between_batches = between_batches
        self._device = next(model.parameters()).device
        self.tokenizer = tokenizer

    @property
    def eot_token_id(self) -> int:
        """Return the id of end of text, which also precedes an empty context."""
        return self.tokenizer.end_of_text

    @property
    def max_length(self) -> int:
        """Return the length of the longest input."""
        return self.model.config.block_size

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Return token ids; `<|endoftext|>` is the special token, as in a Hugging Face tokenizer."""
        return self.tokenizer.encode_special(string)

    def exceeds_context(self, request: Instance) -> bool:
        """Return whether the left end of the request's prompt is cut off, since block_size has no room for it."""
        if request.request_type == "loglikelihood_rolling":
            return False
        prompt, continuation = request.args
        if request.request_type == "loglikelihood":
            # A token has at least one byte.
            if len(f"{prompt}{continuation}".encode()) <= self.max_length + 1:
                return False
            return prompt != "" and len(self.tok_encode(prompt + continuation)) > self.max_length + 1
        tokens = self.tok_encode(prompt)
        return len(start_continuation(self.tokenizer, tokens, continuation, self.max_length).prompt) < len(tokens)

    # ---- log-likelihoods

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: object) -> list[Answer]:
        rows: list[Row] = []
        owner: list[int] = []
        for i, (_strings, context, targets) in enumerate(requests):
            pieces = self._split_rows(context, targets)
            rows += pieces
            owner += [i] * len(pieces)
        plan = plan_forwards(rows)
        batches = [plan[at : at + self.batch_size] for at in range(0, len(plan), self.batch_size)]
        scored = self._share_batches(batches, lambda batch: self._score(batch, rows))
        out: list[Answer] = [(0.0, True)] * len(requests)
        for r, i in enumerate(owner):
            out[i] = (out[i][0] + scored[r][0], out[i][1] and scored[r][1])
        return out

    def _split_rows(self, context: list[int], continuation: list[int]) -> list[Row]:
        """Return inputs, cut on the left, and the targets of their last positions.

        A continuation longer than block_size is scored in pieces of that length, each after the tokens that precede
        it, so that every token counts once. (lm-eval's Hugging Face model fails an assertion then.)
        """
        size = self.max_length
        rows = []
        for at in range(0, len(continuation), size):
            piece, before = continuation[at : at + size], context + continuation[:at]
            rows.append(((before + piece)[-(size + 1) :][:-1], piece))
        return rows

    @torch.no_grad()
    def _score(self, batch: Sequence[Forward], rows: Sequence[Row]) -> dict[int, Answer]:
        x_BTD = self.model.hidden(pad([forward.inputs for forward in batch], self._device))
        positions = list_positions(batch, rows)
        x_PD = x_BTD[positions.sequence_P, positions.position_P]
        place_M = torch.tensor(positions.place_M, device=self._device)
        target_M = torch.tensor(positions.target_M, device=self._device)
        logp_M, greedy_M = self._apply_head(x_PD, place_M, target_M)
        parts = zip(torch.split(logp_M, positions.lengths), torch.split(greedy_M, positions.lengths), strict=True)
        return {
            r: (float(logp.sum()), bool(greedy.all())) for r, (logp, greedy) in zip(positions.rows, parts, strict=True)
        }

    def _apply_head(self, x_PD: Tensor, place_M: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each target, in float64, and true where it is the most likely token."""
        logp_M = torch.empty(len(target_M), dtype=torch.float64)
        greedy_M = torch.empty(len(target_M), dtype=torch.bool)
        w_VD = self.model.embedding.get_lm_head_weight().to(product_dtype(x_PD))
        head = ChunkLogits(x_PD, w_VD, self.model.config.logit_softcap)
        for at in range(0, len(x_PD), head.rows):
            # Pairs of this chunk of positions, whose logits are in memory one chunk at a time.
            in_chunk_M = (place_M >= at) & (place_M < at + head.rows)
            pairs = place_M[in_chunk_M] - at, target_M[in_chunk_M]
            logits_CV = head(x_PD[at : at + head.rows].to(w_VD.dtype))
            greedy = logits_CV[pairs] == logits_CV.amax(-1)[pairs[0]]
            place, target = (index[greedy] for index in pairs)
            greedy[greedy.clone()] = logits_CV[place].argmax(-1) == target  # the first of equal logits counts
            in_chunk_M = in_chunk_M.cpu()
            greedy_M[in_chunk_M] = greedy.cpu()
            logp_M[in_chunk_M] = log_softmax_(logits_CV)[pairs].double().cpu()
        return logp_M, greedy_M

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, each token once, over disjoint windows of block_size."""
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
        """Return greedy continuations up to the first stop string of each request.

        Raises:
            ValueError: a task asks for sampling.
        """
        texts = [(self.tok_encode(r.args[0]), r.args[1]) for r in requests]
        rows = [start_continuation(self.tokenizer, *text, self.max_length) for text in texts]
        order = sorted(range(len(rows)), key=lambda i: (rows[i].n_new, len(rows[i].prompt)))
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

        def work(batch: list[int]) -> dict[int, str]:
            continued = generate(self.model, [rows[i] for i in batch], self.between_batches)
            return dict(zip(batch, continued, strict=True))

        found = self._share_batches(batches, work)
        return [found[i] for i in range(len(requests))]

    # ---- sharing

    def _share_batches(self, batches: list[list[T]], work: Callable[[list[T]], dict[int, R]]) -> dict[int, R]:
        """Return results by index; every rank works on its share of the batches and all ranks get all results."""
        rank, world = divide_forwards(self.model)
        done: dict[int, R] = {}
        for batch in batches[rank::world]:
            done.update(work(batch))
            self.between_batches()
        if world > 1:
            parts: list[dict[int, R]] = [{}] * world
            distributed.all_gather_object(parts, done)
            for part in parts:
                done.update(part)
        return done
