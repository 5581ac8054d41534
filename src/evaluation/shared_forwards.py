"""Plan of the forward passes that score a set of requests: as few as a causal model needs.

A request (inputs, targets) scores targets after the last len(targets) positions of its inputs. Two requests with the
same inputs (one-token answers to one question, which lm-eval's own Hugging Face model shares too) need one forward
pass; so do a request and another whose inputs begin with its own, since a causal model's outputs there are the same.
The head is applied once to a position that several requests score.

    inputs  a b c          forwards  a b c d e     scores  a b c, a b c d e
            a b c d e                a b x                 a b x
            a b x

Source: EleutherAI/lm-evaluation-harness 0.4.13, models/utils.py (Collator, group_by="contexts").
Shape letters: P positions that the head is applied to, M scored (position, target) pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

Row = tuple[list[int], list[int]]


class Forward(NamedTuple):
    """Sequence, and the requests (by index) that it scores."""

    inputs: list[int]
    rows: list[int]


class Positions(NamedTuple):
    """Positions of a batch that the head is applied to, and the targets that are looked up there.

    Pair m looks up target `target_M[m]` at position `place_M[m]` of the P; `lengths` are the numbers of pairs of each
    row, in the order of `rows`.
    """

    sequence_P: list[int]
    position_P: list[int]
    place_M: list[int]
    target_M: list[int]
    rows: list[int]
    lengths: list[int]


def plan_forwards(rows: Sequence[Row]) -> list[Forward]:
    """Return the sequences that score all `rows`, the longest first."""
    order = sorted(range(len(rows)), key=lambda r: rows[r][0])
    kept: list[Forward] = []
    for r in reversed(order):  # a sequence that begins with a row's inputs directly follows the row in `order`
        inputs = rows[r][0]
        if kept and kept[-1].inputs[: len(inputs)] == inputs:
            kept[-1].rows.append(r)
        else:
            kept.append(Forward(inputs, [r]))
    return sorted(kept, key=lambda forward: -len(forward.inputs))


def list_positions(batch: Sequence[Forward], rows: Sequence[Row]) -> Positions:
    """Return the positions of `batch` that are scored, each once, and the targets to look up there."""
    positions = Positions([], [], [], [], [], [])
    places: dict[tuple[int, int], int] = {}
    for b, forward in enumerate(batch):
        for r in forward.rows:
            inputs, targets = rows[r]
            for at, target in enumerate(targets, len(inputs) - len(targets)):
                place = places.setdefault((b, at), len(places))
                if place == len(positions.sequence_P):
                    positions.sequence_P.append(b)
                    positions.position_P.append(at)
                positions.place_M.append(place)
                positions.target_M.append(target)
            positions.rows.append(r)
            positions.lengths.append(len(targets))
    return positions
