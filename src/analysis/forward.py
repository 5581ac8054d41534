"""One forward of a model as an analysis reads it: tensors by depth, of some sequences.

*Reads* are what each site's sublayer receives before its norm (the mean of the three views where they differ), and last
the input of the final norm. *States* are the strategy's `end` for the state before the first site and after every site:
what the final norm would receive if the model ended there. For a single stream that is the stream.

Shape letters: B batch, T tokens, D n_embd, H heads, K head size, N streams.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.kernels.attention.mask import Mask
from src.models.gpt import GPT
from src.models.stream_probe import mean_view
from src.models.trace import NullRecorder
from src.residual.base import QKV, ResidualStrategy, Site

#: Tensors by depth, or the reason for which there are none, as one sentence.
ByDepth = tuple[Tensor, ...] | str


class Forward(NamedTuple):
    """Tensors of one forward; S sites have S reads and one more, and S states and one more."""

    sites: tuple[Site, ...]
    read_BTD: tuple[Tensor, ...]
    state_BTD: ByDepth
    streams_BTND: ByDepth  # before the first site and after every site
    map_BTNN: ByDepth  # of every site: it maps the streams H to R H
    query_BHTK: tuple[Tensor, ...]  # of every attention site, as the scores are computed from them
    key_BHTK: tuple[Tensor, ...]
    allowed: tuple[Tensor | None, ...]  # of every attention site, pairs that attend, as in `Mask`; None: all earlier
    document_BT: Tensor | None  # number of each token's document; None: one document
    hidden_BTD: Tensor  # the head's input


class ForwardRecorder(NullRecorder):
    """Recorder of reads, states, streams and maps; those that a strategy does not have stay incomplete."""

    def __init__(self, strategy: ResidualStrategy[Any]) -> None:  # of any state
        self.strategy = strategy
        self.read_BTD: list[Tensor] = []
        self.state_BTD: list[Tensor] = []
        self.streams_BTND: list[Tensor] = []
        self.map_BTNN: list[Tensor] = []
        self._state: object = None

    def record_start(self, x0_BTD: Tensor, state: object) -> None:
        self._keep(state)

    def record_site(self, site: Site, x: Tensor | QKV, y_BTD: Tensor, state: object) -> None:
        self.read_BTD.append(mean_view(x))
        if (map_BTNN := self.strategy.stream_map(self._state, site)) is not None:
            self.map_BTNN.append(map_BTNN)
        self._keep(state)

    def _keep(self, state: object) -> None:
        self._state = state
        if self.strategy.ends_anywhere:
            self.state_BTD.append(self.strategy.end(state))
        if (streams_BTND := self.strategy.get_streams(state)) is not None:
            self.streams_BTND.append(streams_BTND)


@torch.no_grad()
def record_forward(gpt: GPT, idx_BT: Tensor, document_BT: Tensor | None = None) -> Forward:
    """Run the model, which is in evaluation mode, on token ids [B, T] and return the tensors by depth.

    Attention stays within tokens of one number in `document_BT`, if it is given.
    """
    recorder, heads = ForwardRecorder(gpt.residual), list[tuple[Tensor, Tensor, Mask | None]]()
    attentions = dict.fromkeys(gpt.sublayer(site) for site in gpt.active_sites if site.kind == "attn")
    hooks = [
        attention.get_submodule("attend").register_forward_pre_hook(partial(_keep_heads, heads))
        for attention in attentions
    ]
    try:
        end_BTD = gpt.run_trunk(idx_BT, recorder, document_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return Forward(
        gpt.active_sites,
        (*recorder.read_BTD, end_BTD),
        tuple(recorder.state_BTD) or "the strategy defines its end after the last site only",
        tuple(recorder.streams_BTND) or "the strategy does not hold several streams of full width",
        tuple(recorder.map_BTNN) or "the strategy does not map several streams linearly between sites",
        tuple(query_BHTK for query_BHTK, _, _ in heads),
        tuple(key_BHTK for _, key_BHTK, _ in heads),
        tuple(None if mask is None else mask.allowed for _, _, mask in heads),
        document_BT,
        gpt.head_input(end_BTD),
    )


def _keep_heads(
    kept: list[tuple[Tensor, Tensor, Mask | None]],
    _: torch.nn.Module,
    args: tuple[Tensor, Tensor, Tensor, Mask | None],
) -> None:
    query_BHTK, key_BHTK, _value_BHTK, mask = args
    kept.append((query_BHTK, key_BHTK, mask))
