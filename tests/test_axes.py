"""Combinations of axes: every option with every residual strategy, and every pair of options once."""

import itertools

import pytest
import torch

from src.models.config import NORM_PLACEMENTS, POSITIONS, QK_NORMS
from src.models.gpt import GPT
from tests.support import has_one_stream, jitter, options, start_at_once, tiny_gpt, tokens

AXES: dict[str, list[str]] = {
    "norm": options("norm"),
    "embedding": options("embedding"),
    "positions": list(POSITIONS),
    "norm_placement": list(NORM_PLACEMENTS),
    "recurrence": options("recurrence"),
    "qk_norm": list(QK_NORMS),
}
Case = dict[str, str]


def places_norms(residual: str) -> bool:
    gpt = tiny_gpt(residual)
    return any(gpt.residual.owns_norm(site) for site in gpt.sites)


def axes_of(residual: str) -> dict[str, list[str]]:
    """Return the axes without the options that exclude a strategy."""
    axes = dict(AXES)
    if places_norms(residual):
        axes["norm_placement"] = ["pre"]
    if not has_one_stream(residual):
        axes["recurrence"] = [name for name in AXES["recurrence"] if name != "looped"]
    return axes


def cover() -> list[Case]:
    """Return for each strategy as many cases as the longest axis has options, each axis with its own offset."""
    longest = max(map(len, AXES.values()))
    cases = []
    for s, residual in enumerate(options("residual")):
        for i in range(longest):
            offsets = (i, i + s, i + s // 2, i + s // 3, i + s // 5, i + s // 7)
            axes = axes_of(residual).items()
            picked = {axis: names[k % len(names)] for (axis, names), k in zip(axes, offsets, strict=True)}
            cases.append({"residual": residual, **picked})
    return cases


COVER = cover()
cases = pytest.mark.parametrize("case", COVER, ids=lambda case: "-".join(case.values()))


def build_case(case: Case, seed: int = 0) -> GPT:
    visits = start_at_once(case["recurrence"], case["residual"])
    gpt = tiny_gpt(**case, seed=seed, visits=visits)  # type: ignore[arg-type]  # axes are keywords or sizes
    gpt.follow(0, 100)
    return gpt


@cases
def test_every_parameter_gets_a_finite_gradient_in_the_first_step(case: Case) -> None:
    gpt = build_case(case)
    gpt.loss(tokens(), tokens(seed=1)).backward()
    for key, param in gpt.named_parameters():
        assert param.grad is not None, key
        assert param.grad.isfinite().all(), key


@cases
def test_a_future_token_changes_no_earlier_logit_and_the_last_one_counts(case: Case) -> None:
    gpt, idx = jitter(build_case(case)).double(), tokens()
    gpt.follow(50, 100)
    changed = idx.clone()
    changed[:, 6:] = (changed[:, 6:] + 17) % 64
    before, after = gpt(idx), gpt(changed)
    assert before.isfinite().all()
    assert torch.allclose(before[:, :6], after[:, :6], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 6], after[:, 6], rtol=0, atol=1e-12)


@cases
def test_under_bf16_the_stream_stays_float32(case: Case) -> None:
    gpt = jitter(build_case(case))
    with torch.autocast("cpu", torch.bfloat16):
        loss = gpt.loss(tokens(), tokens(seed=1))
        assert gpt.hidden(tokens()).dtype == torch.float32
    assert loss.isfinite()


def test_every_option_meets_every_strategy() -> None:
    for residual in options("residual"):
        for axis, names in axes_of(residual).items():
            assert {case[axis] for case in COVER if case["residual"] == residual} == set(names)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(AXES, 2)))
def test_every_pair_of_options_meets(one: str, other: str) -> None:
    met = {(case[one], case[other]) for case in COVER}
    assert met == set(itertools.product(AXES[one], AXES[other]))
