"""DeepCrossAttention: q, k and v are gated sums of the outputs of the first and the last layers.

    X_0 = x0;   J_l = the first `n_first` and the last `n_last` of X_0 .. X_l, each once
    s_c = sum_j (b[l, c, j] + relu(w[l, c] . N_l(X_j))) X_j    for c = q, k, v, over j in J_l;  N_l: RMSNorm with a gain
    a = Attn(N_q(s_q), N_k(s_k), N_v(s_v));   m = MLP(N(s_q + a));   X_{l+1} = a + m
    out = one more sum, over J_L

b has a number for each channel, relu(w . N(X)) is one number for each token. X holds outputs of layers, not streams, so
that a sum with weights 1 over all of them is the residual stream. With `middle_sum` the sum of all outputs outside J_l
is one more source.

Source: Heddes et al., "DeepCrossAttention" (arXiv 2502.06785), section 3; lucidrains/deep-cross-attention.
At init (b = 1, w = 0): not vanilla, since outputs of middle layers are left out; with `middle_sum` it is.
Shape letters: C ways, J outputs in a sum, Q sums of all layers, P pairs of a sum and an output.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from src.kernels import depth_attention
from src.residual.base import QKV, ResidualStrategy, Site, StreamSpec
from src.source import Source


class Outputs(NamedTuple):
    """Outputs of the first and last layers, sum of the others, stream inside a layer, and what the layer has added."""

    depth_BTD: tuple[Tensor, ...]
    middle_BTD: tuple[Tensor, ...]
    x_BTD: Tensor
    branch_BTD: tuple[Tensor, ...]


class DeepCrossAttention(ResidualStrategy[Outputs]):
    """Gated sums; (3 * J + 4) * D parameters a layer and (J + 2) * D at the end, lr x 1, no weight decay.

    Args:
        spec: the trunk, which gives attention three norms.
        n_first, n_last: number of outputs at each end of the depth (2 and 2 in the source, x0 counts).
        middle_sum: True adds the sum of all other outputs as a source (false in the source; the paper is reported to
            have it, with `n_first` 1).
        w_std: standard deviation of w (0 in the source, where ReLU then passes no gradient and w stays 0).
        eps: added to the mean square in N_l (1.2e-7, torch's for float32, in the source).
    """

    source = Source(
        "arXiv 2502.06785, section 3",
        "lucidrains/deep-cross-attention",
        "35a0046a916d",
        deviations=(
            "It follows the public code, a reimplementation that leaves out the middle layers' outputs; the paper is "
            "reported to keep their plain sum as one more term.",
        ),
    )

    ends_anywhere: ClassVar[bool] = False  # a sum has weights for a fixed number of outputs
    width_readers = ("w_QD",)

    def __init__(
        self,
        spec: StreamSpec,
        *,
        n_first: PositiveInt,
        n_last: PositiveInt,
        middle_sum: bool,
        w_std: NonNegativeFloat,
        eps: PositiveFloat,
    ) -> None:
        super().__init__()
        self.n_first, self.n_last, self.middle_sum, self.w_std, self.eps = n_first, n_last, middle_sum, w_std, eps
        most = n_first + n_last + middle_sum
        ways = {site.block: 3 if site.kind == "attn" else 1 for site in spec.sites if site.opens_block}
        self.n_ways = [*ways.values(), 1]
        self.n_pairs = [n * min(most, block + 1) for block, n in enumerate(self.n_ways)]
        self.gain_LD = nn.Parameter(torch.ones(len(self.n_ways), spec.n_embd))
        self.w_QD = nn.Parameter(torch.zeros(sum(self.n_ways), spec.n_embd))
        self.b_PD = nn.Parameter(torch.ones(sum(self.n_pairs), spec.n_embd))

    def reset(self) -> None:
        nn.init.normal_(self.w_QD, std=self.w_std)

    def norms_each_view(self, site: Site) -> bool:
        return True

    def begin(self, x0_BTD: Tensor) -> Outputs:
        return Outputs((x0_BTD,), (), x0_BTD, ())

    def read(self, state: Outputs, site: Site) -> tuple[Tensor | QKV, Outputs]:
        if not site.opens_block:
            return state.x_BTD, state
        sums = self._sums(state, site.block)
        return QKV(*sums) if site.kind == "attn" else sums[0], state._replace(x_BTD=sums[0])

    def write(self, state: Outputs, site: Site, y_BTD: Tensor) -> Outputs:
        branch_BTD = (*state.branch_BTD, y_BTD.to(state.x_BTD.dtype))
        if not site.closes_block:
            return state._replace(x_BTD=state.x_BTD + y_BTD, branch_BTD=branch_BTD)
        depth_BTD, middle_BTD = (*state.depth_BTD, _add(branch_BTD)), state.middle_BTD
        if len(depth_BTD) > self.n_first + self.n_last:  # the oldest of the last ones leaves
            middle_BTD = (_add((*middle_BTD, depth_BTD[self.n_first])),) if self.middle_sum else ()
            depth_BTD = (*depth_BTD[: self.n_first], *depth_BTD[-self.n_last :])
        return Outputs(depth_BTD, middle_BTD, state.x_BTD, ())

    def end(self, state: Outputs) -> Tensor:
        return self._sums(state, len(self.n_ways) - 1)[0]

    def _sums(self, state: Outputs, block: int) -> list[Tensor]:
        """Return the gated sum of each way of a layer, [B, T, D] each."""
        depth_BTD = (*state.depth_BTD[: self.n_first], *state.middle_BTD, *state.depth_BTD[self.n_first :])
        key_CD = torch.split(self.w_QD, self.n_ways)[block] * self.gain_LD[block]
        b_CJD = torch.split(self.b_PD, self.n_pairs)[block].view(len(key_CD), len(depth_BTD), -1)
        gates = [depth_attention.scores(v_BTD, key_CD, self.eps).relu() for v_BTD in depth_BTD]
        sums = []
        for way, b_JD in enumerate(b_CJD):
            gate_BTJ = torch.stack([gate_BTC[..., way] for gate_BTC in gates], dim=-1)
            s_BTD = depth_attention.sum_by_token(gate_BTJ, depth_BTD)
            for v_BTD, b_D in zip(depth_BTD, b_JD, strict=True):
                s_BTD = torch.addcmul(s_BTD, v_BTD, b_D)
            sums.append(s_BTD)
        return sums


def _add(parts_BTD: tuple[Tensor, ...]) -> Tensor:
    return sum(parts_BTD[1:], start=parts_BTD[0])
