"""A group of callbacks: who is called, in which order, and who cannot be a member."""

from typing import Any

import lightning as L
import pytest

from src.callbacks.group import HOOKS, Group
from src.callbacks.training_log import ProgressBar


class _Told(L.Callback):
    def __init__(self, name: str, heard: list[str]) -> None:
        self.name, self.heard = name, heard

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *step: Any) -> None:
        self.heard.append(f"{self.name} {step}")


class _Whole(_Told):
    def on_train_start(self, *_: Any) -> None:
        self.heard.append("on_train_start")

    def on_train_end(self, *_: Any) -> None:
        self.heard.append("on_train_end")

    def on_fit_end(self, *_: Any) -> None:
        self.heard.append("on_fit_end")

    def on_exception(self, *_: Any) -> None:
        self.heard.append("on_exception")


def test_members_are_called_in_their_order_with_what_lightning_gives() -> None:
    heard: list[str] = []
    group: Any = Group(_Told("first", heard), ProgressBar(tokens_per_step=1, every_s=1.0), _Told("last", heard))
    group.on_train_batch_end(None, None, {"step": 1}, "batch", 7)
    assert heard == ["first ({'step': 1}, 'batch', 7)", "last ({'step': 1}, 'batch', 7)"]


@pytest.mark.parametrize("hook", sorted({*HOOKS} - {"on_train_batch_end"}))
def test_each_hook_reaches_its_members(hook: str) -> None:
    heard: list[str] = []
    arguments = [None, None, RuntimeError()][: 3 if hook == "on_exception" else 2]
    getattr(Group(_Told("no such hook", heard), _Whole("whole", heard)), hook)(*arguments)
    assert heard == [hook]


class _Keeps(L.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"kept": 1}


class _Early(L.Callback):
    def on_train_batch_start(self, *_: Any) -> None: ...


@pytest.mark.parametrize("member", [_Keeps(), _Early()])
def test_what_a_group_does_not_pass_on_cannot_be_in_one(member: L.Callback) -> None:
    with pytest.raises(ValueError, match="is not passed on by a group"):
        Group(member)
