"""Mix-LN: Post-LN in the first layers, Pre-LN in the others.

    x <- N_k(x + F_k(x))      in the first floor(fraction L) layers
    x <- x + F_k(N_k(x))      in the others

Source: Li et al., "Mix-LN" (arXiv 2412.13795), section 3; pixeli99/MixLN (`post_pre`).
At init: not vanilla.
"""

from typing import ClassVar

from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream
from src.source import Source


class MixLN(SingleStream):
    """Post-LN and Pre-LN layers; no parameters except norms, as many as the trunk would have.

    Args:
        post_fraction: share of layers that are Post-LN, in (0, 1], rounded down, at least one layer (0.25 in the
            source).
    """

    source: ClassVar[Source] = Source(
        "arXiv 2412.13795, section 3",
        "pixeli99/MixLN",
        "ff458269dff8",
        deviations=(
            "The token embedding starts with the trunk's standard deviation of 0.02 instead of sqrt(2 / 5), since the "
            "trunk starts the same under every strategy.",
        ),
    )

    def __init__(self, spec: StreamSpec, *, post_fraction: float) -> None:
        super().__init__()
        if not 0 < post_fraction <= 1:
            raise ValueError(
                f"residual.post_fraction must be in (0, 1], got {post_fraction}; for none use residual=vanilla"
            )
        self.n_post = max(int(post_fraction * spec.n_layer), 1)
        post = {site.sublayer for site in spec.sites if site.layer < self.n_post}
        self.norms = nn.ModuleList(spec.norm() for _ in post)
        self.rows = spec.rows

    def owns_norm(self, site: Site | None) -> bool:
        return site is not None and site.layer < self.n_post

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        x_BTD = state + y_BTD
        if site.layer < self.n_post:
            x_BTD = self.norms[self.rows[site.sublayer]](x_BTD)
        return x_BTD
