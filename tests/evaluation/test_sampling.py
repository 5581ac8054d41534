"""Sampling: the published filters, a seed for each continuation, and a cache that changes nothing."""

import pytest
import torch
from torch import Tensor

from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.evaluation.generation import generate_text
from src.evaluation.sampling import SamplingKeys, draw_tokens, filter_probabilities, sample
from src.models.gpt import GPT
from tests.support import jitter, tiny_gpt

P = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (None, None, [0.1, 0.4, 0.2, 0.3]),
        (1, None, [0, 1, 0, 0]),
        (2, None, [0, 4 / 7, 0, 3 / 7]),
        (9, None, [0.1, 0.4, 0.2, 0.3]),
        (None, 0.7, [0, 4 / 7, 0, 3 / 7]),  # 0.4 + 0.3 reach 0.7
        (None, 0.71, [0, 4 / 9, 2 / 9, 3 / 9]),
        (None, 1e-9, [0, 1, 0, 0]),  # the most likely token always stays
        (None, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (3, 0.5, [0, 4 / 7, 0, 3 / 7]),  # of the three: 4/9, 3/9, 2/9; 4/9 is below 0.5
    ],
)
def test_the_filters_are_those_of_their_papers(top_k: int | None, top_p: float | None, expected: list[float]) -> None:
    found = filter_probabilities(P.double().log(), top_k, top_p)
    assert torch.allclose(found, torch.tensor([expected], dtype=torch.float64), atol=1e-7)


def test_draws_follow_the_probabilities_and_temperature_sharpens_them() -> None:
    n = 4000
    generators = [torch.Generator().manual_seed(i) for i in range(n)]
    for temperature in (1.0, 0.5):
        keys = SamplingKeys(temperature, None, None, 1)
        counts = torch.bincount(torch.tensor(draw_tokens(P.log().expand(n, 4), keys, generators)), minlength=4) / n
        expected = P[0] ** (1 / temperature) / (P[0] ** (1 / temperature)).sum()
        assert (counts - expected).abs().max() < 4 * (0.25 / n) ** 0.5
    assert draw_tokens(P.log(), SamplingKeys(0, None, None, 1), generators[:1]) == [1]


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return jitter(tiny_gpt("hyperconn", vocab_size=50304, embedding="untied")).eval()


def continuations(gpt: GPT, count: int, n: int, *, caches: bool, seed: int = 1, **keys: float) -> list[list[int]]:
    values = SamplingKeys(**{"temperature": 1.0, "top_k": 50, "top_p": None, "seed": seed, **keys})
    rows: list[list[int]] = [[] for _ in range(count)]
    for drawn in sample(gpt, gpt2_tokenizer(), [464, 661], count, n, values, caches=caches):
        rows[drawn.row].append(drawn.token)
    return rows


def test_a_cache_changes_no_token_also_behind_the_block_size(gpt: GPT) -> None:
    found = continuations(gpt, 3, 16, caches=True)  # block_size is 12
    assert found == continuations(gpt, 3, 16, caches=False)
    assert [len(row) for row in found] == [16] * 3
    assert len({tuple(row) for row in found}) == 3
    assert max(map(max, found)) < 50257  # no padding id


def test_a_continuation_depends_on_its_seed_and_number_alone(gpt: GPT) -> None:
    three = continuations(gpt, 3, 6, caches=True)
    assert continuations(gpt, 1, 6, caches=True) == three[:1]
    assert continuations(gpt, 3, 6, caches=True, seed=2) != three


def test_temperature_0_is_greedy(gpt: GPT) -> None:
    (row,) = continuations(gpt, 1, 6, caches=True, temperature=0, top_k=1)
    tokenizer = gpt2_tokenizer()
    assert tokenizer.decode(row) == generate_text(gpt, tokenizer, tokenizer.decode([464, 661]), 6)


def test_a_row_ends_at_end_of_text(monkeypatch: pytest.MonkeyPatch, gpt: GPT) -> None:
    drawn = iter([[5, 50256, 7], [8, 9, 50256], [50256, 1, 1], [3, 3, 3]])
    monkeypatch.setattr("src.evaluation.sampling.draw_tokens", lambda logits, keys, generators: next(drawn))
    assert continuations(gpt, 3, 9, caches=True) == [[5, 8], [], [7]]


@pytest.mark.parametrize(("key", "value"), [("temperature", -1.0), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.5)])
def test_values_out_of_bounds_are_rejected(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        SamplingKeys(**{"temperature": 1.0, "top_k": None, "top_p": None, "seed": 1, key: value})


def test_logits_are_not_changed() -> None:
    logits: Tensor = P.log()
    before = logits.clone()
    filter_probabilities(logits, 2, 0.5)
    assert torch.equal(logits, before)
