"""Hyper streams: N streams of full width, which sublayers read, mix and write with learned weights.

    state = widen(x0, N)                    N copies of the embedding output; start(H): N streams that differ
    u, state = read(state, weigh)           u = A_m^T H,  H <- A_r^T H, with A and B from weigh(H)
    u, state = read_dhc(state, parameters)  the same with the weights of dynamic hyper-connections
    u, state = read_mhc(state, ...)         the same with those of manifold-constrained hyper-connections
    state = write(state, y)                 H <- H + B y, which the next read does in its own pass over the streams
    x = end(state)                          the streams' mean; `settle(state)` returns the streams themselves

`reference.py` defines the operations. `read_dhc` and `read_mhc` have kernels: in C++ for the CPU (one pass over the
streams in each direction, a tile of tokens at a time), in Triton for a GPU (the same, and the backward recomputes the
streams, `recompute.py`). Everything else runs in PyTorch (`streams.py`). Streams may be stored in bfloat16; arithmetic
then is in float32.
"""

from src.kernels.hyper_streams.dhc import DHCParameters, dhc_weights, read_dhc
from src.kernels.hyper_streams.mhc import MHCParameters, mhc_weights, read_mhc
from src.kernels.hyper_streams.projection import mixing_weights, project, project_read
from src.kernels.hyper_streams.reference import SiteWeights
from src.kernels.hyper_streams.streams import Streams, blend, end, mix, read, settle, start, widen, write

__all__ = [
    "DHCParameters",
    "MHCParameters",
    "SiteWeights",
    "Streams",
    "blend",
    "dhc_weights",
    "end",
    "mhc_weights",
    "mix",
    "mixing_weights",
    "project",
    "project_read",
    "read",
    "read_dhc",
    "read_mhc",
    "settle",
    "start",
    "widen",
    "write",
]
