"""The lm-eval adapter, item by item against lm-eval's own Hugging Face model on the same random weights."""

import json
import lzma
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.datamodules.hub_tokenizer import write_tokenizer
from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenizer import gpt2_encoding
from src.evaluation.harness import load, run_tasks
from src.evaluation.lm_adapter import GPTAdapter
from src.evaluation.sources import EMBEDDED
from src.models.formats.huggingface import load_gpt2
from tests.support import SIZES, tiny_gpt

transformers = pytest.importorskip("transformers", reason="a development dependency")
pytest.importorskip("accelerate", reason="lm-eval's Hugging Face model needs it")

BLOCK = 64
CHOICES = ["arc_easy", "hellaswag", "piqa", "winogrande", "lambada_openai"]
FILES = {name: next(EMBEDDED.glob(f"{name}_*.jsonl.xz")) for name in CHOICES}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, GPTAdapter]:
    """A GPT-2 that transformers initialised, in lm-eval's model class and in ours."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("hub")
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_positions": BLOCK}
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, initializer_range=0.3)).eval()
    theirs.save_pretrained(folder)
    write_tokenizer(folder, BLOCK)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = HFLM(pretrained=theirs, tokenizer=tokenizer, batch_size=3, max_length=BLOCK, device="cpu")
    sizes = {**SIZES, "block_size": BLOCK, "vocab_size": 50257, "bias": True, "gelu_approximate": "tanh"}
    gpt = tiny_gpt(**sizes)
    load_gpt2(gpt, folder)
    return reference, GPTAdapter(gpt.eval(), gpt2_tokenizer(), batch_size=4, between_batches=lambda: None)


def items(lm: Any, tasks: list[str], files: dict[str, Path], shots: int) -> dict[str, list[Any]]:
    found = run_tasks(lm, load(tasks, files, shots), limit=6, log_samples=True)
    return {name: [sample["filtered_resps"] for sample in found["samples"][name]] for name in tasks}


def agree(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for (logp, greedy), (expected, expected_greedy) in zip(ours, theirs, strict=True):
        assert logp == pytest.approx(expected, rel=1e-5, abs=1e-4)
        assert bool(greedy) == bool(expected_greedy)


@pytest.mark.parametrize("shots", [0, 3])  # with 3 all inputs are over-long
def test_every_choice_scores_as_in_lm_evals_own_model(shots: int, pair: tuple[Any, GPTAdapter]) -> None:
    theirs, ours = (items(lm, CHOICES, FILES, shots) for lm in pair)
    for name in CHOICES:
        for item, expected in zip(ours[name], theirs[name], strict=True):
            agree(item, expected)


def test_whole_texts_score_as_in_lm_evals_own_model(pair: tuple[Any, GPTAdapter], tmp_path: Path) -> None:
    with lzma.open(FILES["lambada_openai"], "rt") as file:
        rows = [json.loads(line)["text"] for line, _ in zip(file, range(4), strict=False)]
    pages = [rows[0], rows[1] * 3, "word", ""]
    (tmp_path / "pages.jsonl").write_text("\n".join(json.dumps({"page": page}) for page in pages))
    found = [run_tasks(lm, load(["wikitext"], {"wikitext": tmp_path / "pages.jsonl"}, 0), limit=None) for lm in pair]
    theirs, ours = (entry["results"]["wikitext"] for entry in found)
    assert ours["bits_per_byte,none"] == pytest.approx(theirs["bits_per_byte,none"], rel=1e-6)
    assert ours["word_perplexity,none"] == pytest.approx(theirs["word_perplexity,none"], rel=1e-5)


def ask(prompt: str, **how: Any) -> Any:
    return SimpleNamespace(args=(prompt, how), arguments=(prompt, how))


def test_generated_texts_are_those_of_lm_evals_own_model(pair: tuple[Any, GPTAdapter]) -> None:
    long = "the people of the United States and of many other lands " * 9
    asked = [
        ask("A whale is", until=["\n\n"], max_gen_toks=12),
        ask(long, until=["\n\n"], max_gen_toks=12),
        ask("x", until=["\n\n"], max_gen_toks=12),
        ask("Question: why?\nAnswer:", until=["."], max_gen_toks=30, do_sample=False, temperature=0.0),
        ask("one two three", until=[], max_new_tokens=1),
    ]
    theirs, ours = (lm.generate_until(asked) for lm in pair)
    assert ours == theirs
    assert len(set(ours)) > 2
    first = gpt2_encoding().decode(gpt2_encoding().encode(theirs[0])[4:5])
    stopped = [ask("A whale is", until=[first], max_gen_toks=12), asked[2]]
    assert pair[1].generate_until(stopped) == pair[0].generate_until(stopped) != theirs[:2]


def test_ragged_requests_of_every_kind_agree(pair: tuple[Any, GPTAdapter]) -> None:
    letters = list(range(64, 300))
    requests = [
        (("c", "1"), letters[:20], [7]),  # one-token answers to one question
        (("c", "2"), letters[:20], [9]),
        (("c", "3"), letters[:20], [7, 8, 9]),  # begins with one of them
        (("c", "4"), letters[:23], [1]),
        (("d", "1"), letters[:200], [5, 6]),  # over-long
        (("d", "2"), letters[:200], [5, 6, 7]),
        (("e", "1"), [50256], letters[:BLOCK]),  # a continuation that fills the model
        (("f", "1"), [50256], [3]),
        (("f", "1"), [50256], [3]),  # the same request twice
        (("g", "1"), letters[:BLOCK], [4]),
    ]
    theirs, ours = (lm._loglikelihood_tokens(requests, disable_tqdm=True) for lm in pair)
    agree(ours, theirs)


def test_the_tokenizer_that_goes_out_is_the_one_used_here(pair: tuple[Any, GPTAdapter]) -> None:
    reference, ours = pair
    for text in ("Hello world", "it's 1234  \n\n naïve 日本語 \t  x   ", "a<|endoftext|>b", ""):
        assert reference.tok_encode(text) == ours.tok_encode(text)
        assert reference.tokenizer.decode(ours.tok_encode(text)) == text
