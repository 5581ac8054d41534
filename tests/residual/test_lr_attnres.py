"""LR-AttnRes equals the repository's plain PyTorch read with static queries and keys from values."""

import torch
from torch import Tensor

from src.residual.lr_attnres import LowRankAttentionResiduals
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec
from tests.support import tiny_gpt


def norm(x: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x, (x.size(-1),))


def test_it_equals_its_source() -> None:
    """jon123boss/LR-AttnRes @ 14784c7, model.py: `_apply_lrid_attnres` without fused kernels; LR_ATTNRES.md.

    attnres_type "full", lrid_key_from_value, one head, logit scale. `norm` is rms_norm with torch's default eps.
    """
    spec = stream_spec()
    strategy = jittered(
        LowRankAttentionResiduals(spec, rank=4, projection_std=0.02, eps=torch.finfo(torch.float64).eps)
    )

    def read(index: int, sources: list[tuple[Tensor, Tensor]]) -> Tensor:
        if len(sources) == 1:
            return sources[0][0]
        values = torch.stack([source[0] for source in sources])
        keys = norm(torch.stack([source[1] for source in sources]))
        logits = torch.einsum("sbtr,r->sbt", keys, strategy.query_QR[index - 1]) * 4**-0.5
        return torch.einsum("sbt,sbtd->btd", logits.softmax(0), values)

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        sources = [(x0, norm(x0) @ strategy.embedding_key_RD.T)]
        for i, branch in enumerate(branches):
            out = branch(read(i, sources))
            sources.append((out, norm(out) @ strategy.key_SRD[i].T))
        return read(len(branches), sources)

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """Queries 0, projections N(0, 0.02), rank 64; queries have no decay (optimizer.py, train.py).

    The source's Muon decays the projections, as it does all matrices; that AdamW trains them here is a deviation.
    """
    strategy = LowRankAttentionResiduals(stream_spec(4, 256), rank=64, projection_std=0.02, eps=1e-7)
    torch.manual_seed(0)
    strategy.reset()
    for weight in (strategy.embedding_key_RD, strategy.key_SRD):
        assert abs(weight.std().item() - 0.02) < 5e-4
    assert not strategy.query_QR.any()
    gpt = tiny_gpt("lr_attnres")
    assert gpt.residual.query_QR.shape[1] == 64
    groups = groups_by_name(gpt)
    assert groups["residual.embedding_key_RD"] == groups["residual.key_SRD"] == (LR, WEIGHT_DECAY)
    assert groups["residual.query_QR"] == (LR, 0.0)


def test_it_starts_as_the_uniform_mean() -> None:
    spec, x0 = stream_spec(), embedding_like()
    strategy = LowRankAttentionResiduals(spec, rank=4, projection_std=0.02, eps=1e-7).double()
    strategy.reset()
    constant = [lambda x, i=i: torch.full_like(x, i + 1.0) for i in range(6)]
    assert torch.allclose(flow(strategy, spec, x0, constant), (x0 + 21) / 7, atol=1e-12)
