"""Plan of shared forward passes: every request once, every position once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.evaluation.lm_adapter import GPTAdapter
from src.evaluation.shared_forwards import Row, list_positions, plan_forwards
from tests.evaluation.adapter_speed import compare
from tests.support import tiny_gpt

ROWS = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=6).flatmap(
        lambda inputs: st.tuples(st.just(inputs), st.lists(st.integers(0, 2), min_size=1, max_size=len(inputs)))
    ),
    max_size=12,
)


@given(ROWS)
def test_every_request_is_scored_once_by_a_sequence_that_begins_with_it(rows: list[Row]) -> None:
    plan = plan_forwards(rows)
    assert sorted(r for forward in plan for r in forward.rows) == list(range(len(rows)))
    for forward in plan:
        assert all(forward.inputs[: len(rows[r][0])] == rows[r][0] for r in forward.rows)
    assert [len(f.inputs) for f in plan] == sorted((len(f.inputs) for f in plan), reverse=True)
    heads = [f.inputs for f in plan]
    needless = [a for a in heads if sum(b[: len(a)] == a for b in heads) > 1]
    assert needless == []  # no sequence is the beginning of another


@given(ROWS)
def test_every_target_is_looked_up_where_its_request_has_it(rows: list[Row]) -> None:
    plan = plan_forwards(rows)
    asked = list_positions(plan, rows)
    positions = list(zip(asked.sequence_P, asked.position_P, strict=True))
    assert len(set(positions)) == len(positions)  # each passes the head once
    at = 0
    for r, length in zip(asked.rows, asked.lengths, strict=True):
        inputs, targets = rows[r]
        assert asked.target_M[at : at + length] == targets
        for i, place in enumerate(asked.place_M[at : at + length]):
            b, t = positions[place]
            assert r in plan[b].rows
            assert t == len(inputs) - len(targets) + i
        at += length
    assert at == len(asked.target_M)


def test_one_token_answers_to_one_question_cost_one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = tiny_gpt(vocab_size=50304).eval()
    seen: list[torch.Size] = []
    hidden = gpt.hidden

    def counted(idx_BT: torch.Tensor) -> torch.Tensor:
        seen.append(idx_BT.shape)
        return hidden(idx_BT)

    monkeypatch.setattr(gpt, "hidden", counted)
    adapter = GPTAdapter(gpt, gpt2_tokenizer(), batch_size=4, between_batches=lambda: None)
    question = list(range(10))
    adapter._loglikelihood_tokens([(None, question, [letter]) for letter in range(40, 44)])
    assert seen == [(1, 10)]
    seen.clear()
    adapter._loglikelihood_tokens([(None, question, [7]), (None, question, [8, 9]), (None, question[:4], [1])])
    assert seen == [(1, 11)]


def test_the_adapters_whose_speed_is_compared_give_the_same_scores() -> None:
    gpt = tiny_gpt(vocab_size=50304, block_size=48).eval()
    found = {name: timed.answers for name, timed in compare(gpt, 2, 16, 1).items()}
    slow, *others = found.values()
    assert len(slow) == 2 * (4 + 4 + 2 + 2 + 1)  # answers an item
    for other in others:
        assert [greedy for _, greedy in other] == [greedy for _, greedy in slow]
        assert [logp for logp, _ in other] == pytest.approx([logp for logp, _ in slow], rel=1e-5)
