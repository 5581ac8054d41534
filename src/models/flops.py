"""Training FLOPs per token of a GPT, and its visits to layers in one line.

    FLOPs = 6 * parameters in matrix products + 12 * D * sum over attention sites of min(window, T)

Source: PaLM (Chowdhery et al. 2022), appendix B; windows as in karpathy/nanochat @ 92d63d4, nanochat/gpt.py. The masks
of documents (`data.document_attention`) leave out pairs of tokens, which counts for nothing here.
"""

from src.models.gpt import GPT
from src.residual.base import Site


def count_flops_per_token(gpt: GPT, sites: tuple[Site, ...] | None = None) -> int:
    """Return the training FLOPs per token of a forward over `sites` (None: the active ones).

    The parameters of a sublayer count once for every visit. Parameters that are only looked up (positions, tables
    other than the head's) take part in no product and do not count.
    """
    sites = gpt.active_sites if sites is None else sites
    sublayers = {site.sublayer: gpt.sublayer(site) for site in gpt.sites}
    sizes = {k: sum(p.numel() for p in m.parameters()) for k, m in sublayers.items()}
    others = gpt.n_params(positions=False) - sum(sizes.values()) - gpt.embedding.get_num_lookup_params()
    visited = sum(sizes[s.sublayer] // getattr(sublayers[s.sublayer], "n_copy", 1) for s in sites)
    if gpt.loops is not None and gpt.adapter is not None:  # `others` has one pass through the adapter
        n_loop = sum(site.opens_block and site.block in gpt.loops.starts for site in sites)
        others += (n_loop - 1) * sum(p.numel() for p in gpt.adapter.parameters())
    attended = sum(gpt.config.windows[s.layer] or gpt.config.block_size for s in sites if s.kind == "attn")
    return 6 * (others + visited) + 12 * gpt.config.n_embd * attended


def average_flops_per_token(gpt: GPT, max_steps: int) -> float:
    """Return the training FLOPs per token averaged over a run, in whose course repeated visits may start."""
    if not gpt.recurrence.delayed:
        return float(count_flops_per_token(gpt))
    share = min(gpt.recurrence.start_step(max_steps), max_steps) / max_steps
    before, after = (count_flops_per_token(gpt, sites) for sites in (gpt.early_sites, gpt.sites))
    return share * before + (1 - share) * after


def describe_visits(gpt: GPT, max_steps: int) -> str | None:
    """Return the order of visits in one line, repeated ones in brackets; None if every layer is visited once."""
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
