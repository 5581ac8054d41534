"""The lm-eval adapter, item by item against a plain batch-of-one model on transformers' GPT-2."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenizer import gpt2_encoding
from src.evaluation.harness import find_task_file, load, run_tasks, summarize
from src.evaluation.lm_adapter import GPTAdapter
from src.evaluation.sources import EMBEDDED
from src.models.gpt import GPT
from tests.ranks import run_ranks
from tests.support import export_gpt2, jitter, tiny_gpt

TASKS = ["arc_easy", "hellaswag", "piqa", "winogrande"]
FILES = {name: next(EMBEDDED.glob(f"{name}_*.jsonl.xz")) for name in TASKS}


def model() -> GPT:
    return jitter(tiny_gpt(vocab_size=50304, block_size=96, bias=True), 0.1).eval()


def adapter(gpt: GPT | None = None, batch_size: int = 16) -> GPTAdapter:
    return GPTAdapter(gpt or model(), gpt2_tokenizer(), batch_size=batch_size, between_batches=lambda: None)


def test_a_request_exceeds_the_context_by_one_token() -> None:
    def exceeds(kind: str, *arguments: Any) -> bool:
        return adapter().exceeds_context(Instance(request_type=kind, doc={}, arguments=arguments, idx=0))

    # 96 positions score 97 tokens.
    assert [exceeds("loglikelihood", " the" * n, " end of it") for n in (94, 95)] == [False, True]
    assert not exceeds("loglikelihood", "", " the" * 200)  # every token is scored, in pieces
    asked = {"until": ["."], "max_gen_toks": 6}
    assert [exceeds("generate_until", " the" * n, asked) for n in (90, 91)] == [False, True]
    assert not exceeds("loglikelihood_rolling", " the" * 200)


class Plain(TemplateLM):
    """One request at a time, full logits, by lm-eval's rules for a Hugging Face model."""

    eot_token_id = 50256

    def __init__(self, theirs: Any, max_length: int) -> None:
        super().__init__()
        self.theirs, self.max_length = theirs, max_length

    def tok_encode(self, string: str, add_special_tokens: Any = None, **_: Any) -> list[int]:
        return gpt2_encoding().encode(string, allowed_special="all")

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        out = []
        for _, context, continuation in requests:
            inputs = torch.tensor((context + continuation)[-(self.max_length + 1) :][:-1])
            with torch.no_grad():
                logp = self.theirs(inputs[None]).logits[0, -len(continuation) :].double().log_softmax(-1)
            target = torch.tensor(continuation)
            out.append((logp.gather(1, target[:, None]).sum().item(), bool((logp.argmax(-1) == target).all())))
        return out

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers", reason="a development dependency")
    gpt = model()
    folder = tmp_path_factory.mktemp("hub") / "gpt"
    export_gpt2(gpt, folder)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    models = {"ours": adapter(gpt), "one": adapter(gpt, 1), "plain": Plain(theirs, 96)}
    return {name: run_tasks(lm, load(TASKS, FILES, 0), limit=12, log_samples=True) for name, lm in models.items()}


def items(found: dict[str, Any], task: str) -> list[Any]:
    return [
        [(float(logp), bool(greedy)) for logp, greedy in sample["filtered_resps"]] for sample in found["samples"][task]
    ]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("other", ["plain", "one"])
def test_every_item_scores_as_in_a_batch_of_one(task: str, other: str, results: dict[str, Any]) -> None:
    ours, theirs = (items(results[name], task) for name in ("ours", other))
    assert len(ours) == len(theirs) == 12
    for a, b in zip(ours, theirs, strict=True):
        for (logp, greedy), (expected, expected_greedy) in zip(a, b, strict=True):
            assert logp == pytest.approx(expected, rel=1e-5, abs=1e-5)
            assert greedy == expected_greedy


def test_scores_state_their_items_and_metric(results: dict[str, Any]) -> None:
    found = summarize(results["ours"], TASKS, FILES)
    assert [found[name]["metric"] for name in TASKS] == ["acc_norm", "acc_norm", "acc_norm", "acc"]
    assert found["hellaswag"]["limited"] == "first 12 of 10042 items"
    assert found["piqa"]["limited"] == "first 12 of 1838 items"
    for name in TASKS:
        assert found[name]["score"] == pytest.approx(100 * found[name][found[name]["metric"]])
        assert found[name]["items"] == 12
        assert len(found[name]["sha256"]) == 64


def test_a_whole_file_that_is_a_part_of_the_published_set_is_marked() -> None:
    fake = {
        "results": {"hellaswag": {"alias": "hellaswag", "acc,none": 0.25, "acc_norm,none": 0.3}},
        "n-samples": {"hellaswag": {"original": 2000, "effective": 2000}},
        "n-shot": {"hellaswag": 0},
        "versions": {"hellaswag": 1.0},
    }
    entry = summarize(fake, ["hellaswag"], {})["hellaswag"]
    assert entry["limited"] == "first 2000 of 10042 items"
    assert entry["score"] == 30.0


def test_lm_evals_own_definitions_are_found() -> None:
    for name in [*TASKS, "lambada_openai", "wikitext"]:
        assert find_task_file(name) is not None, name
    assert find_task_file("no_such_task") is None


def logp_of(gpt: GPT, inputs: list[int], targets: list[int]) -> float:
    with torch.no_grad():
        logp = gpt(torch.tensor([inputs]))[0].double().log_softmax(-1)
    return sum(logp[len(inputs) - len(targets) + i, t].item() for i, t in enumerate(targets))


def test_scores_are_those_of_capped_logits() -> None:
    gpt = jitter(tiny_gpt(vocab_size=50304, block_size=96, logit_softcap=0.1), 0.1).eval()
    ((logp, _),) = adapter(gpt)._loglikelihood_tokens([(None, [1, 2, 3], [5, 6])])
    assert gpt(torch.tensor([[1, 2, 3, 5]])).abs().max() > 0.09  # the cap is felt
    assert logp == pytest.approx(logp_of(gpt, [1, 2, 3, 5], [5, 6]), rel=1e-5)


def test_inputs_over_the_block_size_lose_their_left_end() -> None:
    gpt = model()
    context, continuation = list(range(1000, 1300)), [5, 6, 7]
    (logp, _), (short, _) = adapter(gpt)._loglikelihood_tokens(
        [(None, context, continuation), (None, context[:4], continuation)]
    )
    assert logp == pytest.approx(logp_of(gpt, [*context, 5, 6][-96:], continuation), rel=1e-5)
    assert short == pytest.approx(logp_of(gpt, [*context[:4], 5, 6], continuation), rel=1e-5)


def test_a_continuation_over_the_block_size_is_scored_in_pieces() -> None:
    gpt = model()
    tokens = list(range(2000, 2130))
    ((logp, _),) = adapter(gpt)._loglikelihood_tokens([(None, [1, 2], tokens)])
    expected = logp_of(gpt, [2, *tokens[:95]], tokens[:96]) + logp_of(gpt, tokens[129 - 96 : 129], tokens[96:])
    assert logp == pytest.approx(expected, rel=1e-5)


def instance(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_rolling_scores_each_token_of_a_long_text_once() -> None:
    gpt = model()
    text = "the quick brown fox " * 60
    tokens = gpt2_encoding().encode(text)
    assert len(tokens) > 200
    expected = logp_of(gpt, [50256, *tokens[:95]], tokens[:96])
    expected += logp_of(gpt, tokens[95:191], tokens[96:192])
    rest = tokens[192:]
    expected += logp_of(gpt, tokens[len(tokens) - 97 : -1], rest)
    assert adapter(gpt).loglikelihood_rolling([instance(text)])[0] == pytest.approx(expected, rel=1e-5)


def test_generation_is_greedy_and_ends_at_its_stop() -> None:
    gpt = model()
    how = {"until": ["\n\n"], "max_gen_toks": 8}
    encoding = gpt2_encoding()
    prompt = encoding.encode("A whale is")
    new: list[int] = []
    for _ in range(8):
        token = int(gpt(torch.tensor([prompt + new]))[0, -1, :50257].argmax())
        new.append(token)
    expected = encoding.decode(new)
    assert adapter(gpt).generate_until([instance("A whale is", how)]) == [expected]
    stop = encoding.decode(new[3:4])
    (cut,) = adapter(gpt).generate_until([instance("A whale is", {"until": [stop], "max_gen_toks": 8})])
    assert cut == expected.split(stop)[0]
    with pytest.raises(ValueError, match="decodes greedily"):
        adapter(gpt).generate_until([instance("x", {"do_sample": True, "temperature": 0.7})])


def everything() -> tuple[Any, Any, Any]:
    lm = adapter(batch_size=2)
    asked = [instance("word " * n, {"until": ["."], "max_gen_toks": n}) for n in range(1, 6)]
    texts = [instance("the quick brown fox " * n) for n in (1, 40, 3)]
    return lm._loglikelihood_tokens(REQUESTS), lm.generate_until(asked), lm.loglikelihood_rolling(texts)


REQUESTS: Any = [(None, list(range(10, 10 + n)), [n, n + 1]) for n in range(3, 20)]


def test_two_ranks_share_the_requests_and_both_have_all_results() -> None:
    first, second = run_ranks(everything)
    scored, generated, rolled = everything()
    assert first == second
    assert [logp for logp, _ in first[0]] == pytest.approx([logp for logp, _ in scored], rel=1e-6)
    assert first[1] == generated
    assert first[2] == pytest.approx(rolled, rel=1e-6)


def test_the_embedded_sets_are_whole(tmp_path: Path) -> None:
    import lzma

    counts = {}
    for path in EMBEDDED.glob("*.jsonl.xz"):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            counts[path.name.partition("_")[0]] = sum(1 for _ in file)
    assert counts == {"arc": 2376, "hellaswag": 2000, "piqa": 1838, "winogrande": 1267, "lambada": 5153}
