"""Which code a run rests on."""

import logging

import pytest

from src.tasks import provenance
from src.tasks.provenance import code_by_step, code_identity, tell_other_code


def test_the_identity_follows_the_sources_and_not_git_alone() -> None:
    identity = code_identity()
    assert len(str(identity["sources"])) == 64
    assert identity["git"] is None or len(str(identity["git"]).partition("-dirty")[0]) == 40


def test_a_change_of_code_is_one_entry_from_its_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"git": None, "sources": "a" * 64}
    monkeypatch.setattr(provenance, "code_identity", lambda: codes)
    first = code_by_step([], 0)
    assert code_by_step(first, 40) == first == [{"step": 0, "git": None, "sources": "a" * 64}]
    codes["sources"] = "b" * 64
    assert code_by_step(first, 40) == [*first, {"step": 40, "git": None, "sources": "b" * 64}]
    assert code_by_step(code_by_step(first, 40), 20)[1]["step"] == 20  # gone back before the change


@pytest.mark.parametrize(
    ("then", "told"),
    [
        (
            {"git": "f" * 40, "sources": "0" * 64},
            "code ffffffffffff -> eeeeeeeeeeee-dirty (sources aaaaaaaaaaaa)",
        ),
        ({"git": None, "sources": "0" * 64}, "code sources 000000000000 -> eeeeeeeeeeee-dirty"),
        ({"git": "f" * 40, "sources": "a" * 64}, ""),  # the commit changed something else
        (None, ""),  # written before checkpoints said so
    ],
)
def test_other_code_is_told_in_one_line(
    then: dict[str, str] | None, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = {"git": "e" * 40 + "-dirty", "sources": "a" * 64}
    monkeypatch.setattr(provenance, "code_identity", lambda: now)
    with caplog.at_level(logging.WARNING):
        tell_other_code(then)
    assert len(caplog.messages) == bool(told)
    assert told in "".join(caplog.messages)
