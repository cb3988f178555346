"""How the positions of a step are dealt to the ranks of a run, and to their micro-batches."""

from __future__ import annotations

__all__ = ["micro_batches", "share"]


def share(step: int, batch_sequences: int, *, rank: int, world: int) -> range:
    """The positions of one rank: floor or ceil of its part of [s·B, (s+1)·B), in order.

    The shares of all ranks follow each other and make up the step, whatever their number.

    Args:
        step: s, from 0.
        batch_sequences: B of all ranks together.
        rank: 0 to world-1.
        world: number of ranks; may exceed B, and then some shares are empty.
    """
    first = step * batch_sequences
    return range(
        first + rank * batch_sequences // world, first + (rank + 1) * batch_sequences // world
    )


def micro_batches(batch_sequences: int, micro_batch: int, *, world: int) -> int:
    """The number of micro-batches of every rank: as many as the largest share needs."""
    largest = -(-batch_sequences // world)
    return -(-largest // micro_batch)
