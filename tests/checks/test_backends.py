"""Table of backends in task=check."""

from typing import Any

import pytest

from src.checks.backends import list_backends
from src.checks.graph import check_one_graph
from src.kernels.dispatch import REGISTRY
from tests.checks.test_checks import subject_of


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRY, "decisions", {})


@pytest.mark.parametrize("bf16", [False, True])
def test_the_table_names_the_backend_of_each_operation_and_the_reason(bf16: bool) -> None:
    title, header, *rows = list_backends(subject_of("attnres"), device="cpu", bf16=bf16).splitlines()
    assert title == "backends"
    assert header.split() == ["operation", "case", "backend", "reason"]
    (row,) = [row for row in rows if row.startswith("  depth attention  ")]
    assert "cpu, float32, width 32" in row
    assert "  cpp  " in row or "there is no C++ compiler" in row


def test_rejected_kernels_are_in_the_table_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.kernels.depth_attention.ops.SOURCE.why_not", lambda *case, **sizes: "for a test")
    (row,) = [row for row in list_backends(subject_of("tdar"), device="cpu", bf16=False).splitlines() if "depth" in row]
    assert row.endswith("reference  for a test")


def test_a_model_that_raises_has_no_table() -> None:
    def broken(*args: Any, **parts: Any) -> Any:
        raise RuntimeError("no such model")

    assert (
        list_backends(subject_of(broken), device="cpu", bf16=False)
        == "backends: unknown, the model raises RuntimeError"
    )


def test_verification_of_kernels_does_not_count_as_host_reads() -> None:
    assert check_one_graph(subject_of("vanilla")) == []
