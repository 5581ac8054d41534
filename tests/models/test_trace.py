"""Recorders of a forward: one keeps every tensor, the other none, and the logits are the same."""

import torch

from src.models.trace import NullRecorder, TraceRecorder
from src.residual.base import build_plain_sites

FIRST, SECOND = build_plain_sites(1)


def test_a_trace_has_the_tensors_of_each_stage_in_order() -> None:
    x0, e, x, y, end = torch.arange(5.0)
    recorder = TraceRecorder()
    recorder.record_start(x0, None)
    recorder.record_site(FIRST, x, y, None)
    recorder.record_injection(e, in_stream=True)
    recorder.record_site(SECOND, y, x, None)
    trace = recorder.build_trace(end)
    assert (trace.x0_BTD, trace.end_BTD) == (x0, end)
    assert (trace.read, trace.y_BTD) == ((x, y), (y, x))
    assert [(i.before, i.in_stream, i.e_BTD) for i in trace.injections] == [(1, True, e)]


def test_the_null_recorder_keeps_and_changes_nothing() -> None:
    recorder, y = NullRecorder(), torch.ones(1)
    recorder.record_start(torch.zeros(1), None)
    recorder.record_site(FIRST, torch.zeros(1), torch.zeros(1), None)
    assert recorder.replace_output(FIRST, y) is y
    assert vars(recorder) == {}
