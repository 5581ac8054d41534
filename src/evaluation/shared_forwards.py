"""Which forwards score which requests: as few as a causal model needs.

A request (inputs, targets) scores targets after the last len(targets) positions of its inputs. Two requests
with the same inputs (one-token answers to one question, which lm-eval's own Hugging Face model shares too)
need one forward; so do a request and another whose inputs begin with its own, since a causal model's outputs
there are the same. Positions that several requests score pass the head once.

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
    """One sequence, and the requests (by index) that it scores."""

    inputs: list[int]
    rows: list[int]


class Scored(NamedTuple):
    """What the head is to do for a batch of forwards.

    Pair m asks position `places[m]` of the P for the log-probability of `targets[m]`; `lengths` are the
    pairs of each row, in the order of `rows`.
    """

    sequence_P: list[int]
    position_P: list[int]
    place_M: list[int]
    target_M: list[int]
    rows: list[int]
    lengths: list[int]


def forwards(rows: Sequence[Row]) -> list[Forward]:
    """The sequences that score all `rows`, the longest first."""
    order = sorted(range(len(rows)), key=lambda r: rows[r][0])
    kept: list[Forward] = []
    for r in reversed(order):  # whatever begins with a row's inputs stands right after it in this order
        inputs = rows[r][0]
        if kept and kept[-1].inputs[: len(inputs)] == inputs:
            kept[-1].rows.append(r)
        else:
            kept.append(Forward(inputs, [r]))
    return sorted(kept, key=lambda forward: -len(forward.inputs))


def scored_positions(batch: Sequence[Forward], rows: Sequence[Row]) -> Scored:
    """The positions that `batch` is to pass through the head, each once, and what to look up there."""
    found = Scored([], [], [], [], [], [])
    places: dict[tuple[int, int], int] = {}
    for b, forward in enumerate(batch):
        for r in forward.rows:
            inputs, targets = rows[r]
            for at, target in enumerate(targets, len(inputs) - len(targets)):
                place = places.setdefault((b, at), len(places))
                if place == len(found.sequence_P):
                    found.sequence_P.append(b)
                    found.position_P.append(at)
                found.place_M.append(place)
                found.target_M.append(target)
            found.rows.append(r)
            found.lengths.append(len(targets))
    return found
