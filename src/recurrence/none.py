"""No recurrence: visits every layer once, in order.

Source: GPT-2 (Radford et al. 2019).
"""

from src.recurrence.base import Recurrence
from src.source import Source


class NoRecurrence(Recurrence):
    """Plain order of layers; no parameters."""

    source = Source("GPT-2 (Radford et al. 2019), section 2.3")
