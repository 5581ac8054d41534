"""Progress lines of a preparation: tokens, speed and remaining time."""

import logging
import time
from datetime import timedelta

log = logging.getLogger(__name__)


class Progress:
    """Log lines with speed and remaining time, at most one every ten seconds.

    Args:
        tokens: tokens of earlier processes.
    """

    EVERY_S = 10.0

    def __init__(self, tokens: int) -> None:
        self._start = self._last_line = time.monotonic()
        self._first_tokens = tokens
        self._first_share: float | None = None

    def report(self, tokens: int, shards: int, share: float | None) -> None:
        """Log a line if the last one is old enough."""
        now = time.monotonic()
        if self._first_share is None:
            self._first_share = share
        if now - self._last_line < self.EVERY_S:
            return
        self._last_line = now
        seconds, first = now - self._start, self._first_share
        speed = (tokens - self._first_tokens) / seconds
        line = f"{tokens:,} tokens, complete shards: {shards}, {speed:,.0f} tokens/s"
        if share is not None and first is not None and share > first:
            remaining = timedelta(seconds=round(seconds * (1 - share) / (share - first)))
            line += f", {100 * share:.1f} % of the source, {remaining} left"
        log.info("%s", line)
