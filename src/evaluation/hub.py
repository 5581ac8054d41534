"""Choice between the Hugging Face hub and the cache of its client, for where the hub cannot be reached.

The client repeats each request for half a minute or more before it looks into the cache. A single request without
retries and with a short timeout decides instead; `HF_HUB_OFFLINE=1` in the environment decides without one.
"""

import contextlib
import logging
from collections.abc import Iterator

from src.errors import one_line

log = logging.getLogger(__name__)

#: Seconds that the hub has to answer.
TIMEOUT_S = 5.0


@contextlib.contextmanager
def prefer_hub() -> Iterator[None]:
    """Load data sets from the hub in the block, or where it does not answer from the cache alone."""
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or (reason := find_obstacle()) is None:
        yield
        return
    log.warning("%s does not answer (%s): data sets come from the cache", constants.ENDPOINT, reason)
    # What HF_HUB_OFFLINE=1 sets; both libraries read it at each request.
    before = datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = False, before


def find_obstacle() -> str | None:
    """Return why the hub cannot be reached; None if it sends any response."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
    except Exception as error:  # of the client's transport, which differs between its versions
        return f"{type(error).__name__}: {one_line(error)}"
    return None
