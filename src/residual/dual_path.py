"""Dual path: half of the MLP in parallel with attention, half after it; one MLP, visited twice.

    h = N1_l(x);   x <- x + Attn(h) + MLP(h) / 2;   x <- x + MLP(N2_l(x)) / 2

Source: a submission to MLS-Bench llm-pretrain-normalization, known from its transcript; no repository has its code.
At init: not vanilla.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.shared_norm import LayerStart, SharedNorm
from src.source import Source


class DualPath(SharedNorm):
    """Three visits per layer; no parameters except two norms per layer, instead of the trunk's."""

    source = Source("MLS-Bench llm-pretrain-normalization, submission")

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__(spec)
        self.after_norms = nn.ModuleList(spec.norm() for _ in range(spec.n_layer))

    def visits(self, sites: tuple[Site, ...]) -> tuple[Site, ...]:
        visited: list[Site] = []
        for site in sites:
            if site.kind == "attn":
                visited.append(replace(site, index=len(visited)))
            else:
                for half in (0, 1):
                    visit, last = 2 * site.visit + half, half == 1
                    opens = site.opens_block and not last
                    half_site = replace(site, index=len(visited), visit=visit)
                    visited.append(replace(half_site, opens_block=opens, closes_block=last))
        return tuple(visited)

    def read(self, state: LayerStart, site: Site) -> tuple[Tensor, LayerStart]:
        if site.closes_block:
            state = state._replace(h_BTD=self.after_norms[site.layer](state.x_BTD))
        return super().read(state, site)

    def write(self, state: LayerStart, site: Site, y_BTD: Tensor) -> LayerStart:
        share = 1.0 if site.kind == "attn" else 0.5
        return state._replace(x_BTD=torch.add(state.x_BTD, y_BTD, alpha=share))
