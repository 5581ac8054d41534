"""Base class of strategies with a low-rank map of the stream: x A B, A "column orthogonal", B zero at init.

    A[d, r] = 1 / sqrt(R D) if d mod R = r, else 0

Source: Menghani et al., "LAuReL" (arXiv 2411.07501), section 2.2; wdlctc/hyper-connection-factory,
hcfactory/connections/laurel.py, and hcfactory/train.py for the optimizer groups.
Shape letters: R rank.
"""

import torch
from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream


class LowRankStream(SingleStream):
    """Stream with a low-rank map per site; 2 * R * D parameters per site, no weight decay.

    Args:
        rank: rank R of the map, in [1, n_embd].
    """

    width_readers = ("a_SDR",)

    def __init__(self, spec: StreamSpec, *, rank: int) -> None:
        super().__init__()
        if not 1 <= rank <= spec.n_embd:
            raise ValueError(f"residual.rank must be between 1 and n_embd={spec.n_embd}, got {rank}")
        channel_D = torch.arange(spec.n_embd)
        a_DR = torch.zeros(spec.n_embd, rank)
        a_DR[channel_D, channel_D % rank] = (rank * spec.n_embd) ** -0.5
        self.a_SDR = nn.Parameter(a_DR.repeat(spec.n_site, 1, 1))
        self.b_SRD = nn.Parameter(torch.zeros(spec.n_site, rank, spec.n_embd))

    def augment(self, x_BTD: Tensor, site: Site) -> Tensor:
        """Return x + x A B."""
        low_NR = x_BTD.flatten(0, 1) @ self.a_SDR[site.index]
        return torch.addmm(x_BTD.flatten(0, 1), low_NR, self.b_SRD[site.index]).view(x_BTD.shape)
