"""LayerNorm scaling (LNS): the input of a branch shrinks with the square root of its depth.

    x <- x + F_k( N_k(x) / sqrt(l) )    both sublayers of layer l = 1..L

The scale is applied after the norm, which would undo it otherwise. The source starts the output projections unscaled,
because the trunk's 1/sqrt(2 L) has the same purpose at init as LNS. A branch strategy: it composes with every strategy
that leaves the norms of the branches to the trunk.

Source: Sun et al., "The Curse of Depth in Large Language Models" (arXiv 2502.05795), section 4;
lmsdss/LayerNorm-Scaling.
At init: not vanilla.
"""

from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.branch import BranchStrategy
from src.source import Source


class LayerNormScaling(BranchStrategy):
    """LNS: no parameters but one norm a site, which replaces the trunk's.

    Args:
        output_init_scale: factor on the sublayers' initial output projections; None undoes the trunk's
            1/sqrt(2 n_layer), as the source has it; 1 keeps it.
    """

    source = Source("arXiv 2502.05795, section 4", "lmsdss/LayerNorm-Scaling", "3ac54dde961b")
    has_depth_rule = True

    def __init__(self, spec: StreamSpec, *, output_init_scale: float | None) -> None:
        super().__init__()
        self.output_init_scale = (2 * spec.n_layer) ** 0.5 if output_init_scale is None else output_init_scale
        self.norms = nn.ModuleList(spec.norm() for _ in spec.rows)
        self.rows = spec.rows

    def owns_norm(self, site: Site | None) -> bool:
        return site is not None

    def init_sublayer_(self, site: Site, sublayer: nn.Module) -> None:
        sublayer.get_parameter("c_proj.weight").mul_(self.output_init_scale)

    def enter(self, u_BTD: Tensor, site: Site) -> Tensor:
        x_BTD: Tensor = self.norms[self.rows[site.sublayer]](u_BTD) * (site.block + 1) ** -0.5
        return x_BTD
