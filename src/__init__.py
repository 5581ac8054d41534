"""reslab: pretrain language models under interchangeable residual streams.

The installed package has the models alone; its functions are those of `models/api.py`:

    import reslab

    model = reslab.from_pretrained("<exported folder>")    # token ids [B, T] -> logits [B, T, V]
    reslab.strategies()                                    # names: attnres, hyperconn, mhc, ...
    model = reslab.build("mhc", model="gpt2_small")        # initial weights
"""

import importlib

__version__ = "0.9.2"

#: Functions of the package, which import torch when they are first asked for.
API = ("build", "embeddings", "from_pretrained", "mlps", "norms", "recurrences", "strategies", "write_pretrained")


def __getattr__(name: str) -> object:
    """Return a function of the API."""
    if name not in API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.models.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *API]
