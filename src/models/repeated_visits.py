"""What a trunk does about visits to a layer after its first."""

from typing import Any

from torch import Tensor

from src.recurrence.base import Recurrence
from src.residual.base import ResidualStrategy, Site


def first_visits(sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """The sites of every layer's first visit."""
    first: dict[int, int] = {}
    for site in sites:
        first.setdefault(site.layer, site.block)
    return tuple(site for site in sites if site.block == first[site.layer])


def require_skipping(recurrence: Recurrence, strategy: ResidualStrategy[Any]) -> None:
    """Refuse repeated visits that begin later under a strategy that has to see all from the beginning.

    Raises:
        ValueError: naming both.
    """
    if recurrence.delayed and not strategy.may_skip:
        raise ValueError(
            f"recurrence.start_step must be 0 with {type(strategy).__name__}, whose weights belong to a fixed number "
            "of earlier outputs; give recurrence.start_fraction=null recurrence.start_step=0 or another residual"
        )


def copy_first_(packed: Tensor) -> None:
    """Make all copies [copies, ...] the first."""
    packed[1:] = packed[:1]


def begin_visits(optimizer: Any, params: list[Any]) -> None:  # Lightning wraps the optimizer
    """Copies take over the first one's weights and its moments in the optimizer."""
    for param in params:
        copy_first_(param.data)
        for name, moment in optimizer.state.get(param, {}).items():
            if name != "step":
                copy_first_(moment)


def flops_per_token(gpt: Any) -> int:  # a GPT, which imports this file
    """Training FLOPs of one token: 6 * parameters + 12 * attention sites * D * T (PaLM, appendix B).

    A sublayer's parameters count once for every visit that a forward makes now; what is only looked up
    (positions, tables besides the head's) multiplies nothing.
    """
    sublayers = {site.sublayer: gpt.sublayer(site) for site in gpt.sites}
    sizes = {k: sum(p.numel() for p in m.parameters()) for k, m in sublayers.items()}
    others = gpt.n_params(positions=False) - sum(sizes.values()) - gpt.embedding.get_num_lookup_params()
    visited = sum(sizes[s.sublayer] // getattr(sublayers[s.sublayer], "n_copy", 1) for s in gpt.active_sites)
    attention = sum(site.kind == "attn" for site in gpt.active_sites)
    return int(6 * (others + visited) + 12 * attention * gpt.config.n_embd * gpt.config.block_size)


def told(gpt: Any, max_steps: int) -> str | None:  # see flops_per_token
    """The visits in one line, those after a layer's first in brackets; None where every layer is visited once."""
    visits = gpt.recurrence.visits()
    if [visit.layer for visit in visits if len(visit.kinds) == 2] == list(range(gpt.config.n_layer)):
        return None
    words, seen = [], set()
    for visit in visits:
        word = str(visit.layer) if len(visit.kinds) == 2 else f"{visit.layer} ({'+'.join(visit.kinds)} alone)"
        words.append(f"[{word}]" if visit.layer in seen else word)
        seen.add(visit.layer)
    line = " ".join(words).replace("] [", " ")
    if len(words) > len(seen):
        line += f"; in brackets from step {gpt.recurrence.start_step(max_steps)} on"
        line += ", with MLPs of their own" if gpt.recurrence.untied else ", with the same weights"
    return line


def mean_flops_per_token(gpt: Any, max_steps: int) -> float:  # see flops_per_token
    """Training FLOPs of one token, the mean over a run whose repeated visits may begin in its course."""
    if not gpt.recurrence.delayed:
        return float(gpt.flops_per_token())
    now, flops = gpt.recurs, {}
    for recurs in (False, True):
        gpt.recurs = recurs
        flops[recurs] = gpt.flops_per_token()
    gpt.recurs = now
    share = min(gpt.recurrence.start_step(max_steps), max_steps) / max_steps
    return float(share * flops[False] + (1 - share) * flops[True])
