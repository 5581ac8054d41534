"""Evaluation suite: perplexities of texts, and lm-eval tasks, in a run, at its end, or of stored weights."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import distributed

from src.bounds import NonNegativeInt, PositiveInt, validate
from src.datamodules.tokenization.base import Tokenizer, identify
from src.datamodules.tokenizer import N_VOCAB
from src.errors import one_line
from src.evaluation import core
from src.evaluation.hub import prefer_hub
from src.evaluation.perplexity import Scorer
from src.evaluation.protocols import PROTOCOLS, check_rows
from src.evaluation.sources import PUBLISHED_ITEMS, TextSet, resolve_path
from src.models.gpt import GPT
from src.models.sharding import divide_forwards

if TYPE_CHECKING:  # imports lm-eval, which takes seconds
    from src.evaluation.lm_adapter import GPTAdapter

T = TypeVar("T")

log = logging.getLogger(__name__)

Scores = dict[str, dict[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class TaskSet:
    """lm-eval tasks.

    Args:
        tasks: lm-eval's names of tasks, groups and tags, and `core`.
        files: local files by task; `embedded:` names one in the repository.
        limit: items of each task; null scores all.
        num_fewshot: solved examples before each item, one number or by the name of a task or group; null, or no name,
            leaves each task its own number. `core` has its own.
    """

    tasks: list[str]
    files: dict[str, str]
    limit: PositiveInt | None
    num_fewshot: NonNegativeInt | dict[str, NonNegativeInt] | None


class EvaluationSuite:
    """Perplexities and lm-eval tasks, in that order.

    Args:
        perplexity: texts by name, each with the keys of `TextSet`.
        lm_eval: the keys of `TaskSet`.
        batch_size: sequences of a forward.
        every_steps: optimizer steps between evaluations during training; None evaluates at the end only.
        log_samples: write the scored items of lm-eval's tasks, of stored weights and at the end of a training.
    """

    added_keys: ClassVar[dict[str, object]] = {"every_steps": None, "log_samples": False}

    def __init__(
        self,
        *,
        perplexity: dict[str, Any],
        lm_eval: dict[str, Any],
        batch_size: PositiveInt,
        every_steps: PositiveInt | None,
        log_samples: bool,
    ) -> None:
        self.texts = {name: _build(TextSet, f"evaluation.perplexity.{name}", keys) for name, keys in perplexity.items()}
        self.tasks = _build(TaskSet, "evaluation.lm_eval", lm_eval)
        self.batch_size = batch_size
        self.every_steps = every_steps
        self.log_samples = log_samples

    def check(self, tokenizer: Tokenizer | None, vocab_size: int, block_size: int) -> None:
        """Find, before anything is trained, the errors of `run`; fetch the data on the hub.

        Args:
            tokenizer: tokenizer of the model's training data; None where it is not known.
            vocab_size, block_size: sizes of the model.

        Raises:
            ValueError: a file or data set that cannot be read, rows that the protocol cannot score, an unknown
                protocol, a task that lm-eval does not have or that asks for sampling, no tokenizer, or a vocabulary
                too small for it.
        """
        if (self.texts or self.tasks.tasks) and tokenizer is None:
            raise ValueError(
                f"the evaluation needs a tokenizer: the data state none, and GPT-2's {N_VOCAB} ids are not those of "
                f"model.vocab_size={vocab_size}; give model.vocab_size=50304, shards of task=prepare or evaluation=none"
            )
        if (self.texts or self.tasks.tasks) and tokenizer is not None and vocab_size < tokenizer.n_vocab:
            raise ValueError(
                f"the evaluation needs the {tokenizer.n_vocab} ids of tokenizer {tokenizer.name}, model.vocab_size is "
                f"{vocab_size}; give model.vocab_size={tokenizer.padded_vocab_size} or evaluation=none"
            )
        for name, text in self.texts.items():
            text.check(f"evaluation.perplexity.{name}", block_size)
        names, files, shots = self.tasks.tasks, self._files(), self.tasks.num_fewshot
        with self._prefer_hub(files):
            for name, text in self.texts.items():
                assert tokenizer is not None  # checked above
                _read_rows(f"evaluation.perplexity.{name}", text, tokenizer, block_size)
            if isinstance(shots, dict) or not {*names} <= files.keys() & PUBLISHED_ITEMS.keys():
                from src.evaluation.harness import load  # imports lm-eval, which takes seconds

                load(names, files, shots)

    def run(
        self,
        model: GPT,
        tokenizer: Tokenizer | None,
        between_batches: Callable[[], None],
        samples: Path | None = None,
    ) -> Scores:
        """Return the scores of `model`; an entry states what was limited or left out.

        Args:
            model: a model in evaluation mode; runs under the active autocast.
            tokenizer: tokenizer of its training data.
            between_batches: called after each forward pass.
            samples: folder for the scored items, if the suite has `log_samples`; None writes none.
        """
        scores: Scores = {"perplexity": {}, "lm_eval": {}}
        if tokenizer is None:  # `check` has rejected it where there is something to score
            return scores
        files = self._files()
        scorer = Scorer(model, tokenizer, self.batch_size, between_batches)
        with self._prefer_hub(files):
            for name, text in self.texts.items():
                log.info("evaluation: perplexity on %s", name)
                scores["perplexity"][name] = self._score_text(name, text, scorer)
            if self.tasks.tasks:
                log.info("evaluation: lm-eval on %s", ", ".join(self.tasks.tasks))
                adapter = self._build_adapter(model, tokenizer, between_batches)
                scores["lm_eval"] = self._lm_eval(adapter, files, samples if self.log_samples else None)
        return scores

    def _score_text(self, name: str, text: TextSet, scorer: Scorer) -> dict[str, Any]:
        key = f"evaluation.perplexity.{name}"
        size, entry = scorer.model.config.block_size, None
        rows, reason = _attempt(scorer.model, lambda: _read_rows(key, text, scorer.tokenizer, size))
        if rows is not None:
            entry, reason = _attempt(scorer.model, functools.partial(PROTOCOLS[text.protocol], scorer, rows, text))
        if rows is None or entry is None:
            reason = reason or f"not in the repository; give {key}.path=<file> or evaluation=full"
            log.warning("evaluation: %s left out: %s", name, reason)
            return {"skipped": reason}
        # Per word or byte, texts are compared by this hash: that of the tokens depends on the tokenizer.
        sha256 = hashlib.sha256(text.join.join(rows).encode()).hexdigest()
        return {**entry, "text_sha256": sha256, "tokenizer": identify(scorer.tokenizer.statement())}

    def _prefer_hub(self, files: dict[str, Path]) -> AbstractContextManager[None]:
        """Return a context that loads from the hub or its cache; one that does nothing where no data is on the hub."""
        named = {name for name in self.tasks.tasks if name != core.NAME}
        named |= {task.lm_eval for task in core.TASKS} if core.NAME in self.tasks.tasks else set()
        remote = any(text.path is None and text.hub is not None for text in self.texts.values())
        return prefer_hub() if remote or named - files.keys() else nullcontext()

    def _files(self) -> dict[str, Path]:
        used_by_core = {task.lm_eval for task in core.TASKS}
        return {
            name: resolve_path(f"evaluation.lm_eval.files.{name}", path)
            for name, path in self.tasks.files.items()
            if name in self.tasks.tasks or (core.NAME in self.tasks.tasks and name in used_by_core)
        }

    def _build_adapter(self, model: GPT, tokenizer: Tokenizer, between_batches: Callable[[], None]) -> "GPTAdapter":
        from src.evaluation.lm_adapter import GPTAdapter  # imports lm-eval, which takes seconds

        return GPTAdapter(model, tokenizer, batch_size=self.batch_size, between_batches=between_batches)

    def _lm_eval(self, adapter: "GPTAdapter", files: dict[str, Path], samples: Path | None) -> dict[str, Any]:
        from src.evaluation.harness import count_cut, load, run_tasks, summarize
        from src.evaluation.samples import write_samples

        names = self.tasks.tasks
        limit, found = self.tasks.limit, None
        loaded, reason = _attempt(adapter.model, lambda: load(names, files, self.tasks.num_fewshot))
        if loaded is not None:
            run = functools.partial(run_tasks, adapter, loaded, limit=limit, log_samples=samples is not None)
            found, reason = _attempt(adapter.model, run)
        if found is None:
            log.warning("evaluation: lm-eval's tasks left out: %s", reason)
            return {name: {"skipped": reason} for name in names}
        if samples is not None:
            write_samples(samples, found["samples"])
            log.info("evaluation: scored items in %s", samples)
        found["cut"] = count_cut(adapter, loaded)
        for name, n_cut in found["cut"].items():
            if n_cut:
                size = adapter.max_length
                log.warning("evaluation: %d prompts of %s lost their start to model.block_size=%d", n_cut, name, size)
        return summarize(found, names, files)


def _read_rows(key: str, text: TextSet, tokenizer: Tokenizer, block_size: int) -> list[str] | None:
    """Return the rows of a text after checking that its protocol can score them; None if none are named."""
    rows = text.read_rows(key)
    if rows is not None:
        try:
            check_rows(tokenizer, rows, text, block_size)
        except ValueError as error:
            raise ValueError(f"{key}: {one_line(error)}") from error
    return rows


def _attempt(model: GPT, work: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return what `work` returns, or None and why it failed on some rank.

    `check` has found what it can before, so mostly a cache or file that is gone since is the reason: the scores of a
    trained run can be had later (task=evaluate), its training not.
    """
    found, reason = None, None
    try:
        found = work()
    except ValueError as error:
        reason = f"{one_line(error)}; task=evaluate run=<run folder> scores it later"
    _, world = divide_forwards(model)
    if world > 1:  # ranks that share the work all leave it out
        reasons: list[str | None] = [None] * world
        distributed.all_gather_object(reasons, reason)
        reason = next((each for each in reasons if each is not None), None)
    return (found if reason is None else None), reason


def _build(kind: type[Any], where: str, keys: Any) -> Any:  # any value that a configuration may hold
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(keys, dict) or set(keys) != set(names):
        got = ", ".join(map(str, keys)) if isinstance(keys, dict) else repr(keys)
        raise ValueError(f"{where} must have the keys {', '.join(names)}, got {got}")
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    return kind(**{name: validate(f"{where}.{name}", keys[name], types[name]) for name in names})
