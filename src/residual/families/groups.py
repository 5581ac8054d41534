"""Groups of consecutive sublayers or layers of equal size, the last of which may be smaller.

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), section 3.2: a fixed size, the remainder in the last group.
"""


def group_size(n: int, n_group: int) -> int:
    """Return the size of groups that split `n` elements into at most `n_group`."""
    return -(-n // n_group)


def describe_groups(n: int, size: int, unit: str) -> str:
    """Return number and sizes of the groups of `n` elements in words: "6 groups of 2 sublayers"."""
    n_group, rest = -(-n // size), n % size
    last = f", the last of {rest}" if rest else ""
    return f"{n_group} group{'s' if n_group > 1 else ''} of {size} {unit}{'s' if size > 1 else ''}{last}"
