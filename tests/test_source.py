"""Sources of methods: stated together with their commit, found in a configuration, and checked on resume."""

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from src.errors import UserError
from src.source import Source, find_sources
from src.training.provenance import reject_changed_methods


class Changed:
    source = Source("arXiv 1, section 2", "owner/name", "0123456789ab", changed_in="0.3.0")


class Steady:
    source = Source("arXiv 2")


def settings_with(residual: Any) -> Any:
    """Stand in for settings whose other parts never changed."""
    others = dict.fromkeys(("norm", "embedding", "recurrence", "mlp"), partial(Steady))
    return cast(Any, SimpleNamespace(residual=residual, **others))


@pytest.mark.parametrize("keys", [{}, {"code": "owner/name"}, {"commit": "0123456"}])
def test_a_source_without_paper_or_without_commit_is_an_error(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a source needs a paper, or code with its commit"):
        Source(**keys)


def test_a_source_reads_as_paper_and_code_at_a_short_commit() -> None:
    assert str(Changed.source) == "arXiv 1, section 2; owner/name @ 0123456"
    assert str(Steady.source) == "arXiv 2"


def test_the_parts_of_a_part_are_found_too() -> None:
    parts = [partial(Changed), partial(Steady)]
    for nested in (parts, {"one": parts[0], "two": parts[1]}):
        found = list(find_sources(partial(dict, parts=nested)))
        assert found == [("dict", None), ("Changed", Changed.source), ("Steady", Steady.source)]


@pytest.mark.parametrize("stored", [{}, {"version": "0.2.0"}])
def test_a_checkpoint_from_before_a_change_is_rejected(stored: dict[str, str]) -> None:
    words = r"a\.ckpt was written by reslab 0\.2\.0, and residual Changed computes something else since 0\.3\.0"
    with pytest.raises(UserError, match=words):
        reject_changed_methods(stored, settings_with(partial(Changed)), "a.ckpt")


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.10.0"])
def test_a_checkpoint_from_after_a_change_is_accepted(version: str) -> None:
    reject_changed_methods({"version": version}, settings_with(partial(Changed)), "a.ckpt")


def test_a_method_that_never_changed_accepts_every_checkpoint() -> None:
    reject_changed_methods({}, settings_with(partial(Steady)), "a.ckpt")
